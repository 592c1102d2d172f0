"""Runs that train together learn what each would have learned alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sft_atlas.data.batches import TrainingRows
from sft_atlas.errors import DivergedError, OutOfMemoryError
from sft_atlas.model import stacked_layers
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.model.stack import can_stack
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.spec import CellSpec, LoraSpec
from sft_atlas.study.stacking import stack_key
from sft_atlas.train.loop import Entrant, Observers, TrainPlacement, train, train_together
from sft_atlas.train.metrics import METRICS_NAME, StepMetrics, read_metrics
from tiny import CONSTANT, COSINE, LORA, build_job, build_rows, save_base

DROPPING = LoraSpec(rank=4, alpha=8.0, dropout=0.2)
Ends = dict[str, Record | Exception]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(save_base(tmp_path_factory.mktemp("base")))


def build_entrants(base: BaseModel, lora: LoraSpec | None) -> list[Entrant]:
    """Four runs with rates, schedules, lengths, seeds and data of their own."""
    settings = [
        {"learning_rate": 1e-2, "schedule": COSINE, "keep_epochs": (1, 2), "seed": 0},
        {"learning_rate": 3e-3, "schedule": CONSTANT, "keep_epochs": (3,), "seed": 1},
        {"learning_rate": 1e-3, "schedule": CONSTANT, "keep_epochs": (1,), "seed": 2},
        {"learning_rate": 2e-2, "schedule": COSINE, "keep_epochs": (2,), "seed": 0},
    ]
    jobs = [build_job(base.spec, lora=lora, weight_decay=0.1, **kept) for kept in settings]
    sizes = [20, 13, 20, 7]
    return [
        Entrant(job=job, rows=build_rows(size, seed=number))
        for number, (job, size) in enumerate(zip(jobs, sizes, strict=True))
    ]


def train_all(
    store: Store, base: BaseModel, entrants: list[Entrant], *, stack_runs: int = 3
) -> Ends:
    ends: Ends = {}

    def on_end(job: TrainJob, end: Record | Exception) -> None:
        assert job.fingerprint not in ends, "a run ends once"
        ends[job.fingerprint] = end

    placement = TrainPlacement(stack_runs=stack_runs)
    train_together(entrants, store=store, base=base, placement=placement, on_end=on_end)
    return ends


def train_alone(store: Store, base: BaseModel, entrants: list[Entrant]) -> None:
    for entrant in entrants:
        train(
            entrant.job,
            store=store,
            base=base,
            rows=entrant.rows,
            observers=entrant.observers,
        )


def metrics_of(store: Store, job: TrainJob) -> list[StepMetrics]:
    key, last = job.trajectory.fingerprint, job.keep_epochs[-1]
    return read_metrics(outcome_folder(store, key, last_epoch=last) / METRICS_NAME)


def digests(store: Store, cell: CellSpec) -> dict[str, str]:
    record = store.read(store.layout.cell(cell.fingerprint))
    return {name: artifact.sha256 for name, artifact in record.artifacts.items()}


def assert_within_rounding(found: Store, expected: Store, job: TrainJob) -> None:
    """Each step's loss within 1e-5, relative; final weights within 1e-4."""
    of_steps = [[m.loss for m in metrics_of(store, job)] for store in (found, expected)]
    np.testing.assert_allclose(*of_steps, rtol=1e-5, atol=0)
    for cell in job.cells:
        folders = [store.layout.cell(cell.fingerprint) for store in (found, expected)]
        (path,) = (file.name for file in folders[0].glob("*.safetensors"))
        weights = [load_file(folder / path) for folder in folders]
        assert weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            error = (tensor - weights[1][name]).norm() / weights[1][name].norm()
            assert error <= 1e-4, name


@pytest.mark.parametrize("lora", [None, LORA, DROPPING], ids=["full", "lora", "dropout"])
def test_a_run_in_company_equals_the_run_alone_bit_for_bit(
    base: BaseModel, tmp_path: Path, lora: LoraSpec | None
) -> None:
    entrants = build_entrants(base, lora)
    alone, together = (open_store(tmp_path / name, create=True) for name in ("alone", "together"))
    train_alone(alone, base, entrants)
    ends = train_all(together, base, entrants)
    assert can_stack(base, lora)
    assert len({stack_key(entrant.job.trajectory) for entrant in entrants}) == 1
    for entrant in entrants:
        job = entrant.job
        end = ends[job.fingerprint]
        assert isinstance(end, Record)
        assert end.provenance["stack_runs"] == 3
        assert metrics_of(together, job) == metrics_of(alone, job)
        for cell in job.cells:
            assert digests(together, cell) == digests(alone, cell)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "olmo2"])
def test_other_architectures_train_together_within_rounding(
    tmp_path: Path, architecture: str
) -> None:
    base = load_base(save_base(tmp_path / "base", architecture))
    entrants = build_entrants(base, None)[:3]
    alone, together = (open_store(tmp_path / name, create=True) for name in ("alone", "together"))
    train_alone(alone, base, entrants)
    ends = train_all(together, base, entrants)
    for entrant in entrants:
        assert isinstance(end := ends[entrant.job.fingerprint], Record)
        assert end.provenance["stack_runs"] == 3
        assert_within_rounding(together, alone, entrant.job)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_batched_products_equal_the_run_alone_within_rounding(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraSpec | None
) -> None:
    entrants = build_entrants(base, lora)
    alone, together = (open_store(tmp_path / name, create=True) for name in ("alone", "together"))
    train_alone(alone, base, entrants)
    batched: list[torch.device] = []
    monkeypatch.setattr(stacked_layers, "multiplies_by_run", lambda d: bool(batched.append(d)))
    train_all(together, base, entrants)
    assert batched
    for entrant in entrants:
        assert_within_rounding(together, alone, entrant.job)


def test_a_run_that_diverges_ends_alone(base: BaseModel, tmp_path: Path) -> None:
    entrants = build_entrants(base, None)
    spoiled = build_job(base.spec, learning_rate=1e6, keep_epochs=(1, 2), seed=5)
    mixed = [entrants[0], Entrant(job=spoiled, rows=build_rows()), entrants[1]]
    alone, together = (open_store(tmp_path / name, create=True) for name in ("alone", "together"))
    train_alone(alone, base, [entrants[0], entrants[1]])
    ends = train_all(together, base, mixed)
    end = ends[spoiled.fingerprint]
    assert isinstance(end, DivergedError)
    assert "Lower the learning rate" in str(end)
    for entrant in (entrants[0], entrants[1]):
        assert metrics_of(together, entrant.job) == metrics_of(alone, entrant.job)
        for cell in entrant.job.cells:
            assert digests(together, cell) == digests(alone, cell)


def test_what_goes_wrong_around_one_run_ends_that_run_alone(
    base: BaseModel, tmp_path: Path
) -> None:
    entrants = build_entrants(base, LORA)[:3]

    def fail(_cell: CellSpec, _model: torch.nn.Module) -> None:
        raise ValueError("this benchmark is broken")

    entrants[1] = replace(entrants[1], observers=Observers(on_epoch=fail))
    store = open_store(tmp_path, create=True)
    ends = train_all(store, base, entrants)
    assert str(ends[entrants[1].job.fingerprint]) == "this benchmark is broken"
    assert all(isinstance(ends[entrants[i].job.fingerprint], Record) for i in (0, 2))


def test_an_observer_of_a_run_in_company_sees_that_run(base: BaseModel, tmp_path: Path) -> None:
    seen: dict[str, dict[str, torch.Tensor]] = {}

    def look(cell: CellSpec, model: torch.nn.Module) -> None:
        seen[cell.fingerprint] = {n: p.detach().clone() for n, p in model.named_parameters()}

    entrants = [replace(e, observers=Observers(on_epoch=look)) for e in build_entrants(base, None)]
    store = open_store(tmp_path, create=True)
    train_all(store, base, entrants)
    for entrant in entrants:
        for cell in entrant.job.cells:
            stored = load_file(store.layout.cell(cell.fingerprint) / "model.safetensors")
            assert all(torch.equal(stored[n], t) for n, t in seen[cell.fingerprint].items())


def test_runs_that_were_killed_go_on_where_they_were(base: BaseModel, tmp_path: Path) -> None:
    entrants = build_entrants(base, None)[:3]
    alone, together = (open_store(tmp_path / name, create=True) for name in ("alone", "together"))
    train_alone(alone, base, entrants)

    def stop_after(number: int) -> Callable[[int, int], None]:
        def look(done: int, _all: int) -> None:
            if done == number:
                raise KeyboardInterrupt

        return look

    stopped = [replace(e, observers=Observers(on_step=stop_after(4))) for e in entrants]
    with pytest.raises(KeyboardInterrupt):
        train_all(together, base, stopped)
    assert not together.has(together.layout.cell(entrants[0].job.cells[-1].fingerprint))
    train_all(together, base, entrants)
    for entrant in entrants:
        assert metrics_of(together, entrant.job) == metrics_of(alone, entrant.job)
        for cell in entrant.job.cells:
            assert digests(together, cell) == digests(alone, cell)


def test_short_memory_is_met_by_smaller_passes_then_by_fewer_runs(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_atlas.train import holder

    entrants = build_entrants(base, None)[:3]
    alone, together = (open_store(tmp_path / name, create=True) for name in ("alone", "together"))
    train_alone(alone, base, entrants)
    sizes: list[int] = []
    accumulate = holder.accumulate

    def run_out(model, runs, steps, pass_tokens, **settings):  # type: ignore[no-untyped-def]
        if len(runs) > 1:
            sizes.append(len(runs))
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return accumulate(model, runs, steps, pass_tokens, **settings)

    monkeypatch.setattr(holder, "accumulate", run_out)
    ends: Ends = {}
    train_together(
        entrants,
        store=together,
        base=base,
        placement=TrainPlacement(stack_runs=3, micro_batch_tokens=512),
        on_end=lambda job, end: ends.__setitem__(job.fingerprint, end),
    )
    assert sizes == [3, 3]
    for number, entrant in enumerate(entrants):
        end = ends[entrant.job.fingerprint]
        assert isinstance(end, Record)
        assert end.provenance["num_memory_retries"] == (2 if number == 0 else 0)
        found, expected = metrics_of(together, entrant.job), metrics_of(alone, entrant.job)
        np.testing.assert_allclose(
            [m.loss for m in found], [m.loss for m in expected], rtol=1e-5, atol=0
        )


def test_memory_that_never_suffices_ends_every_run_by_name(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_atlas.train import holder

    def run_out(*_arguments: object, **_settings: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(holder, "accumulate", run_out)
    entrants = build_entrants(base, None)[:2]
    ends = train_all(open_store(tmp_path, create=True), base, entrants)
    assert [type(end) for end in ends.values()] == [OutOfMemoryError] * 2


def test_a_model_that_cannot_be_stacked_trains_its_runs_one_after_the_other(
    tmp_path: Path,
) -> None:
    base = load_base(save_base(tmp_path / "base", attention_dropout=0.1))
    entrants = build_entrants(base, None)[:2]
    assert not can_stack(base, None)
    ends = train_all(open_store(tmp_path / "store", create=True), base, entrants)
    assert [end.provenance["stack_runs"] for end in ends.values()] == [1, 1]  # type: ignore[union-attr]


def test_nobody_enters_an_empty_group(base: BaseModel, tmp_path: Path) -> None:
    assert train_all(open_store(tmp_path, create=True), base, []) == {}


def test_the_base_model_is_pristine_afterwards(base: BaseModel, tmp_path: Path) -> None:
    train_all(open_store(tmp_path, create=True), base, build_entrants(base, LORA))
    live = dict(base.model.named_parameters())
    assert live.keys() == base.pristine.keys()
    assert all(torch.equal(p, base.pristine[name]) for name, p in live.items())
    assert not base.model.training


def test_rows_of_one_spec_may_be_shared(base: BaseModel, tmp_path: Path) -> None:
    rows = TrainingRows(build_rows().parts)
    jobs = [build_job(base.spec, keep_epochs=(1,), seed=seed) for seed in range(2)]
    ends = train_all(
        open_store(tmp_path, create=True), base, [Entrant(job=job, rows=rows) for job in jobs]
    )
    assert all(isinstance(end, Record) for end in ends.values())


@pytest.mark.parametrize("stack_runs", [1, 2])
def test_recomputed_activations_give_the_same_bits(
    base: BaseModel, tmp_path: Path, stack_runs: int
) -> None:
    entrants = build_entrants(base, DROPPING)[:2]
    kept, recomputed = (open_store(tmp_path / name, create=True) for name in ("kept", "again"))
    train_alone(kept, base, entrants)
    placement = TrainPlacement(stack_runs=stack_runs, activation_checkpointing=True)
    train_together(
        entrants, store=recomputed, base=base, placement=placement, on_end=lambda _job, _end: None
    )
    for entrant in entrants:
        assert metrics_of(recomputed, entrant.job) == metrics_of(kept, entrant.job)
