"""Training equals a plain torch loop, and no circumstance of a run changes what it learns."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, get_cosine_schedule_with_warmup

from sft_atlas.data.batches import epoch_order
from sft_atlas.errors import DivergedError, OutOfMemoryError
from sft_atlas.model.load import BaseModel, load_base, load_cell
from sft_atlas.store.outcomes import longest_outcome
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.spec import CellSpec, LoraSpec, ModelSpec, Precision
from sft_atlas.train.loop import Observers, StopRequested, TrainPlacement, train
from tiny import CONSTANT, COSINE, LORA, build_job, build_rows, save_base


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(spec: ModelSpec) -> BaseModel:
    return load_base(spec)


def cell_digests(store: Store, job: TrainJob) -> dict[int, dict[str, str]]:
    """SHA-256 of every file of every kept epoch."""
    digests = {}
    for cell in job.cells:
        record = store.read(store.layout.cell(cell.fingerprint))
        digests[cell.epoch] = {name: a.sha256 for name, a in record.artifacts.items()}
    return digests


def losses(store: Store, job: TrainJob) -> list[float]:
    folder = longest_outcome(store, job.trajectory.fingerprint)
    assert folder is not None
    return pq.read_table(folder / "metrics.parquet").column("loss").to_pylist()


def run(tmp_path: Path, job: TrainJob, base: BaseModel, **options: object) -> tuple[Store, Record]:
    store = open_store(tmp_path, create=True)
    return store, train(job, store=store, base=base, rows=build_rows(), **options)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "olmo2"])
def test_full_fine_tuning_equals_a_plain_torch_loop(tmp_path: Path, architecture: str) -> None:
    spec = save_base(tmp_path / "base", architecture)
    job = build_job(spec, keep_epochs=(2,), schedule=COSINE, weight_decay=0.1, clip_norm=0.5)
    store, _ = run(tmp_path / "store", job, load_base(spec))

    rows = build_rows()
    attention = "eager" if architecture == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(spec.source.path, attn_implementation=attention)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 2, 6)
    expected = []
    for epoch in (1, 2):
        order = epoch_order(len(rows), 0, epoch)
        for start in range(0, len(rows), 8):
            total, count = torch.zeros(()), 0
            for i in order[start : start + 8]:
                ids, prompt_length = rows.example(int(i))
                labels = torch.tensor(ids, dtype=torch.int64)[None].clone()
                labels[0, :prompt_length] = -100
                # transformers' own loss is the mean over the labels that it shifts itself.
                supervised = len(ids) - prompt_length
                mean = model(input_ids=torch.tensor(ids)[None].long(), labels=labels).loss
                total, count = total + mean * supervised, count + supervised
            loss = total / count
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            expected.append(loss.item())
    assert losses(store, job) == pytest.approx(expected, rel=1e-5)
    trained = AutoModelForCausalLM.from_pretrained(store.layout.cell(job.cells[0].fingerprint))
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], weight, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("lora", [None, LORA, LoraSpec(rank=2, alpha=4.0, dropout=0.3)])
def test_a_kept_epoch_of_a_long_run_is_the_short_run_bit_for_bit(
    tmp_path: Path, base: BaseModel, spec: ModelSpec, lora: LoraSpec | None
) -> None:
    long = build_job(spec, keep_epochs=(1, 2, 4), lora=lora)
    short = build_job(spec, keep_epochs=(2,), lora=lora)
    assert long.trajectory.fingerprint == short.trajectory.fingerprint
    of_long = cell_digests(run(tmp_path / "long", long, base)[0], long)
    of_short = cell_digests(run(tmp_path / "short", short, base)[0], short)
    assert of_long[2] == of_short[2]
    assert of_long[1] != of_long[2]


def test_a_longer_run_of_a_later_study_adds_its_outcome_and_keeps_the_cells(
    tmp_path: Path, base: BaseModel, spec: ModelSpec
) -> None:
    short = build_job(spec, keep_epochs=(1,), keep_checkpoint=True)
    store, first = run(tmp_path, short, base)
    steps: list[int] = []
    longer = build_job(spec, keep_epochs=(1, 3))
    observers = Observers(on_step=lambda done, _: steps.append(done))
    _, second = run(tmp_path, longer, base, observers=observers)
    assert steps == [4, 5, 6, 7, 8, 9], "the kept checkpoint is where the longer run goes on"
    assert (first.result["num_steps"], second.result["num_steps"]) == (3, 9)
    folder = longest_outcome(store, longer.trajectory.fingerprint)
    assert folder is not None
    assert store.read(folder) == second
    alone = build_job(spec, keep_epochs=(1, 3))
    assert cell_digests(store, longer) == cell_digests(
        run(tmp_path / "alone", alone, base)[0], alone
    )


def test_a_finished_run_is_not_run_again(tmp_path: Path, base: BaseModel, spec: ModelSpec) -> None:
    job = build_job(spec)
    _, first = run(tmp_path, job, base)
    steps: list[int] = []
    observers = Observers(on_step=lambda done, _: steps.append(done))
    assert run(tmp_path, job, base, observers=observers)[1] == first
    assert steps == []


@pytest.mark.parametrize("lora", [None, LORA])
def test_micro_batches_change_the_loss_by_rounding_only(
    tmp_path: Path, base: BaseModel, spec: ModelSpec, lora: LoraSpec | None
) -> None:
    job = build_job(spec, keep_epochs=(2,), lora=lora)
    whole = run(tmp_path / "whole", job, base)[0]
    small = TrainPlacement(micro_batch_tokens=20)
    split = run(tmp_path / "split", job, base, placement=small)[0]
    assert losses(split, job) == pytest.approx(losses(whole, job), rel=1e-5)
    assert losses(split, job) != losses(whole, job), "the step was not split"


def test_training_learns_and_its_metrics_say_so(
    tmp_path: Path, base: BaseModel, spec: ModelSpec
) -> None:
    job = build_job(spec, keep_epochs=(8,))
    store, record = run(tmp_path, job, base)
    rows = build_rows()
    folder = longest_outcome(store, job.trajectory.fingerprint)
    assert folder is not None
    table = pq.read_table(folder / "metrics.parquet")
    assert table.column("step").to_pylist() == list(range(1, 25))
    assert table.column("epoch").to_pylist() == [1 + i // 3 for i in range(24)]
    assert sum(table.column("num_tokens").to_pylist()) == 8 * int(rows.lengths.sum())
    assert sum(table.column("num_supervised_tokens").to_pylist()) == 8 * rows.num_supervised(
        range(len(rows))
    )
    assert record.result["last_loss"] < 0.5 * record.result["first_loss"]
    assert record.result["state"] == "finished"


def test_an_observer_changes_nothing(tmp_path: Path, base: BaseModel, spec: ModelSpec) -> None:
    job = build_job(spec, lora=LoraSpec(rank=2, alpha=4.0, dropout=0.3))

    def disturb(_cell: CellSpec, model: PreTrainedModel) -> None:
        torch.rand(7)
        with torch.no_grad():
            model(input_ids=torch.ones(1, 5, dtype=torch.int64))

    quiet = run(tmp_path / "quiet", job, base)[0]
    observers = Observers(on_epoch=disturb, on_step=lambda _done, _all: torch.manual_seed(0))
    loud = run(tmp_path / "loud", job, base, observers=observers)[0]
    assert cell_digests(quiet, job) == cell_digests(loud, job)


def test_the_callers_random_state_and_the_base_model_are_left_as_they_were(
    tmp_path: Path, base: BaseModel, spec: ModelSpec
) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run(tmp_path, build_job(spec, lora=LORA), base)
    assert torch.equal(state, torch.get_rng_state())
    live = dict(base.model.named_parameters())
    assert live.keys() == base.pristine.keys()
    assert all(torch.equal(live[name], base.pristine[name]) for name in live)
    assert not base.model.training


@pytest.mark.parametrize(
    ("precision", "lora"), [("float32", None), ("bfloat16", None), ("bfloat16", LORA)]
)
def test_what_an_observer_sees_is_what_is_stored(
    tmp_path: Path, base: BaseModel, spec: ModelSpec, precision: Precision, lora: LoraSpec | None
) -> None:
    job = build_job(spec, precision=precision, lora=lora)
    inputs = torch.arange(2, 12)[None]
    seen: dict[int, torch.Tensor] = {}

    def look(cell: CellSpec, model: PreTrainedModel) -> None:
        assert not model.training
        with torch.no_grad():
            seen[cell.epoch] = model(input_ids=inputs).logits

    store, _ = run(tmp_path, job, base, observers=Observers(on_epoch=look))
    assert sorted(seen) == [1, 2]
    for cell in job.cells:
        with torch.no_grad():
            stored = load_cell(base, cell, store=store)(input_ids=inputs).logits
        assert torch.equal(seen[cell.epoch], stored)
    base.reset()


def test_rounding_a_kept_epoch_does_not_touch_the_masters(
    tmp_path: Path, base: BaseModel, spec: ModelSpec
) -> None:
    every = build_job(spec, precision="bfloat16", keep_epochs=(1, 2, 3))
    last = build_job(spec, precision="bfloat16", keep_epochs=(3,))
    of_every = cell_digests(run(tmp_path / "every", every, base)[0], every)
    assert of_every[3] == cell_digests(run(tmp_path / "last", last, base)[0], last)[3]


@pytest.mark.parametrize("lora", [None, LORA])
def test_pure_bfloat16_learns_and_shows_what_it_stores(
    tmp_path: Path, base: BaseModel, spec: ModelSpec, lora: LoraSpec | None
) -> None:
    job = build_job(spec, keep_epochs=(1, 3), lora=lora, precision="bfloat16")
    run_of = replace(job.trajectory, master_precision="bfloat16")
    job = replace(job, trajectory=run_of)
    ids = torch.tensor([[5, 6, 7, 8]])
    shown: list[torch.Tensor] = []
    live: set[torch.dtype] = set()

    def look(_cell: CellSpec, model: PreTrainedModel) -> None:
        shown.append(model(ids).logits.detach())

    def look_in(_done: int, _all: int) -> None:
        live.update(p.dtype for p in base.model.parameters())

    observers = Observers(on_epoch=look, on_step=look_in)
    store, record = run(tmp_path, job, base, observers=observers)
    assert live == {torch.bfloat16}
    assert record.result["last_loss"] < record.result["first_loss"]
    for cell, logits in zip(job.cells, shown, strict=True):
        with torch.no_grad():
            assert torch.equal(load_cell(base, cell, store=store)(ids).logits, logits)
    base.reset()
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}


def test_a_stored_model_loads_in_transformers_in_its_precision(
    tmp_path: Path, base: BaseModel, spec: ModelSpec
) -> None:
    job = build_job(spec, precision="bfloat16", keep_epochs=(1,))
    store, _ = run(tmp_path, job, base)
    folder = store.layout.cell(job.cells[0].fingerprint)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype is torch.bfloat16
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_run_that_was_asked_to_stop_goes_on_where_it_was(
    tmp_path: Path, base: BaseModel, spec: ModelSpec, lora: LoraSpec | None
) -> None:
    job = build_job(spec, keep_epochs=(1, 3), schedule=COSINE, lora=lora)
    whole = run(tmp_path / "whole", job, base)[0]
    done: list[int] = []
    stops = iter([2, 3, 7])
    stop_at = next(stops)
    while True:
        observers = Observers(
            on_step=lambda step, _: done.append(step),
            should_stop=lambda: done[-1:] == [stop_at],  # noqa: B023 - read in this pass
        )
        try:
            stopped = run(tmp_path / "stopped", job, base, observers=observers)[0]
            break
        except StopRequested:
            stop_at = next(stops, 0)
    assert done == list(range(1, 10)), "each step is taken once"
    assert cell_digests(stopped, job) == cell_digests(whole, job)
    assert outcome_digest(stopped, job) == outcome_digest(whole, job)
    assert not stopped.layout.working(job.trajectory.fingerprint).exists()


def outcome_digest(store: Store, job: TrainJob) -> str:
    folder = longest_outcome(store, job.trajectory.fingerprint)
    assert folder is not None
    return store.read(folder).digest


def test_a_cell_that_was_lost_is_trained_again_in_spite_of_a_later_checkpoint(
    tmp_path: Path, base: BaseModel, spec: ModelSpec
) -> None:
    job = build_job(spec, keep_epochs=(1, 2), keep_checkpoint=True)
    store, _ = run(tmp_path, job, base)
    before = cell_digests(store, job)
    store.set_aside(store.layout.cell(job.cells[0].fingerprint))
    run(tmp_path, job, base)
    assert cell_digests(store, job) == before


def test_a_diverging_run_says_its_step_and_keeps_the_epochs_before_it(
    tmp_path: Path, base: BaseModel, spec: ModelSpec
) -> None:
    job = build_job(spec, keep_epochs=(1, 2, 3))

    def poison(done: int, _all: int) -> None:
        if done == 7:
            with torch.no_grad():
                next(base.model.parameters()).fill_(math.nan)

    with pytest.raises(DivergedError, match=r"step 8 \(epoch 3\).*Kept epochs: \[1, 2\]") as caught:
        run(tmp_path, job, base, observers=Observers(on_step=poison))
    assert caught.value.step == 8
    store = open_store(tmp_path, create=True)
    folder = longest_outcome(store, job.trajectory.fingerprint)
    assert folder is not None
    result = store.read(folder).result
    assert (result["state"], result["diverged_step"], result["num_steps"]) == ("diverged", 8, 7)
    kept = [store.has(store.layout.cell(cell.fingerprint)) for cell in job.cells]
    assert kept == [True, True, False]
    assert math.isnan(losses(store, job)[-1])
    assert not any(p.isnan().any() for p in base.model.parameters()), "the base is not restored"

    # Tried again without the poison, the run ends well and its outcome takes the other's place.
    assert run(tmp_path, job, base)[1].result["state"] == "finished"


def test_a_huge_learning_rate_ends_as_diverged(
    tmp_path: Path, base: BaseModel, spec: ModelSpec
) -> None:
    job = build_job(spec, keep_epochs=(8,), learning_rate=1e30, clip_norm=None)
    with pytest.raises(DivergedError):
        run(tmp_path, job, base)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory_that_runs_out_has_a_name(
    tmp_path: Path, base: BaseModel, spec: ModelSpec, error: Exception
) -> None:
    def fail(_done: int, _all: int) -> None:
        raise error

    with pytest.raises(OutOfMemoryError, match="memory ran out"):
        run(tmp_path, build_job(spec), base, observers=Observers(on_step=fail))


def test_another_error_passes_unchanged(tmp_path: Path, base: BaseModel, spec: ModelSpec) -> None:
    def fail(_done: int, _all: int) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        run(tmp_path, build_job(spec), base, observers=Observers(on_step=fail))


def test_seed_decides_order_and_adapter(tmp_path: Path, base: BaseModel, spec: ModelSpec) -> None:
    runs = []
    for seed in (0, 1):
        job = build_job(spec, lora=LORA, seed=seed, keep_epochs=(1,), schedule=CONSTANT)
        runs.append(losses(run(tmp_path / str(seed), job, base)[0], job))
    assert np.abs(np.subtract(*runs)).max() > 1e-3
