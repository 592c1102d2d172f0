"""Divergences equal dense ones in float64, bound them from below, and are 0 for the base itself."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel

from sft_atlas.data.texts import encode_text_set, load_texts
from sft_atlas.errors import DataError, StoreError
from sft_atlas.measure import forgetting
from sft_atlas.measure.forgetting import clustered_error, divergences, measure_forgetting
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.measure import ForgettingMeasure, TextFile
from sft_atlas.study.spec import CellSpec, ModelSpec, Source
from tiny import VOCAB_SIZE, build_job, build_model, build_tokenizer

MODEL = ModelSpec(name="tiny", source=Source(sha256="0" * 64))
BASE = CellSpec(model=MODEL, trajectory=None, epoch=0)
CELL = build_job(MODEL).cells[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


@pytest.fixture
def texts(tmp_path: Path) -> TextFile:
    rng = np.random.default_rng(0)
    path = tmp_path / "texts.jsonl"
    lengths = (1, 3, 30, 8, 17, 8, 25, 2)
    rows = [" ".join(f"w{i}" for i in rng.integers(2, VOCAB_SIZE, size=n)) for n in lengths]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return TextFile(name="plain", source=Source(path=path))


def nudge(model: PreTrainedModel, size: float = 0.05) -> PreTrainedModel:
    """Return a copy whose weights all moved a little."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return moved


def measure(
    store: Store,
    texts: TextFile,
    cell: CellSpec,
    model: PreTrainedModel,
    *,
    num_kept: int = VOCAB_SIZE,
) -> Record:
    wish = ForgettingMeasure(texts=texts, max_tokens=64, num_kept=num_kept)
    return measure_forgetting(store, cell, wish, model=model, tokenizer=build_tokenizer())


def rows_of(store: Store, texts: TextFile, num_kept: int = VOCAB_SIZE) -> list[dict[str, float]]:
    wish = ForgettingMeasure(texts=texts, max_tokens=64, num_kept=num_kept)
    folder = store.layout.measure(CELL.fingerprint, wish.fingerprint)
    rows: list[dict[str, float]] = pq.read_table(folder / "forgetting.parquet").to_pylist()
    return rows


def dense(model: PreTrainedModel, texts: TextFile) -> list[torch.Tensor]:
    """Return float64 log-probabilities (tokens, vocab) of each text, computed alone."""
    exact = copy.deepcopy(model).double()
    found = []
    for text in encode_text_set(build_tokenizer(), load_texts(texts), max_tokens=64):
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor(text.ids)[None]).logits[0, :-1]
        found.append(logits.log_softmax(-1))
    return found


def test_figures_equal_dense_ones_in_float64(store: Store, texts: TextFile) -> None:
    base, cell = build_model(), nudge(build_model())
    measure(store, texts, BASE, base)
    record = measure(store, texts, CELL, cell)
    encoded = encode_text_set(build_tokenizer(), load_texts(texts), max_tokens=64)
    sums = dict.fromkeys(("kl", "reverse_kl", "agreements", "base_nll", "cell_nll"), 0.0)
    num_tokens = 0
    for row, text, p, q in zip(
        rows_of(store, texts), encoded, dense(base, texts), dense(cell, texts), strict=True
    ):
        targets = torch.tensor(text.ids[1:])[:, None]
        expected = {
            "kl": (p.exp() * (p - q)).sum(),
            "reverse_kl": (q.exp() * (q - p)).sum(),
            "agreements": (p.argmax(1) == q.argmax(1)).sum(),
            "base_nll": -p.gather(1, targets).sum(),
            "cell_nll": -q.gather(1, targets).sum(),
        }
        assert row["num_tokens"] == len(text.ids) - 1
        for name, value in expected.items():
            assert row[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
            sums[name] += float(value)
        num_tokens += len(text.ids) - 1
    result = record.result
    assert (result["num_texts"], result["num_tokens"], result["num_kept"]) == (8, num_tokens, 64)
    assert result["is_exact"]
    assert result["kl_per_token"] == pytest.approx(sums["kl"] / num_tokens, rel=1e-4)
    assert result["reverse_kl_per_token"] == pytest.approx(sums["reverse_kl"] / num_tokens, 1e-4)
    assert result["agreement_fraction"] == sums["agreements"] / num_tokens
    assert result["base_nll_per_token"] == pytest.approx(sums["base_nll"] / num_tokens, rel=1e-5)
    assert result["cell_nll_per_token"] == pytest.approx(sums["cell_nll"] / num_tokens, rel=1e-5)
    assert 0 < result["kl_se"] < result["kl_per_token"]


@pytest.mark.parametrize("num_kept", [1, 5, VOCAB_SIZE - 1, VOCAB_SIZE, 1024])
def test_a_base_has_forgotten_exactly_nothing(store: Store, texts: TextFile, num_kept: int) -> None:
    model = build_model()
    of_base = measure(store, texts, BASE, model, num_kept=num_kept).result
    result = measure(store, texts, CELL, model, num_kept=num_kept).result
    assert result["kl_per_token"] == result["reverse_kl_per_token"] == result["kl_se"] == 0.0
    assert (result["agreement_fraction"], result["agreement_se"]) == (1.0, 0.0)
    assert result["cell_nll_per_token"] == result["base_nll_per_token"]
    assert of_base["base_nll_per_token"] == result["base_nll_per_token"]
    assert result["is_exact"] == (num_kept >= VOCAB_SIZE)


def test_fewer_kept_tokens_bound_each_divergence_from_below(store: Store, texts: TextFile) -> None:
    base, cell = build_model(), nudge(build_model())
    found = []
    for num_kept in (1, 4, 16, 48, VOCAB_SIZE):
        measure(store, texts, BASE, base, num_kept=num_kept)
        measure(store, texts, CELL, cell, num_kept=num_kept)
        found.append(rows_of(store, texts, num_kept))
    for name in ("kl", "reverse_kl"):
        values = np.array([[row[name] for row in rows] for rows in found])
        assert (np.diff(values, axis=0) > 0).all()
    for name in ("agreements", "base_nll", "cell_nll"):
        assert all([row[name] for row in rows] == [row[name] for row in found[0]] for rows in found)


def test_kept_tokens_and_the_rest_are_the_whole_distribution(store: Store, texts: TextFile) -> None:
    model = build_model()
    wish = ForgettingMeasure(texts=texts, max_tokens=64, num_kept=7)
    record = measure(store, texts, BASE, model, num_kept=7)
    folder = store.layout.measure(BASE.fingerprint, wish.fingerprint)
    kept_ids, kept, rest, nll, best = (np.load(folder / name) for name in forgetting._BASE_NAMES)
    assert set(record.artifacts) == set(forgetting._BASE_NAMES)
    assert (kept_ids.dtype, kept.dtype, rest.dtype) == (np.int32, np.float32, np.float32)
    assert kept_ids.shape == kept.shape == (record.result["num_tokens"], 7)
    expected = torch.cat(dense(model, texts))
    ranked = expected.sort(dim=1, descending=True)
    np.testing.assert_array_equal(kept_ids, ranked.indices[:, :7])
    np.testing.assert_allclose(kept, ranked.values[:, :7], atol=1e-5)
    np.testing.assert_allclose(rest, ranked.values[:, 7:].logsumexp(1), atol=1e-5)
    np.testing.assert_array_equal(best, ranked.indices[:, 0])
    assert float(nll.mean()) == pytest.approx(record.result["base_nll_per_token"])


def test_a_planted_shift_of_one_logit_gives_its_known_divergence(
    store: Store, texts: TextFile
) -> None:
    base = build_model()
    with torch.no_grad():
        base.get_output_embeddings().weight.zero_()
    cell = copy.deepcopy(base)
    head, shift, chosen = cell.get_output_embeddings(), 1.5, 9
    # Uniform logits; one of them is raised wherever the hidden state is, by a bias.
    head.bias = torch.nn.Parameter(torch.zeros(VOCAB_SIZE))
    with torch.no_grad():
        head.bias[chosen] = shift
    measure(store, texts, BASE, base)
    result = measure(store, texts, CELL, cell).result
    q = torch.zeros(VOCAB_SIZE, dtype=torch.float64)
    q[chosen] = shift
    q = q.log_softmax(0)
    uniform = -math.log(VOCAB_SIZE)
    assert result["kl_per_token"] == pytest.approx(float(uniform - q.mean()), rel=1e-6)
    assert result["reverse_kl_per_token"] == pytest.approx(
        float((q.exp() * (q - uniform)).sum()), rel=1e-6
    )
    # Every token has the same divergence, so nothing is uncertain.
    assert result["kl_se"] == pytest.approx(0.0, abs=1e-12)


def test_how_tokens_are_split_over_passes_changes_nothing(
    store: Store, texts: TextFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, cell = build_model(), nudge(build_model())
    measure(store, texts, BASE, base, num_kept=9)
    whole = measure(store, texts, CELL, cell, num_kept=9).result
    # Five positions a pass: most texts are longer and go through in slices.
    monkeypatch.setattr(forgetting, "_LOGIT_BYTES", 4 * VOCAB_SIZE * 5)
    other = open_store(tmp_path / "other", create=True)
    measure(other, texts, BASE, base, num_kept=9)
    sliced = measure(other, texts, CELL, cell, num_kept=9).result
    assert sliced.keys() == whole.keys()
    for name, value in whole.items():
        assert sliced[name] == (pytest.approx(value, rel=1e-4) if type(value) is float else value)


def test_without_the_bases_record_nothing_is_compared(store: Store, texts: TextFile) -> None:
    wish = ForgettingMeasure(texts=texts, max_tokens=64, num_kept=VOCAB_SIZE)
    folder = store.layout.measure(BASE.fingerprint, wish.fingerprint)
    with pytest.raises(StoreError) as caught:
        measure(store, texts, CELL, build_model())
    assert str(caught.value) == (
        "tiny echo test constant 0 samples epoch 1 seed 0: forgetting on texts plain: the "
        f"distributions of tiny base are not stored; expected them in {folder}. Measure the base "
        "model first."
    )


def test_a_base_of_other_texts_or_another_tokenizer_is_refused(
    store: Store, texts: TextFile
) -> None:
    measure(store, texts, BASE, build_model())
    tokenizer = build_tokenizer()
    tokenizer.bos_token = "w2"
    wish = ForgettingMeasure(texts=texts, max_tokens=64, num_kept=VOCAB_SIZE)
    with pytest.raises(StoreError, match=r"was made from another tokenizer \(tokenizer_sha256 "):
        measure_forgetting(store, CELL, wish, model=build_model(), tokenizer=tokenizer)
    path = texts.source.path
    assert path is not None
    path.write_text(path.read_text().replace("w3", "w4"))
    with pytest.raises(StoreError, match=r"was made from other texts \(texts_sha256 "):
        measure(store, texts, CELL, build_model())


@pytest.mark.parametrize("cell", [BASE, CELL], ids=["base", "cell"])
def test_nan_weights_are_refused_by_cell_and_text(
    store: Store, texts: TextFile, cell: CellSpec
) -> None:
    model = build_model()
    if cell is CELL:
        measure(store, texts, BASE, model)
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    # The longest text goes first.
    found = load_texts(texts)
    longest = max(found, key=lambda text: len(text.answer.split()))
    with pytest.raises(DataError) as caught:
        measure(store, texts, cell, model)
    assert str(caught.value) == (
        f"{cell.description}, text {longest.id}: the model's logits are not finite; expected a "
        f"finite number. Its weights hold NaN or infinity, or overflow; train a cell again with a "
        f"lower learning rate."
    )


def test_divergence_is_exact_for_small_and_infinite_for_impossible_ones() -> None:
    p = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64).log()
    q = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64).log()
    assert [float(value) for value in divergences(p, q)] == [
        pytest.approx(0.5 * math.log(2)),
        math.inf,
    ]
    assert [float(value) for value in divergences(q, q)] == [0.0, 0.0]
    # Float32 log-probabilities differ by some 1e-7 for nothing; what is larger is measured.
    tiny = torch.tensor([0.0, 1e-6, 0.0, -1e-6], dtype=torch.float64)
    near = (q + tiny).log_softmax(0)
    expected = pytest.approx(0.5 * float(tiny.var(correction=0)), rel=1e-3)
    assert [float(value) for value in divergences(q, near)] == [expected, expected]


def test_errors_are_clustered_by_text() -> None:
    # All tokens of a text alike: the error is that of the texts' means, however many tokens.
    means = np.array([1.0, 2.0, 4.0, 5.0])
    for length in (1, 50):
        error = clustered_error(means * length, np.full(4, length))
        assert error == pytest.approx(means.std(ddof=1) / 2)
