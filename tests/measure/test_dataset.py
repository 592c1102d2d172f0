"""A dataset's likelihood equals transformers' loss on each sample, prompt and answer apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel

from sft_atlas.data.prepared import PreparedRows
from sft_atlas.errors import DataError
from sft_atlas.measure.dataset import measure_dataset
from sft_atlas.model.load import load_base
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import MeasureJob
from sft_atlas.study.spec import DatasetSpec, ModelSpec, Source
from tiny import build_model, build_prepared, build_tokenizer, save_base


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


def read_samples(store: Store, job: MeasureJob) -> list[dict[str, Any]]:
    folder = store.layout.dataset(job.fingerprint)
    samples: list[dict[str, Any]] = pq.read_table(folder / "samples.parquet").to_pylist()
    return samples


def loss_sum(model: PreTrainedModel, ids: list[int], start: int, end: int) -> float:
    """Return the summed loss of ids[start:end] as transformers computes it."""
    tokens = torch.tensor(ids)[None].long()
    labels = torch.full_like(tokens, -100)
    labels[0, start:end] = tokens[0, start:end]
    with torch.no_grad():
        return model(input_ids=tokens, labels=labels).loss.item() * (end - start)


def build_rows(*samples: tuple[list[int], int]) -> PreparedRows:
    """Return samples of (ids, prompt length) as training would see them."""
    return PreparedRows(
        tokens=np.concatenate([ids for ids, _ in samples]).astype(np.int32),
        offsets=np.cumsum([0, *(len(ids) for ids, _ in samples)]),
        prompt_lengths=np.array([length for _, length in samples], np.int32),
        rows=np.arange(len(samples)) + 7,
        positions=np.arange(len(samples)),
        result={},
    )


def measure_rows(folder: Path, rows: PreparedRows, model: PreTrainedModel | None = None) -> Record:
    spec = ModelSpec(name="tiny", source=Source(path=folder))
    return measure_dataset(
        open_store(folder, create=True),
        build_measure_job(spec),
        model=build_model() if model is None else model,
        tokenizer=build_tokenizer(),
        rows=rows,
    )


def test_sums_equal_transformers_loss(measured: tuple[Store, MeasureJob, Record]) -> None:
    store, job, record = measured
    table = read_samples(store, job)
    rows = build_prepared()
    model = load_base(job.model).model
    for i, row in enumerate(table):
        ids, prompt_length = rows.example(i)
        for part, start, end in (("prompt", 1, prompt_length), ("answer", prompt_length, len(ids))):
            assert row[f"{part}_tokens"] == end - start
            expected = loss_sum(model, ids.tolist(), start, end)
            assert row[f"{part}_nll"] == pytest.approx(expected, rel=1e-5)
    for name in set(table[0]) - {"row"}:
        assert record.result[name] == pytest.approx(sum(row[name] for row in table))
    assert record.schema == "dataset/2"
    assert record.result["num_samples"] == 20
    assert record.result["mean_tokens"] == pytest.approx(record.result["num_tokens"] / 20)


def test_a_bare_answer_stands_behind_one_prefix_token(
    measured: tuple[Store, MeasureJob, Record],
) -> None:
    store, job, record = measured
    table = read_samples(store, job)
    rows = build_prepared()
    model = load_base(job.model).model
    ratios = []
    for i, row in enumerate(table):
        ids, prompt_length = rows.example(i)
        # The tokenizer has no BOS: its end-of-sequence token, 1, takes the place.
        bare = [1, *ids[prompt_length:].tolist()]
        assert row["bare_answer_tokens"] == row["answer_tokens"] == len(bare) - 1
        assert row["bare_answer_nll"] == pytest.approx(
            loss_sum(model, bare, 1, len(bare)), rel=1e-5
        )
        means = [row[f"{part}_nll"] / row["answer_tokens"] for part in ("answer", "bare_answer")]
        ratios.append(np.exp(means[0]) / np.exp(means[1]))
    assert record.result["ifd"] == pytest.approx(np.mean(ratios))
    assert record.result["ifd_median"] == pytest.approx(np.median(ratios))


def test_a_prompt_that_says_nothing_has_difficulty_1(tmp_path: Path) -> None:
    # The prompt is the prefix token itself, so the answer fares alike with it and without.
    rows = build_rows(([1, 5, 6, 1], 1), ([1, 9, 1], 1))
    result = measure_rows(tmp_path, rows).result
    assert result["ifd"] == pytest.approx(1, abs=1e-6)
    assert result["prompt_tokens"] == 0
    assert result["prompt_nll_per_token_mean"] is None


def test_means_and_spread_are_those_of_the_samples(
    measured: tuple[Store, MeasureJob, Record],
) -> None:
    store, job, record = measured
    table = read_samples(store, job)
    for row in table:
        for name in ("nll", "tokens", "bytes"):
            row[f"whole_{name}"] = row[f"answer_{name}"] + row[f"prompt_{name}"]
    for part in ("answer", "prompt", "whole"):
        means = [row[f"{part}_nll"] / row[f"{part}_tokens"] for row in table]
        bits = [row[f"{part}_nll"] / np.log(2) / row[f"{part}_bytes"] for row in table]
        assert record.result[f"{part}_nll_per_token_mean"] == pytest.approx(np.mean(means))
        assert record.result[f"{part}_bits_per_byte_mean"] == pytest.approx(np.mean(bits))
        perplexities = np.exp(means)
        assert record.result[f"{part}_ppl_mean"] == pytest.approx(np.mean(perplexities))
        for percent in (5, 25, 50, 75, 95):
            expected = np.percentile(perplexities, percent)
            assert record.result[f"{part}_ppl_{percent:02d}"] == pytest.approx(expected)


def test_bytes_and_words_are_those_of_the_text(measured: tuple[Store, MeasureJob, Record]) -> None:
    store, job, record = measured
    rows, tokenizer = build_prepared(), build_tokenizer()
    for i, row in enumerate(read_samples(store, job)):
        ids, prompt_length = rows.example(i)
        # The end-of-sequence token is scored, but it is no text.
        texts = {"prompt": ids[:prompt_length], "answer": ids[prompt_length:-1]}
        for part, tokens in texts.items():
            unscored = row["first_bytes"] if part == "prompt" else 0
            assert row[f"{part}_bytes"] == len(tokenizer.decode(tokens).encode()) - unscored
            assert row[f"{part}_words"] == len(tokens)
        assert row["text_tokens"] == len(ids) - 1
    result = record.result
    assert result["tokens_per_word"] == 1
    num_bytes = result["first_bytes"] + result["prompt_bytes"] + result["answer_bytes"]
    assert result["bytes_per_token"] == pytest.approx(num_bytes / result["text_tokens"])


def test_bytes_that_are_not_scored_do_not_lower_bits_per_byte(tmp_path: Path) -> None:
    # "w5 w16 w7": the first word is predicted from nothing, so 7 bytes are left.
    result = measure_rows(tmp_path / "none", build_rows(([5, 16, 7, 8, 1], 3))).result
    assert (result["prompt_tokens"], result["prompt_bytes"], result["first_bytes"]) == (2, 7, 2)
    # Behind a prefix token all of the words are scored, and all of their bytes count.
    result = measure_rows(tmp_path / "bos", build_rows(([1, 5, 16, 7, 8, 1], 4))).result
    assert (result["prompt_tokens"], result["prompt_bytes"], result["first_bytes"]) == (3, 9, 0)


def test_unknown_text_is_counted_in_tokens(tmp_path: Path) -> None:
    # Token 0 stands for words that the tokenizer does not know.
    result = measure_rows(tmp_path, build_rows(([5, 0, 6, 0, 1], 2), ([7, 8, 1], 1))).result
    assert result["unknown_tokens"] == 2
    assert result["unknown_fraction"] == pytest.approx(2 / 6)


def test_the_end_of_a_sequence_is_not_unknown(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    # As GPT-2's tokenizer has it.
    tokenizer.unk_token = tokenizer.eos_token
    record = measure_dataset(
        open_store(tmp_path, create=True),
        build_measure_job(ModelSpec(name="tiny", source=Source(path=tmp_path))),
        model=build_model(),
        tokenizer=tokenizer,
        rows=build_rows(([5, 6, 1], 1)),
    )
    assert record.result["unknown_fraction"] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_likelihood_that_is_not_finite_names_its_row(tmp_path: Path, value: float) -> None:
    model = build_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[9] = value
    with pytest.raises(DataError) as error:
        measure_rows(tmp_path, build_rows(([5, 6, 1], 1)), model)
    assert str(error.value).startswith("dataset echo, row 7: the mean log-likelihood of its answer")
    assert str(error.value).endswith(
        "; expected a finite number above -700 nats per token. Check the model's weights."
    )


def test_a_dataset_is_measured_once(measured: tuple[Store, MeasureJob, Record]) -> None:
    store, job, record = measured
    base = load_base(job.model)
    with torch.no_grad():
        next(base.model.parameters()).zero_()
    again = measure_dataset(
        store, job, model=base.model, tokenizer=build_tokenizer(), rows=build_prepared()
    )
    assert again == record


def test_another_version_is_another_record(measured: tuple[Store, MeasureJob, Record]) -> None:
    _, job, _ = measured
    assert replace(job, version=job.version + 1).fingerprint != job.fingerprint
