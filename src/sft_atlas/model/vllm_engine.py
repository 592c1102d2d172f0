"""Answer requests with vLLM on a GPU: the same interface as the engine in this process.

In: a folder with a saved model, merged or with adapters beside it, and token ids. Out: what
`model.engine` promises, with two differences. vLLM forms its own batches, so bits are not promised
where an evaluation goes on, only values within its rounding. And it holds weights of its own: a
model that training left in memory has to be published as a cell first, and its folder is loaded
here. vLLM gives GPU memory back at the end of the process and not reliably before, so one process
loads one base model.

Written against vLLM 0.33 (`prompt_logprobs`, `LoRARequest`). The tests drive it through a stand-in
of that interface; where vLLM and a GPU are present they run the same checks on it.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from sft_atlas.errors import DataError, StoreError
from sft_atlas.model.generate import Completion, Finish, IsStopped
from sft_atlas.model.prefix_tree import Tokens
from sft_atlas.model.score import Agreement, Pair, PairScore, compare_greedily
from sft_atlas.study.spec import Precision
from sft_atlas.weights.adapter import read_adapter_config

_BATCH_REQUESTS: Final = 1024
"""Requests handed over at a time: enough to fill a GPU, few enough to keep as they come."""

_ROUND_TOKENS: Final = 64
"""New tokens between looks for stop texts; vLLM's prefix cache keeps what was decoded so far."""

_ADAPTER_NUMBERS = itertools.count(1)
"""vLLM tells adapters apart by number: one used twice would be answered by its first owner."""


def load_vllm(
    folder: Path,
    *,
    precision: Precision,
    max_tokens: int,
    max_rank: int | None = None,
    memory_fraction: float = 0.9,
) -> Any:
    """Load a saved model into vLLM; returns a `vllm.LLM` for any number of engines.

    `max_tokens` is the longest prompt and answer together, at least one less than the model has
    positions. With `max_rank`, adapters up to that rank can be served on top of the model. Weights
    are held in the study's precision.
    """
    from vllm import LLM

    lora = {} if max_rank is None else {"enable_lora": True, "max_lora_rank": max_rank}
    return LLM(
        model=str(folder),
        # Requests are token ids, and the one token that vLLM decodes after a score needs room.
        skip_tokenizer_init=True,
        max_model_len=max_tokens + 1,
        dtype=precision,
        generation_config="vllm",
        trust_remote_code=False,
        seed=0,
        gpu_memory_utilization=memory_fraction,
        **lora,
    )


@final
class VllmEngine:
    """The engine of a model that vLLM holds, or of one adapter on top of it.

    `batch_tokens` and `cache_tokens` are for engines that form their own batches and do nothing
    here. A decoded text whose logits were not finite cannot be told from others.
    """

    def __init__(self, llm: Any, *, adapter: Path | None = None) -> None:
        """Take a `vllm.LLM` and, for one that serves adapters, a folder in PEFT's format.

        Raises:
            StoreError: if the adapter is more than low-rank factors, which vLLM would not compute.
        """
        self._llm = llm
        self._adapter = None
        if adapter is not None:
            _check_adapter(adapter)
            from vllm.lora.request import LoRARequest

            number = next(_ADAPTER_NUMBERS)
            self._adapter = LoRARequest(f"{adapter.name}-{number}", number, str(adapter))

    def iter_scores(
        self,
        pairs: Sequence[Pair],
        *,
        batch_tokens: int | None = None,
        skip: Collection[int] = frozenset(),
    ) -> Iterator[list[tuple[int, PairScore]]]:
        """Score each answer given its prompt; raises DataError for a side without a token."""
        for i, (prompt, answer) in enumerate(pairs):
            if not len(prompt) or not len(answer):
                side = "answer" if len(prompt) else "prompt"
                raise DataError(
                    f"pair {i}: its {side} has no token; expected at least one on each side."
                )
        for batch in _iter_batches(len(pairs), skip):
            found = self._read([pairs[i] for i in batch])
            yield [
                (i, _pair_score(tokens, pairs[i][1]))
                for i, tokens in zip(batch, found, strict=True)
                if i not in skip
            ]

    def iter_agreements(
        self,
        pairs: Sequence[Pair],
        *,
        eos_ids: frozenset[int],
        batch_tokens: int | None = None,
        skip: Collection[int] = frozenset(),
    ) -> Iterator[list[tuple[int, Agreement]]]:
        """Tell whether greedy decoding gives each target and ends; a prompt has a token."""
        for i, (prompt, _) in enumerate(pairs):
            if not len(prompt):
                raise DataError(f"pair {i}: its prompt has no token; expected at least one.")
        for batch in _iter_batches(len(pairs), skip):
            found = self._read([pairs[i] for i in batch])
            yield [
                (i, _agreement(pairs[i][1], tokens, eos_ids))
                for i, tokens in zip(batch, found, strict=True)
                if i not in skip
            ]

    def iter_completions(
        self,
        prompts: Sequence[Tokens],
        *,
        max_new_tokens: int,
        eos_ids: frozenset[int],
        is_stopped: IsStopped | None = None,
        cache_tokens: int | None = None,
        skip: Collection[int] = frozenset(),
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Decode each prompt greedily; looks for stop texts every 64 tokens."""
        for i, prompt in enumerate(prompts):
            if not len(prompt):
                raise DataError(f"prompt {i}: has no token; expected at least one.")
        for batch in _iter_batches(len(prompts), skip):
            texts: dict[int, list[int]] = {i: [] for i in batch}
            ends: dict[int, Finish] = {}
            while going := [i for i in batch if i not in ends]:
                room = max_new_tokens - len(texts[going[0]])
                num_tokens = room if is_stopped is None else min(room, _ROUND_TOKENS)
                asked = [[*map(int, prompts[i]), *texts[i]] for i in going]
                for i, ids in zip(going, self._decode(asked, num_tokens, eos_ids), strict=True):
                    said = [token for token in ids if token not in eos_ids]
                    texts[i] += said
                    if len(said) < len(ids):
                        ends[i] = "eos"
                    elif is_stopped is not None and is_stopped(i, texts[i]):
                        ends[i] = "stop"
                    elif len(texts[i]) >= max_new_tokens:
                        ends[i] = "length"
            yield [(i, Completion(tuple(texts[i]), ends[i])) for i in batch if i not in skip]

    def _read(self, pairs: Sequence[Pair]) -> list["_Tokens"]:
        """Return what the model thinks of each answer token, and what it would say next."""
        from vllm import SamplingParams

        settings = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=1, ignore_eos=True, detokenize=False
        )
        outputs = self._generate(
            [[*map(int, prompt), *map(int, answer)] for prompt, answer in pairs], settings
        )
        return [_tokens(output, answer) for output, (_, answer) in zip(outputs, pairs, strict=True)]

    def _decode(
        self, prompts: Sequence[list[int]], max_new_tokens: int, eos_ids: frozenset[int]
    ) -> list[list[int]]:
        """Return the new ids of each prompt, an end-of-sequence token included."""
        from vllm import SamplingParams

        settings = SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=sorted(eos_ids),
            ignore_eos=True,
            detokenize=False,
        )
        return [list(output.outputs[0].token_ids) for output in self._generate(prompts, settings)]

    def _generate(self, prompts: Sequence[list[int]], settings: Any) -> list[Any]:
        outputs: list[Any] = self._llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            settings,
            use_tqdm=False,
            lora_request=self._adapter,
        )
        assert len(outputs) == len(prompts), "vLLM answers each prompt, in order"
        return outputs


class _Tokens(NamedTuple):
    log_likelihoods: list[float]
    """Of each answer token."""
    best_ids: list[int]
    """The most likely token at each answer position, and behind the answer."""


def _tokens(output: Any, answer: Tokens) -> _Tokens:
    positions = list(output.prompt_logprobs)
    start = len(positions) - len(answer)
    values, best = [], []
    for position, token in zip(positions[start:], answer, strict=True):
        values.append(float(position[token].logprob))
        # vLLM gives the token of the text and the most likely one: one entry if they are the same.
        best.append(next(i for i, found in position.items() if found.rank == 1))
    return _Tokens(values, [*best, int(output.outputs[0].token_ids[0])])


def _pair_score(tokens: _Tokens, answer: Tokens) -> PairScore:
    is_greedy = all(a == b for a, b in zip(tokens.best_ids, answer, strict=False))
    return PairScore(sum(tokens.log_likelihoods), len(tokens.log_likelihoods), is_greedy)


def _agreement(target: Tokens, tokens: _Tokens, eos_ids: frozenset[int]) -> Agreement:
    # Behind the target vLLM gives a token and no likelihood.
    is_finite = [*(not math.isnan(value) for value in tokens.log_likelihoods), True]
    return compare_greedily(target, tokens.best_ids, is_finite, eos_ids)


def _iter_batches(num_requests: int, skip: Collection[int]) -> Iterator[range]:
    for start in range(0, num_requests, _BATCH_REQUESTS):
        batch = range(start, min(start + _BATCH_REQUESTS, num_requests))
        if not all(i in skip for i in batch):
            yield batch


def _check_adapter(folder: Path) -> None:
    # vLLM refuses some of these itself, and passes over others without a word.
    config = read_adapter_config(folder)
    beyond = [key for key in ("use_dora", "modules_to_save") if config.get(key)]
    if config.get("bias", "none") != "none":
        beyond.append("bias")
    if beyond:
        raise StoreError(
            f"{folder}: its adapter has {' and '.join(beyond)}, which vLLM does not compute; "
            f"expected low-rank factors alone. Merge the adapter into its base model and load the "
            f"merged folder."
        )
