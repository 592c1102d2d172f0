"""The vLLM engine keeps the promises of the engine in this process.

By default vLLM's interface is stood in for by a transformers model on the CPU: the real vLLM was
not run. With vLLM and a GPU the same checks run on it.
"""

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM

import vllm_stand_in
from sft_atlas.errors import DataError, StoreError
from sft_atlas.model import lora, vllm_engine
from sft_atlas.model.engine import Engine, TorchEngine
from sft_atlas.model.score import Agreement, Pair
from sft_atlas.model.vllm_engine import VllmEngine, load_vllm
from sft_atlas.study.spec import LoraSpec
from tiny import LORA, VOCAB_SIZE, build_model

# peft asks transformers for a name that transformers renames.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is dep:FutureWarning")

EOS = frozenset({1, 17, 40})
HAS_VLLM = importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()
REAL = pytest.param("vllm", marks=pytest.mark.skipif(not HAS_VLLM, reason="no vLLM with a GPU"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, and two adapters of it as a store keeps them."""
    folder = tmp_path_factory.mktemp("vllm")
    # vLLM's kernels want heads of at least 32.
    size = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = build_model(seed=5, initializer_range=0.15, **size)
    model.save_pretrained(folder / "model")
    for seed in (1, 2):
        tuned = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        lora.add_lora(tuned, LORA, seed=seed)
        with torch.no_grad():
            for factor in lora.lora_state(tuned).values():
                factor.add_(torch.randn(factor.shape) * 0.03)
        (folder / f"adapter-{seed}").mkdir()
        lora.save_adapter(folder / f"adapter-{seed}", tuned, LORA, base_name="base")
    return folder


@pytest.fixture(scope="module", params=["stand-in", REAL])
def llm(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            for name, module in vllm_stand_in.build_modules().items():
                patch.setitem(sys.modules, name, module)
        yield load_vllm(
            folder / "model", precision="float32", max_tokens=100, max_rank=8, memory_fraction=0.2
        )


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()


def draw_pairs(num_pairs: int) -> list[Pair]:
    rng = random.Random(4)

    def draw(low: int, high: int) -> list[int]:
        return [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(low, high))]

    return [(draw(1, 20), draw(1, 4)) for _ in range(num_pairs)]


def collect(batches: Iterator[list[tuple[int, Any]]]) -> list[Any]:
    found = dict(result for batch in batches for result in batch)
    return [found[i] for i in sorted(found)]


def check_same(engine: Engine, reference: Engine) -> None:
    """Compare all that two engines say about the same requests."""
    pairs = draw_pairs(40)
    # Some answers are what the model itself says, so that not all agree with nothing.
    prompts = [prompt for prompt, _ in pairs]
    decode = {"max_new_tokens": 9, "eos_ids": EOS}
    said = collect(reference.iter_completions(prompts, **decode))
    for i in range(0, 40, 2):
        if said[i].ids:
            pairs[i] = (prompts[i], said[i].ids[: 1 + i % 4])
    ours, theirs = collect(engine.iter_scores(pairs)), collect(reference.iter_scores(pairs))
    for a, b in zip(ours, theirs, strict=True):
        assert a.log_likelihood == pytest.approx(b.log_likelihood, abs=1e-4)
        assert (a.num_tokens, a.is_greedy) == (b.num_tokens, b.is_greedy)
    assert {score.is_greedy for score in ours} == {True, False}
    targets = [
        (prompt, completion.ids if i % 3 else answer)
        for i, ((prompt, answer), completion) in enumerate(zip(pairs, said, strict=True))
    ]
    agreed = collect(engine.iter_agreements(targets, eos_ids=EOS))
    assert agreed == collect(reference.iter_agreements(targets, eos_ids=EOS))
    assert {agreement.is_match for agreement in agreed} == {True, False}
    assert collect(engine.iter_completions(prompts, **decode)) == said
    assert {completion.finish for completion in said} == {"eos", "length"}


def test_it_says_what_the_model_in_this_process_says(llm: Any, model: PreTrainedModel) -> None:
    check_same(VllmEngine(llm), TorchEngine(model))


def test_an_adapter_is_the_one_that_was_given_and_not_the_base(
    llm: Any, model: PreTrainedModel, folder: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    lora.load_adapter(folder / "adapter-2", base)
    lora.merge(base)
    merged = base.eval()
    engines = [VllmEngine(llm, adapter=folder / f"adapter-{seed}") for seed in (1, 2)]
    check_same(engines[1], TorchEngine(merged))
    pairs = draw_pairs(10)
    values = [
        [score.log_likelihood for score in collect(engine.iter_scores(pairs))]
        for engine in [*engines, VllmEngine(llm)]
    ]
    for i in range(3):
        for j in range(i):
            assert max(abs(a - b) for a, b in zip(values[i], values[j], strict=True)) > 0.1


def test_an_adapter_that_vllm_does_not_compute_is_refused(tmp_path: Path) -> None:
    spec = LoraSpec(rank=2, alpha=4.0, dora=True, bias="all", train_embeddings=True)
    tuned = build_model("qwen2")
    lora.add_lora(tuned, spec, seed=0)
    lora.save_adapter(tmp_path, tuned, spec, base_name="base")
    with pytest.raises(StoreError) as caught:
        VllmEngine(None, adapter=tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: its adapter has use_dora and modules_to_save and bias, which vLLM does not "
        f"compute; expected low-rank factors alone. Merge the adapter into its base model and load "
        f"the merged folder."
    )


def test_decoding_in_rounds_ends_at_a_stop_text_or_at_the_limit(
    llm: Any, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt for prompt, _ in draw_pairs(12)]
    whole = collect(
        TorchEngine(model).iter_completions(prompts, max_new_tokens=10, eos_ids=frozenset())
    )
    monkeypatch.setattr(vllm_engine, "_ROUND_TOKENS", 4)

    def is_stopped(i: int, ids: Any) -> bool:
        return i % 2 == 0 and len(ids) >= 3

    found = collect(
        VllmEngine(llm).iter_completions(
            prompts, max_new_tokens=10, eos_ids=frozenset(), is_stopped=is_stopped
        )
    )
    for i, (ours, full) in enumerate(zip(found, whole, strict=True)):
        assert ours.ids == full.ids[: len(ours.ids)]
        assert (ours.finish, len(ours.ids)) == (("length", 10) if i % 2 else ("stop", 4))


def test_what_is_skipped_is_left_out_and_a_skipped_batch_is_not_asked(
    llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "_BATCH_REQUESTS", 8)
    engine = VllmEngine(llm)
    pairs = draw_pairs(20)
    batches = list(engine.iter_scores(pairs))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    rest = list(engine.iter_scores(pairs, skip={*range(8), 9}))
    assert [[i for i, _ in batch] for batch in rest] == [[8, *range(10, 16)], [*range(16, 20)]]
    before = llm.num_calls if isinstance(llm, vllm_stand_in.LLM) else None
    assert list(engine.iter_scores(pairs, skip=range(20))) == []
    if before is not None:
        assert llm.num_calls == before


def test_an_empty_target_is_judged_by_what_comes_first(llm: Any, model: PreTrainedModel) -> None:
    prompt = [5, 6, 7]
    [said] = collect(
        TorchEngine(model).iter_completions([prompt], max_new_tokens=1, eos_ids=frozenset())
    )
    engine = VllmEngine(llm)
    [match] = collect(engine.iter_agreements([(prompt, [])], eos_ids=frozenset(said.ids)))
    assert match == Agreement(0, True, None)


def test_requests_without_tokens_are_refused(llm: Any) -> None:
    engine = VllmEngine(llm)
    with pytest.raises(DataError, match=r"^pair 1: its answer has no token; expected at least one"):
        list(engine.iter_scores([([5], [6]), ([5], [])]))
    with pytest.raises(DataError, match=r"^pair 0: its prompt has no token; expected at least one"):
        list(engine.iter_agreements([([], [6])], eos_ids=EOS))
    with pytest.raises(DataError, match=r"^prompt 0: has no token; expected at least one\.$"):
        list(engine.iter_completions([[]], max_new_tokens=3, eos_ids=EOS))
