"""Sums equal a plain loop in float64, whatever the tokenizer, and find the KL of known models."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sft_atlas.data.texts import encode_text_set, load_texts, texts_sha256
from sft_atlas.errors import DataError
from sft_atlas.measure.likelihood import measure_likelihood
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.measure import LikelihoodMeasure, QuestionSet, TextFile, TextSet
from sft_atlas.study.source import local_source
from sft_atlas.study.spec import (
    BenchmarkDefinition,
    BenchmarkItems,
    CellSpec,
    ModelSpec,
    Source,
)
from tiny import VOCAB_SIZE, build_model, build_tokenizer


def base_cell(name: str = "tiny") -> CellSpec:
    model = ModelSpec(name=name, source=Source(sha256=name.ljust(64, "0")))
    return CellSpec(model=model, trajectory=None, epoch=0)


def random_texts(num_texts: int, *, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, size=num_texts)
    return [" ".join(f"w{i}" for i in rng.integers(3, 63, size=n)) for n in lengths]


def write_texts(folder: Path, texts: Sequence[str], name: str = "texts") -> TextFile:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TextFile(name=name, source=local_source(path))


def write_questions(folder: Path) -> QuestionSet:
    rows = [{"q": f"w{i} w{i + 1} w5", "a": f"w{i + 2} w7"} for i in range(3, 15)]
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    definition = BenchmarkDefinition(
        kind="generate", prompt="{q}", answer="{a}", metric="exact_match"
    )
    items = BenchmarkItems(definition=definition, items=Source(path=path), name="echo")
    return QuestionSet(benchmarks=(items,), per_benchmark=8, template="question-answer")


def build_bos_tokenizer() -> PreTrainedTokenizerFast:
    backend = build_tokenizer().backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="w63 $A", special_tokens=[("w63", 63)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="w63",
        eos_token="</s>",
        unk_token="<pad>",
    )


def measure_texts(
    store: Store,
    texts: TextSet,
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    cell: CellSpec | None = None,
    max_tokens: int = 64,
) -> tuple[Record, list[dict[str, object]]]:
    cell = cell or base_cell()
    measure = LikelihoodMeasure(texts=texts, max_tokens=max_tokens)
    record = measure_likelihood(
        store, cell, measure, model=model, tokenizer=tokenizer or build_tokenizer()
    )
    folder = store.layout.measure(cell.fingerprint, measure.fingerprint)
    rows: list[dict[str, object]] = pq.read_table(folder / "likelihood.parquet").to_pylist()
    return record, rows


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


@pytest.mark.parametrize("kind", ["questions", "file"])
@pytest.mark.parametrize("has_bos", [False, True])
def test_sums_equal_a_plain_loop_in_float64(
    store: Store, tmp_path: Path, kind: str, has_bos: bool
) -> None:
    texts: TextSet = (
        write_questions(tmp_path)
        if kind == "questions"
        else write_texts(tmp_path, random_texts(12))
    )
    tokenizer = build_bos_tokenizer() if has_bos else build_tokenizer()
    model = build_model()
    record, rows = measure_texts(store, texts, model, tokenizer=tokenizer)
    exact = copy.deepcopy(model).double()
    for row, text in zip(rows, load_texts(texts), strict=True):
        prompt = tokenizer(text.prompt, add_special_tokens=False)["input_ids"]
        whole = tokenizer(text.prompt + text.answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([63 if has_bos else 1, *whole])
        with torch.no_grad():
            logits = exact(input_ids=ids[None]).logits[0, :-1]
        values = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        assert row["prompt_log_likelihood"] == pytest.approx(
            float(values[: len(prompt)].sum()), abs=1e-4
        )
        assert row["answer_log_likelihood"] == pytest.approx(
            float(values[len(prompt) :].sum()), abs=1e-4
        )
        # Every token is scored: the prefix alone has nothing before it.
        assert row["prompt_tokens"] == len(prompt)
        assert row["answer_tokens"] == len(whole) - len(prompt) > 0
        assert row["prompt_bytes"] == len(text.prompt.encode())
        assert row["answer_bytes"] == len(text.answer.encode())
        assert (row["text"], row["group"]) == (text.id, text.group)
    assert record.result["prefix"] == ("bos" if has_bos else "eos")
    assert record.result["texts_sha256"] == texts_sha256(load_texts(texts))
    (sums,) = record.result["groups"].values()
    for name in ("prompt_log_likelihood", "answer_log_likelihood", "answer_bytes"):
        assert sums[name] == pytest.approx(sum(float(str(row[name])) for row in rows))
    assert sums["num_texts"] == record.result["num_texts"] == len(rows)


def test_neither_order_nor_company_of_texts_changes_a_sum(store: Store, tmp_path: Path) -> None:
    found = random_texts(30)
    model = build_model()
    alone = {}
    for i in range(0, 30, 2):
        texts = write_texts(tmp_path, found[i : i + 2], f"pair{i}")
        for text, row in zip(load_texts(texts), measure_texts(store, texts, model)[1], strict=True):
            alone[text.answer] = row["answer_log_likelihood"]
    together = write_texts(tmp_path, found[::-1])
    rows = measure_texts(store, together, model)[1]
    for text, row in zip(load_texts(together), rows, strict=True):
        assert row["answer_log_likelihood"] == pytest.approx(alone[text.answer], abs=1e-4)


def test_a_cut_text_is_scored_as_far_as_it_goes_and_counted(store: Store, tmp_path: Path) -> None:
    texts = write_texts(tmp_path, ["w3 w4 w5 w6 w7 w8", "w9 w10"])
    record, rows = measure_texts(store, texts, build_model(), max_tokens=4)
    cut = next(row for row in rows if row["is_cut"])
    assert (cut["answer_tokens"], cut["answer_bytes"]) == (3, len("w3 w4 w5"))
    assert [row["is_cut"] for row in rows].count(True) == record.result["num_cut"] == 1


def test_the_model_is_left_as_it_was_and_a_cell_measured_once(store: Store, tmp_path: Path) -> None:
    texts = write_texts(tmp_path, random_texts(4))
    model = build_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    record, _ = measure_texts(store, texts, model)
    assert not model.training
    assert all(p.equal(before[name]) for name, p in model.named_parameters())
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert measure_texts(store, texts, model)[0] == record


def test_a_further_benchmark_reads_its_own_questions_alone(store: Store, tmp_path: Path) -> None:
    one = write_questions(tmp_path)
    (items,) = one.benchmarks
    pinned = replace(items, items=local_source(tmp_path / "items.jsonl"))
    other = replace(pinned, definition=replace(items.definition, prompt="w9 {q}"), name="other")
    model, cell = build_model(), base_cell()
    first = measure_texts(store, replace(one, benchmarks=(pinned,)), model, cell=cell)[1]
    with torch.no_grad():  # What is read again from here on has another sum.
        next(model.parameters()).mul_(2.0)
    both = measure_texts(store, replace(one, benchmarks=(other, pinned)), model, cell=cell)[1]
    assert both[len(first) :] == first
    again = measure_texts(store, replace(one, benchmarks=(other,)), model, cell=base_cell("b"))[1]
    assert both[: len(first)] == again
    unpinned = measure_texts(store, replace(one, benchmarks=(items,)), model, cell=cell)[1]
    sums = [row["prompt_log_likelihood"] for row in unpinned]
    assert sums != [row["prompt_log_likelihood"] for row in first]
    cut = LikelihoodMeasure(texts=replace(one, benchmarks=(pinned,)), max_tokens=63)
    measure_likelihood(store, cell, cut, model=model, tokenizer=build_tokenizer())
    folder = store.layout.measure(cell.fingerprint, cut.fingerprint)
    rows = pq.read_table(folder / "likelihood.parquet").to_pylist()
    assert [row["prompt_log_likelihood"] for row in rows] == sums


def test_nan_weights_are_refused_by_cell_and_text(store: Store, tmp_path: Path) -> None:
    texts = write_texts(tmp_path, ["w3 w4", "w5 w6"])
    model = build_model()
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    with pytest.raises(DataError) as caught:
        measure_texts(store, texts, model)
    assert str(caught.value) == (
        f"tiny base, text {load_texts(texts)[0].id}: its log-likelihood is nan; expected a finite "
        f"number. Its weights hold NaN or infinity, or overflow; train a cell again with a lower "
        f"learning rate."
    )


def constant_model(logits: torch.Tensor) -> PreTrainedModel:
    """Return a model whose next token never depends on the text: softmax(logits) everywhere."""
    model = build_model(num_hidden_layers=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Equal hidden states have a norm of one each, and the head reads the first.
        model.get_input_embeddings().weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        model.get_output_embeddings().weight[:, 0] = logits
    return model


def test_two_models_of_known_kl_are_told_apart_with_an_error_that_falls_with_n(
    store: Store, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    num_texts, length = 1600, 12
    first = torch.tensor(rng.normal(size=VOCAB_SIZE), dtype=torch.float32)
    first[:2] = -30.0
    second = first + 0.1 * torch.tensor(rng.normal(size=VOCAB_SIZE), dtype=torch.float32)
    log_p, log_q = (x.double().log_softmax(0).numpy() for x in (first, second))
    kl = length * float((np.exp(log_p) * (log_p - log_q)).sum())
    tokens = rng.choice(VOCAB_SIZE, p=np.exp(log_p), size=(num_texts, length))
    texts = write_texts(tmp_path, [" ".join(f"w{i}" for i in text) for text in tokens])
    vectors = []
    for name, logits in (("first", first), ("second", second)):
        _, rows = measure_texts(store, texts, constant_model(logits), cell=base_cell(name))
        vectors.append(np.array([row["answer_log_likelihood"] for row in rows]))
    difference = vectors[0] - vectors[1]
    # 2 KL ~ Var(l1 - l2), to second order in the difference of the models; the sampling error of a
    # variance of near-normal values is sqrt(2 / n) of it.
    assert difference.var(ddof=1) == pytest.approx(2 * kl, rel=0.02 + 3 * (2 / num_texts) ** 0.5)
    errors = {
        n: np.std(difference.reshape(-1, n).var(axis=1, ddof=1)) / (2 * kl) for n in (25, 100)
    }
    assert errors[25] == pytest.approx((2 / 25) ** 0.5, rel=0.35)
    assert 1.4 < errors[25] / errors[100] < 2.9


def test_prefixes_are_one_token_and_never_two(tmp_path: Path) -> None:
    texts = load_texts(write_texts(tmp_path, ["w3 w4", "w63 w4"]))
    by_text = {text.answer: text for text in texts}
    for tokenizer, prefix in ((build_tokenizer(), 1), (build_bos_tokenizer(), 63)):
        (plain,) = encode_text_set(tokenizer, [by_text["w3 w4"]], max_tokens=8)
        assert (plain.ids, plain.prompt_length) == ([prefix, 3, 4], 1)
    (written,) = encode_text_set(build_bos_tokenizer(), [by_text["w63 w4"]], max_tokens=8)
    assert written.ids == [63, 4]
