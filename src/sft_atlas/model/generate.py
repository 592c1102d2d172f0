"""Answer what a model says after each prompt when it always takes the most likely token.

In: prompts as token ids. Out: the new ids and why each ended. Prompts of one batch are padded on
the left so that their last tokens stand together; attention mask and positions hide the padding.
The cache is transformers' `DynamicCache` built from the model's configuration: it knows sliding
and mixed layers, and rows can be dropped from it, which is done when half of a batch has ended.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, final

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from sft_atlas.errors import DataError
from sft_atlas.model.score import logits_at

BATCH_TOKENS: Final = 32_768
"""Cached positions of one batch, padding and new tokens included, unless told otherwise."""

_STOP_EVERY = 4
"""Steps between looks for stop texts: decoding to text costs more than a step of a small model."""

Finish = Literal["eos", "stop", "length", "not-finite"]
IsStopped = Callable[[int, Sequence[int]], bool]


@final
class Completion(NamedTuple):
    """What a model added to a prompt."""

    ids: tuple[int, ...]
    """Without the end-of-sequence token; up to three may follow a stop text."""
    finish: Finish
    """`not-finite`: the logits were NaN or infinite and the rest is unknown."""


def greedy_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    is_stopped: IsStopped | None = None,
    batch_tokens: int | None = None,
) -> list[Completion]:
    """Decode greedily, equal to `generate(do_sample=False)` of transformers on each prompt alone.

    `is_stopped(i, ids)` says whether the new ids of prompt i hold a stop text; it is asked every
    few steps. Raises DataError for a prompt without tokens.
    """
    assert not model.training, "dropout would make the text random"
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {i}: has no token; expected at least one.")
    completions: dict[int, Completion] = {}
    for batch in _iter_batches(prompts, max_new_tokens, batch_tokens or BATCH_TOKENS):
        decoding = _Decoding(model, [prompts[i] for i in batch], eos_ids)
        with torch.no_grad():
            done = decoding.run(max_new_tokens, _of_batch(is_stopped, batch))
        completions |= dict(zip(batch, done, strict=True))
    return [completions[i] for i in range(len(prompts))]


def _iter_batches(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
        if batch and (len(batch) + 1) * (len(prompts[batch[0]]) + max_new_tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _of_batch(is_stopped: IsStopped | None, batch: Sequence[int]) -> IsStopped | None:
    if is_stopped is None:
        return None
    return lambda row, ids: is_stopped(batch[row], ids)


@final
class _Decoding:
    """The state of one batch: cache, mask and the rows that still go on."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], eos_ids: frozenset[int]
    ) -> None:
        width = max(map(len, prompts))
        device = model.device
        self._model = model
        self._eos_ids = eos_ids
        self._inputs = torch.tensor(
            [[0] * (width - len(p)) + list(p) for p in prompts], device=device
        )
        self._mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device
        )
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=model.config)
        self._rows = list(range(len(prompts)))
        """Prompt of each row of the cache; an ended one stays until the next drop."""
        self._new: list[list[int]] = [[] for _ in prompts]
        self._finish: list[Finish | None] = [None] * len(prompts)

    def run(self, max_new_tokens: int, is_stopped: IsStopped | None) -> list[Completion]:
        for step in range(1, max_new_tokens + 1):
            self._step()
            if is_stopped is not None and step % _STOP_EVERY == 0:
                self._look_for_stops(is_stopped)
            if all(finish is not None for finish in self._finish):
                break
            if step < max_new_tokens:
                self._drop_ended()
        if is_stopped is not None:
            self._look_for_stops(is_stopped)
        ends = zip(self._new, self._finish, strict=True)
        return [Completion(tuple(ids), finish or "length") for ids, finish in ends]

    def _step(self) -> None:
        rows = torch.arange(len(self._rows), device=self._inputs.device)
        logits = logits_at(
            self._model,
            rows,
            torch.full_like(rows, self._inputs.shape[1] - 1),
            input_ids=self._inputs,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        values, ids = logits.max(dim=1)
        for prompt, token, value in zip(self._rows, ids.tolist(), values.tolist(), strict=True):
            if self._finish[prompt] is not None:
                continue
            if not abs(value) < float("inf"):
                self._finish[prompt] = "not-finite"
            elif token in self._eos_ids:
                self._finish[prompt] = "eos"
            else:
                self._new[prompt].append(token)
        self._advance(ids)

    def _advance(self, ids: Tensor) -> None:
        self._inputs = ids[:, None]
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        self._positions = self._positions[:, -1:] + 1

    def _look_for_stops(self, is_stopped: IsStopped) -> None:
        for i, finish in enumerate(self._finish):
            if finish is None and is_stopped(i, self._new[i]):
                self._finish[i] = "stop"

    def _drop_ended(self) -> None:
        going = [row for row, prompt in enumerate(self._rows) if self._finish[prompt] is None]
        if 2 * len(going) > len(self._rows):
            return
        index = torch.tensor(going, device=self._inputs.device)
        self._cache.batch_select_indices(index)
        self._inputs, self._mask = self._inputs[index], self._mask[index]
        self._positions = self._positions[index]
        self._rows = [self._rows[row] for row in going]
