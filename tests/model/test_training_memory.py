"""What training needs is known before it starts: some dozen tokens tell it for thousands."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sft_atlas.execute.local import worker_environment
from sft_atlas.execute.placement import Placement
from sft_atlas.model import memory as memory_module
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.model.lora import add_lora
from sft_atlas.model.memory import (
    Fit,
    PassBytes,
    TrainingMemory,
    runs_that_fit,
    training_memory,
)
from sft_atlas.study.spec import LoraSpec
from tiny import LORA, save_base

TRAINER = Path(__file__).parent / "memory_trainer.py"
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "vocab_size": 8192,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
KIB = TrainingMemory(
    base_bytes=100,
    trained_bytes=10,
    largest_bytes=4,
    is_live=True,
    keeps_saved=False,
    body=PassBytes(constant=0.0, per_token=1.0, per_score=0.0, length=10),
    position_bytes=0.0,
    chunk_bytes=0.0,
)


@pytest.fixture(params=["llama", "gemma2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> BaseModel:
    return load_base(save_base(tmp_path / "model", request.param))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_few_tokens_say_what_many_need(base: BaseModel, lora: LoraSpec | None) -> None:
    body = training_memory(base, lora).body
    if lora is not None:
        add_lora(base.model, lora, seed=0)
    base.model.train()
    for lengths in ([61] * 5, [101, 101, 101]):
        held = memory_module._peak_of_pass(base.model, lengths)
        assert body.at(sum(lengths), lengths[0]) == pytest.approx(held, rel=0.05)


def test_attention_that_keeps_its_scores_grows_with_the_length(tmp_path: Path) -> None:
    eager = load_base(save_base(tmp_path / "gemma2", "gemma2"))
    fused = load_base(save_base(tmp_path / "llama", "llama"))
    assert training_memory(eager, None).body.per_score > 0
    assert training_memory(fused, None).body.per_score == 0


def test_measuring_leaves_the_base_model_pristine(base: BaseModel) -> None:
    training_memory(base, LORA, recomputes=True)
    assert not base.model.training
    assert not base.model.is_activation_checkpointing
    found = dict(base.model.named_parameters())
    assert found.keys() == base.pristine.keys()
    for name, parameter in found.items():
        assert parameter.grad is None
        assert torch.equal(parameter, base.pristine[name])


def test_layers_that_are_recomputed_keep_far_less(tmp_path: Path) -> None:
    base = load_base(save_base(tmp_path / "model", num_hidden_layers=6))
    kept = training_memory(base, None).body.per_token
    assert training_memory(base, None, recomputes=True).body.per_token < kept / 2


def test_weights_and_states_are_counted_once_for_each_run() -> None:
    # A live run has its weights in the base model: two moments and a gradient, here twice for the
    # largest weight, beside 50 tokens. Others hold copies of their own.
    assert KIB.peak(1, pass_tokens=50, longest=10) == 100 + 2 * 10 + (50 + 10 + 4)
    assert KIB.peak(3, pass_tokens=60, longest=10) == 100 + 3 * 30 + (60 + 30 + 12)
    assert replace(KIB, is_live=False).peak(1, pass_tokens=50, longest=10) == 100 + 30 + 64
    assert replace(KIB, keeps_saved=True).peak(1, pass_tokens=50, longest=10) == 184 + 30
    # In a single pass, gradients come as activations go.
    assert KIB.peak(1, pass_tokens=50, longest=10, num_passes=1) == 100 + 20 + 50
    # Lines are padded to the longest sample, which no pass can split.
    assert KIB.peak(3, pass_tokens=60, longest=40) == 100 + 3 * 30 + (120 + 30 + 12)


def test_as_many_runs_train_together_as_fit() -> None:
    def fit(budget: int, most: int = 4) -> Fit:
        return runs_that_fit(KIB, budget, most=most, pass_tokens=1000, longest=10)

    for num_runs in (4, 3, 2, 1):
        need = KIB.peak(num_runs, pass_tokens=1000, longest=10)
        assert fit(need) == Fit(num_runs=num_runs, pass_tokens=1000)
    assert fit(10**6, most=1) == Fit(num_runs=1, pass_tokens=1000)
    assert fit(need - 1) == Fit(num_runs=1, pass_tokens=500)
    assert fit(need - 501) == Fit(num_runs=1, pass_tokens=256)
    assert fit(0) == Fit(num_runs=1, pass_tokens=256), "it is tried all the same"


def trained(folder: Path, environment: dict[str, str], *settings: int | bool) -> dict[str, int]:
    """Return what a fresh process predicted and took."""
    save_base(folder / "model", **SIZES)
    names = ("is_lora", "num_runs", "length", "batch_samples", "pass_tokens")
    words = [TRAINER, folder, json.dumps(dict(zip(names, settings, strict=True)))]
    path = {"PYTHONPATH": str(TRAINER.parents[1])}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment | path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert found["num_together"] == settings[1]
    return found


CASES = [
    pytest.param((False, 1, 128, 2, 2048), marks=pytest.mark.slow),
    pytest.param((False, 1, 128, 8, 512), marks=pytest.mark.slow),
    pytest.param((False, 1, 128, 16, 2048), marks=pytest.mark.slow),
    pytest.param((True, 1, 128, 16, 1024), marks=pytest.mark.slow),
    pytest.param((True, 1, 128, 16, 2048), marks=pytest.mark.slow),
    pytest.param((False, 3, 128, 4, 2048), marks=pytest.mark.slow),
    pytest.param((True, 4, 128, 4, 2048), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", CASES)
def test_the_predicted_peak_is_what_a_fresh_process_needs(
    tmp_path: Path, case: tuple[int, ...]
) -> None:
    # Large blocks go back to the machine when they are freed: memory that is taken is needed.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    found = trained(tmp_path, environment, *case)
    assert found["measured"] > 200e6, "too small to be told from noise"
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("case", [(True, 1, 128, 16, 2048), (False, 3, 128, 4, 2048)])
def test_a_worker_takes_no_more_than_is_predicted_for_its_heap(
    tmp_path: Path, case: tuple[int, ...]
) -> None:
    environment = worker_environment(Placement(device="cpu", num_workers=1), 0)
    found = trained(tmp_path, environment, *case)
    assert found["measured"] < 1.15 * found["predicted_with_heap"]
    assert found["measured"] > 1.15 * found["predicted"], "the heap takes more than it holds"
