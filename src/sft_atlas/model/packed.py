"""Compute samples that stand end to end as if each stood alone.

In: a model and a packed batch. Out: the model's last states where they count. Attention alone knows
about samples; all else in a model works token by token. transformers lets a configuration name an
attention of one's own: while states are computed, it names ours. Whether a model's code goes along
is tried out, once for each kind of model.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sft_atlas.data.batches import PackedBatch
from sft_atlas.model.document_attention import Layout, attend, place_documents
from sft_atlas.model.forward import logits_at
from sft_atlas.model.head_loss import head_rule

_NAME: Final = "sft_atlas_packed"
_ATTENTIONS: Final = ("sdpa", "eager")
"""Those that ours stands in for."""
_LAYER_KINDS: Final = {"full_attention", "sliding_attention"}
_TRIED: dict[tuple[Any, ...], bool] = {}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Pass:
    """A forward pass over packed lines."""

    model: PreTrainedModel
    layout: Layout
    windows: dict[int, int | None] = field(default_factory=dict)
    """The sliding window that each layer asked for."""


_CURRENT: ContextVar[_Pass | None] = ContextVar("packed_pass", default=None)


def packed_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Return the last states (supervised, hidden) at the batch's predictors, final norm applied.

    The batch is on the model's device. A token's state depends on its own sample alone, and what is
    not finite in one run stays in it.
    """
    states = _states(_begin(model, batch), batch)
    chosen: Tensor = _Chosen.apply(states.flatten(0, 1), batch.predictors)  # type: ignore[no-untyped-call]
    return chosen


def recomputing() -> AbstractContextManager[None]:
    """Return what brings the present pass back while one of its layers is recomputed.

    A checkpointed layer is recomputed in the backward pass, when the attention of its forward pass
    is no longer in place.
    """
    current = _CURRENT.get()
    return nullcontext() if current is None else _in_place(current)


def can_pack(model: PreTrainedModel) -> bool:
    """Tell whether this kind of model computes packed samples as it does each alone.

    Recurrent states, distances that are no positions (ALiBi), attention with parts of its own, and
    logits made in a way that `head_rule` does not know, cannot.
    """
    if model.config._attn_implementation not in _ATTENTIONS:
        return False
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if not kinds <= _LAYER_KINDS or _windows(model) is None:
        return False
    key = (type(model), model.config.to_json_string(), model.dtype, model.device.type)
    if key not in _TRIED:
        was_training = model.training
        try:
            verdict = _try_packing(model.eval())
        finally:
            model.train(was_training)
        if verdict is None:
            return False
        _TRIED[key] = verdict
    return _TRIED[key]


def _begin(model: PreTrainedModel, batch: PackedBatch) -> _Pass:
    ids = batch.input_ids
    layout = place_documents(batch.starts, batch.lengths, len(ids), ids.numel(), ids.device)
    return _Pass(model=model, layout=layout)


def _states(packed_pass: _Pass, batch: PackedBatch) -> Tensor:
    with _in_place(packed_pass):
        output = packed_pass.model.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        )
    states: Tensor = output.last_hidden_state
    return states


@contextmanager
def _in_place(packed_pass: _Pass) -> Iterator[None]:
    """Let the model attend within the documents of the pass."""
    model = packed_pass.model
    configs = [model.config, model.config.get_text_config()]
    names = [config._attn_implementation for config in configs]
    token = _CURRENT.set(packed_pass)
    try:
        for config in configs:
            config._attn_implementation = _NAME
        yield
    finally:
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation = name
        _CURRENT.reset(token)


def _attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_other: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks it: from (runs, heads, tokens, size) to (runs, tokens, heads,
    size)."""
    current = _CURRENT.get()
    assert current is not None, "the attention is in place only during a packed pass"
    current.windows[getattr(module, "layer_idx", -1)] = sliding_window
    runs, _, tokens, _ = query.shape
    if torch.is_autocast_enabled(query.device.type):
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    attended = attend(
        current.layout,
        *(x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)),
        scale=scaling,
        window=sliding_window,
        cap=softcap,
        dropout=dropout,
    )
    return attended.view(runs, tokens, *attended.shape[1:]), None


# A name that no mask function is registered under tells transformers to build no mask.
AttentionInterface.register(_NAME, _attend_packed)


def _try_packing(model: PreTrainedModel) -> bool | None:
    """Compare the logits of packed documents with those of each alone; None if not finite."""
    head, device = model.get_output_embeddings(), model.device
    if not isinstance(head, nn.Linear):
        return False
    # Two documents on a line, and padding behind the third.
    lengths = [5, 3, 4]
    texts = torch.tensor([[1, 2, 3, 4, 5], [6, 2, 3, 0, 0], [3, 1, 4, 1, 0]], device=device)
    starts = np.array([0, 5, 8])
    places = [start + torch.arange(length) for start, length in zip(starts, lengths, strict=True)]
    predictors = torch.cat(places).to(device)
    rows = torch.tensor([0] * 5 + [1] * 3 + [2] * 4, device=device)
    columns = torch.cat([torch.arange(length) for length in lengths]).to(device)
    ids, positions = (torch.zeros(16, dtype=torch.int64, device=device) for _ in range(2))
    ids[predictors], positions[predictors] = texts[rows, columns], columns
    batch = PackedBatch(
        input_ids=ids.view(2, 8),
        position_ids=positions.view(2, 8),
        samples=positions.view(2, 8),
        predictors=predictors,
        targets=ids[predictors],
        num_supervised=(8, 4),
        num_tokens=(8, 4),
        starts=starts,
        lengths=np.array(lengths),
    )
    with torch.no_grad():
        alone = logits_at(model, rows, columns, input_ids=texts, use_cache=False)
        if not alone.isfinite().all():
            return None
        packed_pass = _begin(model, batch)
        try:
            states = _states(packed_pass, batch)
            packed = head_rule(model).logits(head(states.flatten(0, 1)[predictors]))
        except torch.OutOfMemoryError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError):
            # The model's own code does not know such batches.
            return False
    # A window longer than these documents shows in no logit.
    if packed_pass.windows != dict(enumerate(_windows(model) or [])):
        return False
    # Half precision rounds to about 1 % of a logit's spread; a neighbour's tokens change more.
    is_half = torch.is_autocast_enabled(device.type) or model.dtype != torch.float32
    tolerance = (0.05 if is_half else 1e-3) * float(alone.std())
    return bool((packed - alone).abs().max() <= tolerance)


def _windows(model: PreTrainedModel) -> list[int | None] | None:
    """Return the sliding window of each layer; None if not all of them cache keys and values."""
    windows: list[int | None] = []
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        elif type(layer) is DynamicLayer:
            windows.append(None)
        else:
            return None
    return windows or None


class _Chosen(torch.autograd.Function):
    """Rows of a matrix, each at most once: the way back writes them instead of adding them up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        whole = gradient.new_zeros((ctx.num_rows, gradient.shape[1]))
        return whole.index_copy_(0, rows, gradient), None
