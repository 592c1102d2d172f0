"""A dataset's likelihood equals transformers' loss on each sample, prompt and answer apart."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from sft_atlas.measure.dataset import measure_dataset
from sft_atlas.model.load import load_base
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import MeasureJob
from sft_atlas.study.spec import DatasetSpec, ModelSpec, Source
from tiny import build_prepared, build_tokenizer, save_base


def build_measure_job(model: ModelSpec) -> MeasureJob:
    return MeasureJob(
        model=model,
        dataset=DatasetSpec(name="echo", source=Source(sha256="0" * 64)),
        num_samples=20,
        subset_seed=0,
        template="question-answer",
        max_tokens=64,
    )


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Store, MeasureJob, Record]:
    base = load_base(save_base(tmp_path / "base"))
    store = open_store(tmp_path / "store", create=True)
    job = build_measure_job(base.spec)
    record = measure_dataset(
        store, job, model=base.model, tokenizer=build_tokenizer(), rows=build_prepared()
    )
    return store, job, record


def test_sums_equal_transformers_loss(measured: tuple[Store, MeasureJob, Record]) -> None:
    store, job, record = measured
    table = pq.read_table(store.layout.dataset(job.fingerprint) / "samples.parquet").to_pylist()
    rows = build_prepared()
    model = load_base(job.model).model
    for i, row in enumerate(table):
        ids, prompt_length = rows.example(i)
        tokens = torch.tensor(ids)[None].long()
        for part, start, end in (("prompt", 1, prompt_length), ("answer", prompt_length, len(ids))):
            labels = torch.full_like(tokens, -100)
            labels[0, start:end] = tokens[0, start:end]
            with torch.no_grad():
                mean = model(input_ids=tokens, labels=labels).loss.item()
            assert row[f"{part}_tokens"] == end - start
            assert row[f"{part}_nll"] == pytest.approx(mean * (end - start), rel=1e-5)
    for name in ("answer_nll", "answer_tokens", "prompt_nll", "prompt_tokens", "num_tokens"):
        assert record.result[name] == pytest.approx(sum(row[name] for row in table))
    assert record.result["num_samples"] == 20
    assert record.result["mean_tokens"] == pytest.approx(record.result["num_tokens"] / 20)


def test_bytes_are_those_of_the_text(measured: tuple[Store, MeasureJob, Record]) -> None:
    store, job, _ = measured
    table = pq.read_table(store.layout.dataset(job.fingerprint) / "samples.parquet").to_pylist()
    rows, tokenizer = build_prepared(), build_tokenizer()
    for i, row in enumerate(table):
        ids, prompt_length = rows.example(i)
        assert row["prompt_bytes"] == len(tokenizer.decode(ids[:prompt_length]).encode())
        # The end-of-sequence token is scored, but it is no text.
        assert row["answer_bytes"] == len(tokenizer.decode(ids[prompt_length:-1]).encode())


def test_a_dataset_is_measured_once(measured: tuple[Store, MeasureJob, Record]) -> None:
    store, job, record = measured
    base = load_base(job.model)
    with torch.no_grad():
        next(base.model.parameters()).zero_()
    again = measure_dataset(
        store, job, model=base.model, tokenizer=build_tokenizer(), rows=build_prepared()
    )
    assert again == record
