"""Say which samples a training step sees, and lay them out as tensors.

The order of an epoch depends on seed, epoch and number of samples alone, so a resumed run and a
longer run see the same steps. A step is a set of samples; how it is split into micro-batches is
placement and moves the loss by rounding only, because a step's loss is the sum over its supervised
tokens divided by their number.

Samples stand end to end, a line for each run that computes in the same pass. Models that cannot
keep them apart there get them padded, a line for each sample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from sft_atlas.data.prepared import PreparedRows
from sft_atlas.data.subsets import seeded_order

IGNORED: Final = -100
"""Label of tokens that are not supervised; what torch's cross-entropy ignores by default."""


class TrainingRows:
    """Samples of one or more datasets end to end; index i counts through the parts in order."""

    def __init__(self, parts: Sequence[PreparedRows]) -> None:
        self.parts = tuple(parts)
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])])
        self.lengths: NDArray[np.int64] = np.concatenate([part.lengths() for part in self.parts])
        """Tokens per sample, shape (n,)."""
        self.prompt_lengths: NDArray[np.int64] = np.concatenate(
            [part.prompt_lengths.astype(np.int64) for part in self.parts]
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def example(self, index: int) -> tuple[NDArray[np.int32], int]:
        """Return one sample's token ids and its prompt length; the rest of it is supervised."""
        # `right` skips parts without samples, which start where the next one does.
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part].example(index - int(self._starts[part]))

    def num_supervised(self, indices: Sequence[int] | NDArray[np.int64]) -> int:
        """Count the supervised tokens of some samples: the divisor of a step's loss.

        A sample's first token follows nothing, so it is never predicted.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        return int((self.lengths[chosen] - np.maximum(self.prompt_lengths[chosen], 1)).sum())


Member = tuple[TrainingRows, Sequence[int]]
"""A run's samples and the indices of those that a pass holds; they may be none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """Samples of several runs in one pass: a line for each run, its samples end to end, zeros
    behind.

    A flat place counts through the lines: line * tokens + column.
    """

    input_ids: torch.Tensor
    """int64 (runs, tokens)."""
    position_ids: torch.Tensor
    """int64 (runs, tokens): place within the sample, from 0; 0 in the padding."""
    samples: torch.Tensor
    """int64 (runs, tokens): index of the sample among its run's rows, -1 in the padding."""
    predictors: torch.Tensor
    """int64 (supervised,): flat places whose next token is supervised, run after run."""
    targets: torch.Tensor
    """int64 (supervised,): that next token."""
    num_supervised: tuple[int, ...]
    """Supervised tokens of each run."""
    num_tokens: tuple[int, ...]
    """Tokens of each run; what follows them on its line is padding."""
    starts: NDArray[np.int64]
    """Flat place of each document's first token, shape (documents,)."""
    lengths: NDArray[np.int64]
    """Tokens of each document, shape (documents,)."""

    def to(self, device: torch.device) -> "PackedBatch":
        """Return the same batch with its tensors on a device."""
        names = ("input_ids", "position_ids", "samples", "predictors", "targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Right-padded samples; axes batch, seq."""

    input_ids: torch.Tensor
    """int64 (batch, seq)."""
    position_ids: torch.Tensor
    """int64 (batch, seq): place within the sample, from 0, also on padding."""
    samples: torch.Tensor
    """int64 (batch, seq): index of the sample, -1 on padding."""
    labels: torch.Tensor
    """int64 (batch, seq), aligned with input_ids (not shifted): IGNORED on prompt and padding."""
    attention_mask: torch.Tensor
    """int64 (batch, seq): 1 on tokens, 0 on padding."""
    num_supervised: int
    """Labels that are not IGNORED; each is predicted from the position before it."""

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch with its tensors on a device."""
        names = ("input_ids", "position_ids", "samples", "labels", "attention_mask")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return sample indices in the order of one epoch (counted from 1), shape (num_samples,)."""
    return seeded_order(num_samples, (seed, epoch))


def num_steps(num_samples: int, batch_samples: int) -> int:
    """Count the optimizer steps of an epoch; the last may have fewer samples."""
    return -(-num_samples // batch_samples)


def iter_steps(
    rows: TrainingRows, *, batch_samples: int, seed: int, epoch: int
) -> Iterator[list[int]]:
    """Yield the sample indices of each step of an epoch (from 1); the last has what is left."""
    order = epoch_order(len(rows), seed, epoch)
    for start in range(0, len(order), batch_samples):
        yield order[start : start + batch_samples].tolist()


def split_passes(
    lengths: NDArray[np.int64],
    indices: Sequence[int],
    max_tokens: int,
    *,
    packed: bool = True,
) -> list[list[int]]:
    """Split the samples of a step into passes of at most `max_tokens` each, longest samples first.

    A packed pass holds the sum of its samples' lengths, a padded one its longest length for every
    sample. A single longer sample is a pass of its own. Samples of like lengths come together,
    which attention and padding are cheaper for.
    """
    passes: list[list[int]] = []
    room = 0
    for index in sorted(indices, key=lambda i: -int(lengths[i])):
        length = int(lengths[index])
        if not passes or room < (length if packed else 1):
            passes.append([])
            room = max_tokens if packed else max_tokens // length
        passes[-1].append(index)
        room -= length if packed else 1
    return passes


def pack(members: Sequence[Member]) -> PackedBatch:
    """Lay samples out end to end on the CPU, each run's on its own line, in the given order."""
    totals = [int(rows.lengths[indices].sum()) if len(indices) else 0 for rows, indices in members]
    width = max(totals)
    shape = (len(members), width)
    input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    samples = np.full(shape, -1, np.int64)
    starts, document_lengths, predictors, targets = [], [], [], []
    for line, ((rows, indices), total) in enumerate(zip(members, totals, strict=True)):
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = rows.lengths[chosen]
        firsts = np.cumsum(lengths) - lengths
        positions = np.arange(total) - np.repeat(firsts, lengths)
        for index, first, length in zip(indices, firsts.tolist(), lengths.tolist(), strict=True):
            input_ids[line, first : first + length] = rows.example(index)[0]
        position_ids[line, :total] = positions
        samples[line, :total] = np.repeat(chosen, lengths)
        # A sample's first token follows nothing, whatever the prompt's length.
        is_target = positions >= np.repeat(np.maximum(rows.prompt_lengths[chosen], 1), lengths)
        places = np.flatnonzero(is_target)
        predictors.append(line * width + places - 1)
        targets.append(input_ids[line, places])
        starts.append(line * width + firsts)
        document_lengths.append(lengths)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        samples=torch.from_numpy(samples),
        predictors=torch.from_numpy(np.concatenate(predictors)),
        targets=torch.from_numpy(np.concatenate(targets)),
        num_supervised=tuple(len(own) for own in targets),
        num_tokens=tuple(totals),
        starts=np.concatenate(starts),
        lengths=np.concatenate(document_lengths),
    )


def collate(rows: TrainingRows, indices: Sequence[int], *, pad_id: int = 0) -> Batch:
    """Lay samples out as one right-padded batch on the CPU.

    `pad_id` may be any token: padding is masked, not supervised, and right of every real token.
    """
    width = max(int(rows.lengths[i]) for i in indices)
    input_ids = np.full((len(indices), width), pad_id, dtype=np.int64)
    labels = np.full((len(indices), width), IGNORED, dtype=np.int64)
    mask = np.zeros((len(indices), width), dtype=np.int64)
    samples = np.full((len(indices), width), -1, dtype=np.int64)
    for line, index in enumerate(indices):
        ids, prompt_length = rows.example(index)
        input_ids[line, : len(ids)] = ids
        labels[line, prompt_length : len(ids)] = ids[prompt_length:]
        mask[line, : len(ids)] = 1
        samples[line, : len(ids)] = index
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.arange(width).expand(len(indices), -1),
        samples=torch.from_numpy(samples),
        labels=torch.from_numpy(labels),
        attention_mask=torch.from_numpy(mask),
        num_supervised=rows.num_supervised(indices),
    )
