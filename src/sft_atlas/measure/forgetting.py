"""How far did next-token distributions on neutral text move from the base model's?

In: a cell's live model, a `ForgettingMeasure`, and the base model's record of the same measure.
Out: per text the KL divergences both ways, how often the most likely token is the base's, and both
models' negative log-likelihoods; a base model's own record holds its distributions instead.

Of each distribution the base's `num_kept` most likely tokens are stored, and all others as one
mass: a full one would take 600 KB per token. Divergences are those of the distributions coarsened
so, for cell and base alike. By the data-processing inequality (Cover & Thomas 2006, section 2.8)
they are lower bounds that grow with `num_kept`, and exact where the vocabulary is no larger.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from sft_atlas.data.encoding import tokenizer_sha256
from sft_atlas.data.texts import (
    EncodedText,
    Text,
    encode_text_set,
    load_texts,
    text_prefix,
    texts_sha256,
)
from sft_atlas.errors import DataError, StoreError
from sft_atlas.identity import payload
from sft_atlas.model.forward import default_batch_tokens, logits_at
from sft_atlas.store.records import Record, check_artifact, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.measure import ForgettingMeasure
from sft_atlas.study.spec import CellSpec, base_cell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORGETTING_NAME: Final = "forgetting.parquet"

KEPT_IDS_NAME: Final = "kept_ids.npy"
"""int32 (tokens, kept): the base's most likely tokens, the most likely first."""
KEPT_NAME: Final = "kept_log_probabilities.npy"
"""float32 (tokens, kept), nats."""
REST_NAME: Final = "rest_log_mass.npy"
"""float32 (tokens,): log of what all other tokens have together; -inf where there are none."""
NLL_NAME: Final = "nll.npy"
"""float32 (tokens,): negative log-likelihood of the token that stands there, nats."""
BEST_IDS_NAME: Final = "best_ids.npy"
"""int32 (tokens,): the most likely token; a tie has one winner, as on the cell's side."""

_BASE_NAMES: Final = (KEPT_IDS_NAME, KEPT_NAME, REST_NAME, NLL_NAME, BEST_IDS_NAME)

_LOGIT_BYTES: Final = 1 << 27
"""Bound on the float32 logits of one pass, of which two or three copies live at a time."""

_SCHEMA: Final = pa.schema(
    [
        ("text", pa.string()),
        ("num_tokens", pa.int64()),
        ("kl", pa.float64()),
        ("reverse_kl", pa.float64()),
        ("agreements", pa.int64()),
        ("base_nll", pa.float64()),
        ("cell_nll", pa.float64()),
    ]
)

Array = np.ndarray[Any, np.dtype[Any]]


def measure_forgetting(
    store: Store,
    cell: CellSpec,
    measure: ForgettingMeasure,
    *,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
) -> Record:
    """Publish how far a cell's distributions are from its base's, or a base's distributions.

    `model` holds the cell's weights, in evaluation mode. Returns the record that is there if it was
    measured before.

    Raises:
        DataError: if the texts cannot be read or encoded, or a distribution or divergence is not
            finite.
        StoreError: if the base model's record is absent, or of other texts or another tokenizer.
    """
    folder = store.layout.measure(cell.fingerprint, measure.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    texts = load_texts(measure.texts, tokenizer)
    encoded = encode_text_set(tokenizer, texts, max_tokens=measure.max_tokens)
    run = _Run(cell=cell, texts=texts, encoded=encoded, model=model)
    facts = {
        "texts_sha256": texts_sha256(texts),
        "tokenizer_sha256": tokenizer_sha256(tokenizer, ""),
        "prefix": text_prefix(tokenizer).kind,
        "num_texts": len(texts),
        "num_cut": sum(text.is_cut for text in encoded),
        "num_tokens": int(run.offsets[-1]),
    }
    base = None if cell.trajectory is None else _read_base(store, cell, measure, facts)

    def fill(aside: Path) -> dict[str, Any]:
        if base is None:
            return facts | _store_base(run, measure.num_kept, aside)
        return facts | _compare(run, base, aside)

    return store.publish(
        folder,
        schema="forgetting/1",
        spec={"cell": payload(cell), "measure": payload(measure)},
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def divergences(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(p || q) and KL(q || p) over the last dimension in float64, nats, >= 0.

    In: log-probabilities. Computed as the sums of p d - p + q and q - p - q d with
    d = log p - log q, which equal the sums of p d and -q d where both sum to 1. Equal inputs give
    exactly 0, and a rounding error of the normalisation enters with its square alone. Infinite
    where one is 0 and the other is not.
    """
    log_p, log_q = log_p.double(), log_q.double()
    p, q = log_p.exp(), log_q.exp()
    difference = log_p - log_q
    # 0 log 0 is 0; the difference there is infinite, or undefined where both are 0.
    forward = torch.where(p == 0, 0.0, p * difference) - p + q
    backward = torch.where(q == 0, 0.0, -q * difference) - q + p
    return forward.sum(dim=-1).clamp(min=0), backward.sum(dim=-1).clamp(min=0)


@final
@dataclass(frozen=True, kw_only=True)
class _Run:
    """A model and the texts that go through it."""

    cell: CellSpec
    texts: Sequence[Text]
    encoded: Sequence[EncodedText]
    model: PreTrainedModel

    @property
    def offsets(self) -> Array:
        """Where each text's scored tokens begin, and behind the last one their number."""
        return np.cumsum([0, *(len(text.ids) - 1 for text in self.encoded)])

    def fault(self, token: int, problem: str) -> DataError:
        text = self.texts[int(np.searchsorted(self.offsets, token, side="right")) - 1]
        return DataError(
            f"{self.cell.description}, text {text.id}: {problem}; expected a finite number. "
            f"Its weights hold NaN or infinity, or overflow; train a cell again with a lower "
            f"learning rate."
        )


@final
@dataclass(frozen=True, kw_only=True)
class _Base:
    """A base model's stored distributions, mapped from disk."""

    kept_ids: Array
    kept: Array
    rest: Array
    nll: Array
    best_ids: Array
    is_exact: bool


@final
class _Slice(NamedTuple):
    """Distributions at some of the scored tokens."""

    tokens: Array
    """Positions among all scored tokens of the set."""
    log_probabilities: Tensor
    """(tokens, vocab), float32; may be overwritten."""
    target_ids: Tensor


def _store_base(run: _Run, num_kept: int, aside: Path) -> dict[str, Any]:
    num_tokens = int(run.offsets[-1])
    arrays: dict[str, Array] = {}
    num_words = 0
    for part in _iter_slices(run):
        if not arrays:
            num_words = part.log_probabilities.shape[1]
            num_kept = min(num_kept, num_words)
            arrays = _open_arrays(aside, num_tokens, num_kept)
        # Told apart are all words of a small vocabulary, in its own order, which costs no look-up.
        kept_ids = (
            torch.arange(num_words).expand(len(part.tokens), num_words)
            if num_kept == num_words
            else part.log_probabilities.topk(num_kept, dim=1).indices
        )
        nll, best_ids, coarse = _coarsen(part, None if num_kept == num_words else kept_ids)
        for name, value in zip(
            _BASE_NAMES, (kept_ids, coarse[:, :-1], coarse[:, -1], nll, best_ids), strict=True
        ):
            arrays[name][part.tokens] = value.cpu().numpy()
    for array in arrays.values():
        assert isinstance(array, np.memmap)
        array.flush()
    total = float(arrays[NLL_NAME].sum(dtype=np.float64))
    return {
        "num_kept": num_kept,
        "is_exact": num_kept == num_words,
        "base_nll_per_token": total / num_tokens,
    }


def _open_arrays(aside: Path, num_tokens: int, num_kept: int) -> dict[str, Array]:
    """Make the artefacts as files that are filled where they lie, as they may exceed memory."""
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        KEPT_IDS_NAME: ((num_tokens, num_kept), np.int32),
        KEPT_NAME: ((num_tokens, num_kept), np.float32),
        REST_NAME: ((num_tokens,), np.float32),
        NLL_NAME: ((num_tokens,), np.float32),
        BEST_IDS_NAME: ((num_tokens,), np.int32),
    }
    return {
        name: np.lib.format.open_memmap(aside / name, mode="w+", dtype=dtype, shape=shape)
        for name, (shape, dtype) in shapes.items()
    }


def _coarsen(part: _Slice, kept_ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return nll, the most likely token, and log-probabilities (tokens, kept + 1), the rest last;
    overwrites the slice. None keeps all, in the vocabulary's order."""
    full = part.log_probabilities
    nll = 0.0 - full.gather(1, part.target_ids[:, None])[:, 0]
    best_ids = full.argmax(dim=1)
    if kept_ids is None:
        return nll, best_ids, functional.pad(full, (0, 1), value=-math.inf)
    kept = full.gather(1, kept_ids)
    rest = full.scatter_(1, kept_ids, -math.inf).logsumexp(dim=1)
    return nll, best_ids, torch.cat([kept, rest[:, None]], dim=1)


def _read_base(
    store: Store, cell: CellSpec, measure: ForgettingMeasure, facts: dict[str, Any]
) -> _Base:
    of_base = base_cell(cell.model)
    folder = store.layout.measure(of_base.fingerprint, measure.fingerprint)
    where = f"{cell.description}: forgetting on texts {measure.texts.name}"
    record = store.find(folder)
    if record is None:
        raise StoreError(
            f"{where}: the distributions of {of_base.description} are not stored; expected them in "
            f"{folder}. Measure the base model first."
        )
    for name, what in (("texts_sha256", "other texts"), ("tokenizer_sha256", "another tokenizer")):
        if record.result[name] != facts[name]:
            raise StoreError(
                f"{where}: {folder} was made from {what} ({name} {record.result[name]}); expected "
                f"{facts[name]}. Measure the base model again in another store."
            )
    found = {
        name: np.load(check_artifact(folder, record, name), mmap_mode="r") for name in _BASE_NAMES
    }
    return _Base(
        kept_ids=found[KEPT_IDS_NAME],
        kept=found[KEPT_NAME],
        rest=found[REST_NAME],
        nll=found[NLL_NAME],
        best_ids=found[BEST_IDS_NAME],
        is_exact=record.result["is_exact"],
    )


def _compare(run: _Run, base: _Base, aside: Path) -> dict[str, Any]:
    num_tokens = int(run.offsets[-1])
    kl, reverse_kl, nll = (np.empty(num_tokens) for _ in range(3))
    agrees = np.empty(num_tokens, dtype=np.int64)
    for part in _iter_slices(run):
        device, where = part.log_probabilities.device, part.tokens
        kept_ids = None
        if not base.is_exact:
            kept_ids = torch.from_numpy(base.kept_ids[where].astype(np.int64)).to(device)
        before = np.concatenate([base.kept[where], base.rest[where][:, None]], axis=1)
        own_nll, best_ids, after = _coarsen(part, kept_ids)
        both = divergences(torch.from_numpy(before).to(device), after)
        kl[where], reverse_kl[where] = (value.cpu().numpy() for value in both)
        nll[where] = own_nll.cpu().numpy()
        agrees[where] = best_ids.cpu().numpy() == base.best_ids[where]
    for name, values in (("KL divergence", kl), ("reverse KL divergence", reverse_kl)):
        if not np.isfinite(values).all():
            token = int(np.argmin(np.isfinite(values)))
            raise run.fault(token, f"the {name} to the base model is {values[token]}")
    sums = [
        np.add.reduceat(values, run.offsets[:-1])
        for values in (kl, reverse_kl, agrees, base.nll.astype(np.float64), nll)
    ]
    lengths = np.diff(run.offsets)
    columns = [[text.id for text in run.texts], lengths, *sums]
    pq.write_table(pa.table(columns, schema=_SCHEMA), aside / FORGETTING_NAME, compression="zstd")
    return _sum_up(lengths, *sums) | {
        "num_kept": int(base.kept.shape[1]),
        "is_exact": base.is_exact,
    }


def _sum_up(
    lengths: Array, kl: Array, reverse_kl: Array, agreements: Array, base_nll: Array, nll: Array
) -> dict[str, float]:
    """Return means per token; tokens of one text are not independent, so errors are clustered."""
    return {
        "kl_per_token": _mean(kl, lengths),
        "kl_se": clustered_error(kl, lengths),
        "reverse_kl_per_token": _mean(reverse_kl, lengths),
        "agreement_fraction": _mean(agreements, lengths),
        "agreement_se": clustered_error(agreements, lengths),
        "base_nll_per_token": _mean(base_nll, lengths),
        "cell_nll_per_token": _mean(nll, lengths),
    }


def _mean(sums: Array, lengths: Array) -> float:
    return float(sums.sum() / lengths.sum())


def clustered_error(sums: Array, lengths: Array) -> float:
    """Return the standard error of sum(sums) / sum(lengths) with one cluster per entry.

    The linearised variance of a ratio (Cochran 1977, section 6.4) with G / (G - 1) for G clusters.
    """
    num_clusters = len(sums)
    residuals = sums - _mean(sums, lengths) * lengths
    variance = num_clusters / (num_clusters - 1) * (residuals**2).sum()
    return float(math.sqrt(variance) / lengths.sum())


def _iter_slices(run: _Run) -> Iterator[_Slice]:
    """Yield every scored token once; how they are split depends on texts and device alone, so that
    a model compared with itself goes through the very same passes."""
    model = run.model
    assert not model.training, "dropout would make the distributions random"
    max_positions = max(_LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size), 1)
    for chosen in _pack(run.encoded, default_batch_tokens(model.device), max_positions):
        inputs = [run.encoded[i].ids[:-1] for i in chosen]
        ids = np.zeros((len(inputs), max(map(len, inputs))), dtype=np.int64)
        for row, tokens in enumerate(inputs):
            ids[row, : len(tokens)] = tokens
        rows = np.repeat(np.arange(len(inputs)), [len(tokens) for tokens in inputs])
        columns = np.concatenate([np.arange(len(tokens)) for tokens in inputs])
        where = columns + run.offsets[:-1][chosen][rows]
        targets = np.concatenate([run.encoded[i].ids[1:] for i in chosen])
        for begin in range(0, len(where), max_positions):
            part = slice(begin, begin + max_positions)
            yield _run_pass(run, ids, rows[part], columns[part], where[part], targets[part])


def _run_pass(
    run: _Run, ids: Array, rows: Array, columns: Array, tokens: Array, targets: Array
) -> _Slice:
    device = run.model.device
    # Not inference mode: its tensors could not be overwritten later.
    with torch.no_grad():
        at = (torch.from_numpy(index).to(device) for index in (rows, columns))
        # Padding on the right needs no mask: a causal model never looks there.
        inputs = torch.from_numpy(ids).to(device)
        logits = logits_at(run.model, *at, input_ids=inputs, use_cache=False)
        normalisers = logits.logsumexp(dim=1)
        is_finite = normalisers.isfinite().cpu().numpy()
        if not is_finite.all():
            raise run.fault(int(tokens[np.argmin(is_finite)]), "the model's logits are not finite")
        log_probabilities = logits.sub_(normalisers[:, None])
    return _Slice(tokens, log_probabilities, torch.from_numpy(targets).to(device))


def _pack(texts: Sequence[EncodedText], room: int, max_positions: int) -> Iterator[list[int]]:
    """Yield which texts go through together: longest first, padded at most `room` tokens."""
    chosen: list[int] = []
    width = positions = 0
    for i in sorted(range(len(texts)), key=lambda i: (-len(texts[i].ids), i)):
        length = len(texts[i].ids) - 1
        is_full = (len(chosen) + 1) * width > room or positions + length > max_positions
        if chosen and is_full:
            yield chosen
            chosen, positions = [], 0
        if not chosen:
            width = length
        chosen.append(i)
        positions += length
    if chosen:
        yield chosen
