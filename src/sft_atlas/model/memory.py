"""Predict the memory that training needs, so that a group of runs never takes more than it may.

In: a base model, what of it trains, and how many runs stand side by side. Out: bytes at the peak of
a step. Weights and optimizer states are counted; what a pass keeps for its way back differs between
architectures and is measured, on passes of some dozen tokens whose tensors are watched.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final
from weakref import finalize

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from sft_atlas.data.batches import Member, TrainingRows
from sft_atlas.data.prepared import PreparedRows
from sft_atlas.model.head_loss import LOGIT_BYTES
from sft_atlas.model.load import BaseModel
from sft_atlas.model.lora import add_lora
from sft_atlas.model.score import computes_in
from sft_atlas.model.training_pass import can_pack, checkpoint_activations, summed_losses
from sft_atlas.study.passes import MIN_MICRO_BATCH_TOKENS
from sft_atlas.study.spec import LoraSpec, Precision

_LENGTHS: Final = {"cpu": 37, "cuda": 509}
"""Tokens of the documents that are watched. Primes: no activation has a weight's size by chance.
On a GPU, whose allocator is asked instead, enough that activations outweigh any one gradient."""

_LOGIT_COPIES: Final = 3
"""Logits, their logarithms of probabilities and a temporary, of one chunk."""

_KEPT_LOGITS: Final = 4
"""The same where logits stay until the way back, and their gradient joins them."""

_STATE_COPIES: Final = 4
"""A trained weight with its gradient and its two moments."""

_SAVED_COPIES: Final = 3
"""Weight and moments in a checkpoint that is being written."""


_HEAP_FACTOR: Final = 2.0
"""What a heap takes for blocks of many sizes that come and go, each aligned: measured 1.5 to 2.2 in
the environment of a worker, which keeps what is freed because that is faster."""

_GPU_FRACTION: Final = 0.9
"""Part of a GPU's free memory that is filled: kernels have work areas of their own."""


@final
@dataclass(frozen=True, kw_only=True)
class PassBytes:
    """What a pass through the body of a model holds at its peak, without the weights' gradients."""

    constant: float
    per_token: float
    """Of a token in a document of `length` tokens."""
    per_score: float
    """For each token of its document more, per token: attention that keeps all its scores."""
    length: int

    def at(self, num_tokens: float, longest: int) -> float:
        """Return the bytes of `num_tokens` in documents of at most `longest`."""
        more = self.per_score * max(0, longest - self.length)
        return self.constant + num_tokens * (self.per_token + more)


@final
@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """What training one base model in one way needs, bytes."""

    base_bytes: int
    """The live weights, and on a CPU their pristine copy; there before and after training."""
    trained_bytes: int
    """The weights that one run trains."""
    largest_bytes: int
    """The largest of them, whose gradient stands twice for a moment."""
    is_live: bool
    """A run alone trains the live weights themselves: it holds no copy of them."""
    keeps_saved: bool
    """Checkpoints that are being written lie in the same memory."""
    body: PassBytes
    position_bytes: float
    """For each supervised position, in the output head."""
    chunk_bytes: float
    """Logits of one chunk; they go before the next is made."""
    heap_factor: float = 1.0
    """Memory that a process takes for activations, relative to what they hold."""

    def peak(
        self, num_runs: int, *, pass_tokens: int, longest: int, num_passes: int | None = None
    ) -> int:
        """Return the most that is held at a time, base model included.

        Args:
            num_runs: runs that train at the same time.
            pass_tokens: tokens of one pass, of all runs together; a longer sample is a pass of its
                own, and the other runs' lines are padded to it.
            longest: tokens of the longest sample.
            num_passes: of a step. With one, gradients come as activations go; None: several.
        """
        own = self.trained_bytes * num_runs
        # Weights and moments; a run alone has its weights in the base model.
        states = (_STATE_COPIES - 1) * own - (own if num_runs == 1 and self.is_live else 0)
        num_tokens = num_runs * max(pass_tokens / num_runs, longest)
        activations = self.body.at(num_tokens, longest) + self.position_bytes * num_tokens
        activations *= self.heap_factor
        if num_passes == 1:
            moving = max(activations, own)
        else:
            moving = activations + own + self.largest_bytes * num_runs
        saved = _SAVED_COPIES * own if self.keeps_saved else 0
        return round(self.base_bytes + states + moving + self.chunk_bytes + saved)


@final
@dataclass(frozen=True, kw_only=True)
class Fit:
    """How many runs train together, in passes of how many tokens."""

    num_runs: int
    pass_tokens: int


def training_memory(
    base: BaseModel,
    lora: LoraSpec | None,
    *,
    precision: Precision = "float32",
    master_precision: Precision = "float32",
    recomputes: bool = False,
) -> TrainingMemory:
    """Measure a pass and count weights; the base model is pristine again afterwards.

    `recomputes` says that layers forget their activations on the way forth.
    """
    master_bytes = 4 if master_precision == "float32" else 2
    model, device = base.model, base.model.device.type
    base.reset()
    base_bytes = sum(p.nbytes for p in model.parameters()) * (2 if device == "cpu" else 1)
    try:
        if lora is not None:
            add_lora(model, lora, seed=0)
        model.train()
        if recomputes:
            checkpoint_activations(model)
        trained = [p.numel() * master_bytes for p in model.parameters() if p.requires_grad]
        with computes_in(precision, model.device):
            body = _watch_body(model)
    finally:
        if recomputes:
            model.activation_checkpointing_disable()
        base.reset()
    weight = model.get_output_embeddings().weight
    vocabulary, hidden = weight.shape[-2:]
    is_packed = can_pack(model)
    kept = 0 if is_packed else _KEPT_LOGITS * 4 * vocabulary
    chunk = LOGIT_BYTES.get(device, LOGIT_BYTES["cuda"])
    return TrainingMemory(
        base_bytes=base_bytes,
        trained_bytes=sum(trained),
        largest_bytes=max(trained),
        is_live=lora is None,
        keeps_saved=device == "cpu",
        body=body,
        # States that are picked, and their gradients.
        position_bytes=2 * 4 * hidden + kept,
        chunk_bytes=_LOGIT_COPIES * max(chunk, 4 * vocabulary) if is_packed else 0,
        heap_factor=_HEAP_FACTOR if device == "cpu" else 1.0,
    )


def runs_that_fit(
    memory: TrainingMemory, budget_bytes: int, *, most: int, pass_tokens: int, longest: int
) -> Fit:
    """Return the most runs and tokens of a pass whose predicted peak is within a budget.

    Fewer runs come before smaller passes. One run in passes of 256 tokens, or of its longest
    sample, is the least there is, whether or not it fits.
    """

    def fits(num_runs: int, tokens: int) -> bool:
        return memory.peak(num_runs, pass_tokens=tokens, longest=longest) <= budget_bytes

    for num_runs in range(most, 1, -1):
        if fits(num_runs, pass_tokens):
            return Fit(num_runs=num_runs, pass_tokens=pass_tokens)
    while pass_tokens > MIN_MICRO_BATCH_TOKENS and not fits(1, pass_tokens):
        pass_tokens = max(pass_tokens // 2, MIN_MICRO_BATCH_TOKENS)
    return Fit(num_runs=1, pass_tokens=pass_tokens)


def free_bytes(model: PreTrainedModel) -> int:
    """Return the memory of a GPU that training may fill, what this process holds of it included."""
    free, _ = torch.cuda.mem_get_info(model.device)
    return int((free + torch.cuda.memory_reserved(model.device)) * _GPU_FRACTION)


def _watch_body(model: PreTrainedModel) -> PassBytes:
    """Watch one document, two of them, and one of twice the length."""
    length = _LENGTHS.get(model.device.type, _LENGTHS["cuda"])
    one, two, long = (
        _peak_of_pass(model, lengths) for lengths in ([length], [length] * 2, [2 * length])
    )
    per_token = (two - one) / length
    return PassBytes(
        constant=max(0.0, one - per_token * length),
        per_token=per_token,
        per_score=max(0.0, (long - two) / (2 * length**2)),
        length=length,
    )


def _peak_of_pass(model: PreTrainedModel, lengths: Sequence[int]) -> int:
    """Return the most bytes of a forward and backward pass beside weights and their gradients."""
    member = _documents(lengths)
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        with _watched(model) as peak:
            torch.autograd.backward(summed_losses(model, [member]).sum())
    finally:
        for parameter in trained:
            parameter.grad = None
    return peak[0]


def _documents(lengths: Sequence[int]) -> Member:
    """Return samples of which only the last token is supervised."""
    total = sum(lengths)
    numbers = np.arange(len(lengths))
    part = PreparedRows(
        tokens=np.ones(total, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_lengths=np.array(lengths, dtype=np.int32) - 1,
        rows=numbers,
        positions=numbers,
        result={},
    )
    return TrainingRows([part]), numbers.tolist()


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[list[int]]:
    """Lend a list whose one entry is the peak of what the block makes, less weights' gradients."""
    peak = [0]
    trained = [p for p in model.parameters() if p.requires_grad]
    if model.device.type == "cuda":
        # The way back runs in a thread of its own, where nothing can be watched.
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(model.device) - before
        return
    watch = _Watch(frozenset(p.nbytes for p in trained))
    with watch:
        yield peak
    peak[0] = watch.peak


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that come into being under it and are still there."""

    def __init__(self, left_out: frozenset[int]) -> None:
        """Leave out storages of these sizes: gradients of weights."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._left_out = left_out
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._known or num_bytes in self._left_out:
            return
        self._known.add(key)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        finalize(storage, self._remove, key, num_bytes)

    def _remove(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [tensor.untyped_storage() for tensor in tensors]
