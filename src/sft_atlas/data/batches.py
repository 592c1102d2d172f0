"""Say which samples a training step sees, and lay them out as tensors.

The order of an epoch depends on seed, epoch and number of samples alone, so a resumed run and a
longer run see the same steps. A step is a set of samples; how it is split into micro-batches is
placement and moves the loss by rounding only, because a step's loss is the sum over its supervised
tokens divided by their number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        """Count the supervised tokens of some samples: the divisor of a step's loss."""
        chosen = np.asarray(indices, dtype=np.int64)
        return int((self.lengths[chosen] - self.prompt_lengths[chosen]).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Right-padded samples; axes batch, seq."""

    input_ids: torch.Tensor
    """int64 (batch, seq)."""
    labels: torch.Tensor
    """int64 (batch, seq), aligned with input_ids (not shifted): IGNORED on prompt and padding."""
    attention_mask: torch.Tensor
    """int64 (batch, seq): 1 on tokens, 0 on padding."""
    num_supervised: int
    """Labels that are not IGNORED; each is predicted from the position before it."""


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


def collate(rows: TrainingRows, indices: Sequence[int], *, pad_id: int = 0) -> Batch:
    """Lay samples out as one right-padded batch on the CPU.

    `pad_id` may be any token: padding is masked, not supervised, and right of every real token.
    """
    width = max(int(rows.lengths[i]) for i in indices)
    input_ids = np.full((len(indices), width), pad_id, dtype=np.int64)
    labels = np.full((len(indices), width), IGNORED, dtype=np.int64)
    mask = np.zeros((len(indices), width), dtype=np.int64)
    for line, index in enumerate(indices):
        ids, prompt_length = rows.example(index)
        input_ids[line, : len(ids)] = ids
        labels[line, prompt_length : len(ids)] = ids[prompt_length:]
        mask[line, : len(ids)] = 1
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        attention_mask=torch.from_numpy(mask),
        num_supervised=rows.num_supervised(indices),
    )
