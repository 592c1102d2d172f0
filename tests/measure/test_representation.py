"""Hidden states are described by layer, compared with the base's, and never made up."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import special_ortho_group

from sft_atlas.data.texts import load_texts
from sft_atlas.errors import DataError, StoreError
from sft_atlas.measure import representation
from sft_atlas.measure.alignment import debiased_cka, procrustes_distance
from sft_atlas.measure.dimension import gride, local_mle, two_nn
from sft_atlas.measure.neighbours import find_neighbours
from sft_atlas.measure.representation import (
    describe_cloud,
    measure_representation,
    profile_states,
)
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.measure import RepresentationMeasure, TextFile
from sft_atlas.study.spec import CellSpec, ModelSpec, Source
from tiny import (
    VOCAB_SIZE,
    build_byte_tokenizer,
    build_job,
    build_model,
    build_tokenizer,
    save_base,
)

NUM_TEXTS = 80


def build_measure(folder: Path, num_texts: int = NUM_TEXTS) -> RepresentationMeasure:
    """Random texts of 3 to 15 words."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(num_texts):
        words = rng.integers(2, VOCAB_SIZE, size=rng.integers(3, 16))
        lines.append(json.dumps({"text": " ".join(f"w{word}" for word in words)}) + "\n")
    path = folder / "texts.jsonl"
    path.write_text("".join(lines))
    return RepresentationMeasure(texts=TextFile(source=Source(path=path), name="t"), max_tokens=64)


def measure_cell(store: Store, base: BaseModel, cell: CellSpec, measure: Any) -> Record:
    return measure_representation(
        store, cell, measure, model=base.model, tokenizer=build_tokenizer()
    )


def cells_of(base: BaseModel) -> tuple[CellSpec, CellSpec]:
    """The base model itself, and a cell of it."""
    trajectory = build_job(base.spec).trajectory
    return (
        CellSpec(model=base.spec, trajectory=None, epoch=0),
        CellSpec(model=base.spec, trajectory=trajectory, epoch=1),
    )


def disturb(base: BaseModel, size: float = 0.05) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.add_(size * torch.randn_like(parameter))


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return load_base(save_base(tmp_path / "base"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def read(store: Store, cell: CellSpec, measure: RepresentationMeasure, name: str) -> list[Any]:
    folder = store.layout.measure(cell.fingerprint, measure.fingerprint)
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_the_tables_hold_what_the_estimators_say_of_the_stored_states(
    tmp_path: Path, base: BaseModel, store: Store
) -> None:
    measure = build_measure(tmp_path)
    root, cell = cells_of(base)
    record = measure_cell(store, base, root, measure)
    disturb(base)
    measure_cell(store, base, cell, measure)
    folder = store.layout.measure(root.fingerprint, measure.fingerprint)
    assert record.result["poolings"] == ["last", "mean"]
    states = {name: np.load(folder / f"states_{name}.npy") for name in ("last", "mean")}
    assert {values.shape for values in states.values()} == {(3, NUM_TEXTS, 32)}
    assert record.result["num_texts"] == NUM_TEXTS
    rows = read(store, root, measure, "representation")
    assert [(row["layer"], row["pooling"]) for row in rows] == [
        (layer, pooling) for layer in range(3) for pooling in ("last", "mean")
    ]
    assert [row["position"] for row in rows[::2]] == [0, 0.5, 1]
    scans = read(store, root, measure, "scan")
    for row in rows[2:]:
        points = states[row["pooling"]][row["layer"]]
        distances = find_neighbours(points, NUM_TEXTS - 1).distances
        assert (row["num_points"], row["num_duplicates"]) == (NUM_TEXTS, 0)
        assert (row["num_layers"], row["dimension"]) == (2, 32)
        assert row["two_nn"] == pytest.approx(two_nn(distances).value, rel=1e-9)
        assert row["mle"] == pytest.approx(local_mle(distances), rel=1e-9)
        n1 = row["gride_n1"]
        expected = gride(distances, n1, 2 * n1)
        assert [row["gride"], row["gride_low"], row["gride_high"]] == pytest.approx(
            list(expected), rel=1e-9
        )
        assert row["cka"] is row["procrustes"] is row["reason"] is None
        key = (row["layer"], row["pooling"])
        own = [scan for scan in scans if (scan["layer"], scan["pooling"]) == key]
        assert [(scan["n1"], scan["n2"]) for scan in own] == [
            (2**i, 2 ** (i + 1)) for i in range(5)
        ]
        assert [s["gride"] for s in own if s["n1"] == n1] == [row["gride"]]
        assert {scan["num_points"] for scan in own} == {NUM_TEXTS}
    assert not list(store.layout.measure(cell.fingerprint, measure.fingerprint).glob("*.npy"))


def test_a_cell_is_compared_with_its_base(tmp_path: Path, base: BaseModel, store: Store) -> None:
    measure = build_measure(tmp_path)
    root, cell = cells_of(base)
    measure_cell(store, base, root, measure)
    unchanged = measure_cell(store, base, cell, measure)
    rows = read(store, cell, measure, "representation")
    assert [row["cka"] for row in rows] == pytest.approx([1] * 6, abs=1e-12)
    assert [row["procrustes"] for row in rows] == pytest.approx([0] * 6, abs=1e-12)
    other = replace(cell, epoch=2)
    disturb(base)
    changed = measure_cell(store, base, other, measure)
    assert changed.digest != unchanged.digest
    likeness = [row["cka"] for row in read(store, other, measure, "representation")]
    assert all(0.3 < value < 0.9999 for value in likeness)
    distances = [row["procrustes"] for row in read(store, other, measure, "representation")]
    assert all(1e-4 < value < 0.7 for value in distances)


def test_few_different_states_have_no_dimension_but_a_likeness(
    tmp_path: Path, base: BaseModel, store: Store
) -> None:
    """The last tokens' embeddings are at most as many as the vocabulary's words."""
    measure = build_measure(tmp_path, num_texts=40)
    root, cell = cells_of(base)
    measure_cell(store, base, root, measure)
    disturb(base)
    measure_cell(store, base, cell, measure)
    row = read(store, cell, measure, "representation")[0]
    assert (row["layer"], row["pooling"]) == (0, "last")
    num_points = row["num_points"]
    assert num_points + row["num_duplicates"] == 40
    assert num_points < 32
    assert row["reason"] == (
        f"{num_points} of 40 texts have different states; the estimators need at least 32"
    )
    names = ("two_nn", "two_nn_low", "mle", "gride", "gride_n1", "num_clusters", "within_dimension")
    assert {row[name] for name in names} == {None}
    assert 0 < row["cka"] < 1
    assert not [
        s
        for s in read(store, cell, measure, "scan")
        if s["layer"] == 0 == s["position"] and s["pooling"] == "last"
    ]


def test_a_cell_whose_base_was_not_measured_says_what_to_do(
    tmp_path: Path, base: BaseModel, store: Store
) -> None:
    measure = build_measure(tmp_path)
    _, cell = cells_of(base)
    message = (
        f"{cell.description}: the states of llama base on texts t are not in the store; expected "
        "them, to compare with. Measure the base model first."
    )
    with pytest.raises(StoreError, match=f"^{re.escape(message)}$"):
        measure_cell(store, base, cell, measure)


def test_states_of_other_texts_are_never_compared(
    tmp_path: Path, base: BaseModel, store: Store
) -> None:
    measure = build_measure(tmp_path)
    root, cell = cells_of(base)
    measure_cell(store, base, root, measure)
    path = measure.texts.source.path
    assert path is not None
    path.write_text(path.read_text().replace("w7 ", "w8 "))
    with pytest.raises(StoreError, match=r"was measured on other texts \(texts_sha256 differ\)"):
        measure_cell(store, base, cell, measure)


def test_a_model_that_diverged_gets_no_number(
    tmp_path: Path, base: BaseModel, store: Store
) -> None:
    measure = build_measure(tmp_path)
    root, cell = cells_of(base)
    measure_cell(store, base, root, measure)
    with torch.no_grad():
        base.model.model.layers[0].mlp.up_proj.weight.fill_(float("inf"))
    start = re.escape(f"{cell.description}, text ")
    with pytest.raises(DataError, match=rf"^{start}\d+, layer 1: the model's states are not"):
        measure_cell(store, base, cell, measure)
    assert store.find(store.layout.measure(cell.fingerprint, measure.fingerprint)) is None


def test_a_cell_is_measured_once_and_gives_the_same_record_again(
    tmp_path: Path, base: BaseModel, store: Store
) -> None:
    measure = build_measure(tmp_path)
    root, _ = cells_of(base)
    first = measure_cell(store, base, root, measure)
    other = open_store(tmp_path / "other", create=True)
    assert measure_cell(other, base, root, measure).digest == first.digest
    disturb(base)
    assert measure_cell(store, base, root, measure) == first


def by_pooling(states: np.ndarray) -> dict[str, np.ndarray]:
    """Take (layers, poolings, points, dimension) apart."""
    return {"last": states[:, 0], "mean": states[:, 1]}


def draw_layers(dimensions: list[int], num_texts: int = 400) -> np.ndarray:
    """States of planted dimension in 40: (layers, poolings, texts, 40), float32."""
    layers = []
    for seed, dimension in enumerate(dimensions):
        rng = np.random.default_rng(seed)
        angles = rng.uniform(0, 2 * np.pi, (2, num_texts, dimension))
        flat = np.concatenate([np.cos(angles), np.sin(angles)], axis=2)
        axes = special_ortho_group.rvs(40, random_state=rng)[: 2 * dimension]
        layers.append(flat @ axes)
    return np.array(layers, dtype=np.float32)


def test_a_planted_rise_of_dimension_is_found_in_its_layer() -> None:
    base, tuned = draw_layers([1, 2, 2, 2]), draw_layers([1, 2, 2, 4])
    before, after = (profile_states(by_pooling(states))[0] for states in (base, tuned))
    differences = [b["gride"] - a["gride"] for a, b in zip(before, after, strict=True)]
    assert differences[:6] == [0] * 6
    assert min(differences[6:]) > 1
    compared = profile_states(by_pooling(tuned), base=by_pooling(base))[0]
    likeness = [row["cka"] for row in compared]
    assert likeness[:6] == pytest.approx([1] * 6)
    assert max(likeness[6:]) < 0.1


def test_groups_and_the_dimension_within_them_are_found() -> None:
    planted = draw_layers([2], 450)[0, 0]
    labels = np.arange(450) % 3
    planted[:, 0] += 20 * labels
    shape = describe_cloud(planted)
    assert shape.num_clusters == 3
    assert shape.within_dimension == pytest.approx(2, rel=0.15)
    assert describe_cloud(draw_layers([2], 450)[0, 0]).num_clusters == 1


def test_a_layer_without_spread_has_reasons_for_all_that_is_missing() -> None:
    base = draw_layers([2, 2], 50)
    rows, scans, curves = profile_states(by_pooling(np.ones_like(base)), base=by_pooling(base))
    assert rows[0]["reason"] == (
        "1 of 50 texts have different states; the estimators need at least 32; no likeness: "
        "states: all 50 texts have the same one; expected states that differ. Choose another "
        "layer or pooling."
    )
    assert rows[0]["cka"] is rows[0]["procrustes"] is None
    assert scans == curves == []


def test_the_subsampling_curve_is_stored(tmp_path: Path, base: BaseModel, store: Store) -> None:
    measure = build_measure(tmp_path, 130)
    root, _ = cells_of(base)
    measure_cell(store, base, root, measure)
    rows = read(store, root, measure, "representation")
    curve = [row for row in read(store, root, measure, "subsamples") if row["layer"] == 2]
    assert [row["num_points"] for row in curve] == [130, 65, 32] * 2
    assert curve[0]["two_nn"] == pytest.approx(rows[4]["two_nn"], rel=1e-12)


def test_half_precision_would_not_hold_all_states() -> None:
    """Why they are stored in float32: nothing but the range, for their likeness hardly moves."""
    states = draw_layers([5])[0, 0]
    rounded = states.astype(np.float16)
    assert debiased_cka(states, rounded) == pytest.approx(1, abs=1e-6)
    assert procrustes_distance(states, rounded) == pytest.approx(0, abs=1e-6)
    with np.errstate(over="ignore"):
        assert not np.isfinite((1e5 * states).astype(np.float16)).all()


def test_the_columns_are_those_that_tables_expect() -> None:
    assert representation._SCAN_SCHEMA.names == (
        [
            "layer",
            "position",
            "pooling",
            "n1",
            "n2",
            "gride",
            "gride_low",
            "gride_high",
            "num_points",
        ]
    )
    assert representation._SCHEMA.names == (
        [
            "layer",
            "num_layers",
            "position",
            "pooling",
            "num_points",
            "num_duplicates",
            "dimension",
            "two_nn",
            "two_nn_low",
            "two_nn_high",
            "mle",
            "gride",
            "gride_low",
            "gride_high",
            "gride_n1",
            "cka",
            "procrustes",
            "num_clusters",
            "within_dimension",
            "reason",
        ]
    )


def test_states_with_more_dimensions_than_texts_are_described_alike() -> None:
    """Rotated into 500 dimensions, the same cloud has the same shape and likeness."""
    narrow = draw_layers([2, 3], 150)
    other = narrow + 0.05 * draw_layers([3, 2], 150)
    axes = np.linalg.qr(np.random.default_rng(9).standard_normal((500, 40)))[0].T
    rows = profile_states(
        by_pooling(narrow.astype(np.float64)), base=by_pooling(other.astype(np.float64))
    )[0]
    wide = profile_states(by_pooling(narrow @ axes), base=by_pooling(other @ axes))[0]
    for row, same in zip(rows, wide, strict=True):
        assert same["dimension"] == 500
        assert same["num_clusters"] == row["num_clusters"]
        for name in ("two_nn", "mle", "gride", "within_dimension", "cka", "procrustes"):
            assert same[name] == pytest.approx(row[name], rel=1e-6), name


SENTENCES = (" Rain {} falls.", " It is {}.5 m deep?", "雨は{}。", "「{}。」", "\nA line: {}!")
CORPUS = "".join(sentence.format("1 2 3") for sentence in SENTENCES)


@pytest.fixture
def byte_base(tmp_path: Path) -> BaseModel:
    """A random model that reads bytes and what is merged of them."""
    folder = tmp_path / "bytes"
    build_model(vocab_size=320, eos_token_id=0).save_pretrained(folder)
    build_byte_tokenizer(CORPUS, size=320).save_pretrained(folder)
    return load_base(ModelSpec(name="bytes", source=Source(path=folder)))


def measure_sentences(
    store: Store, base: BaseModel, cell: CellSpec, measure: RepresentationMeasure
) -> Record:
    tokenizer = build_byte_tokenizer(CORPUS, size=320)
    return measure_representation(store, cell, measure, model=base.model, tokenizer=tokenizer)


def draw_sentences(num_texts: int, most: int = 4) -> list[list[str]]:
    """Texts of 1 to `most` sentences, no two of which are equal."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, most + 1, size=num_texts)
    return [
        [SENTENCES[rng.integers(len(SENTENCES))].format(10 * i + j) for j in range(size)]
        for i, size in enumerate(sizes)
    ]


def write_sentences(
    folder: Path, texts: list[list[str]], max_tokens: int = 256
) -> RepresentationMeasure:
    path = folder / "sentences.jsonl"
    path.write_text("".join(json.dumps({"text": "".join(text)}) + "\n" for text in texts))
    source = TextFile(source=Source(path=path), name="t")
    return RepresentationMeasure(texts=source, max_tokens=max_tokens)


def pool_by_hand(
    base: BaseModel, measure: RepresentationMeasure, texts: list[list[str]]
) -> np.ndarray:
    """Read one text at a time and average what lies in each of its sentences, in float64."""
    tokenizer = build_byte_tokenizer(CORPUS, size=320)
    pieces = {"".join(text): text for text in texts}
    points = []
    for text in load_texts(measure.texts):
        made = tokenizer(text.answer, return_offsets_mapping=True, add_special_tokens=False)
        ids = [0, *made["input_ids"]][: measure.max_tokens]
        with torch.no_grad():
            output = base.model(torch.tensor([ids]), output_hidden_states=True)
        layers = torch.stack(output.hidden_states)[:, 0, 1:].double().numpy()
        start = 0
        for piece in pieces[text.answer]:
            stop = start + len(piece)
            places = [
                place
                for place, (first, _) in enumerate(made["offset_mapping"][: len(ids) - 1])
                if start <= first < stop
            ]
            if places:
                points.append(layers[:, places].mean(axis=1))
            start = stop
    return np.stack(points, axis=1)


@pytest.mark.parametrize("max_tokens", [256, 18])
def test_each_sentence_that_was_read_is_a_point(
    tmp_path: Path, byte_base: BaseModel, store: Store, max_tokens: int
) -> None:
    texts = draw_sentences(40)
    measure = write_sentences(tmp_path, texts, max_tokens)
    root, cell = cells_of(byte_base)
    record = measure_sentences(store, byte_base, root, measure)
    folder = store.layout.measure(root.fingerprint, measure.fingerprint)
    expected = pool_by_hand(byte_base, measure, texts)
    states = np.load(folder / "states_sentence.npy")
    np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-5)
    num_written = sum(len(text) for text in texts)
    assert (expected.shape[1] < num_written) == (record.result["num_cut"] > 0) == (max_tokens == 18)
    assert record.result["num_sentences"] == expected.shape[1]
    assert record.result["poolings"] == ["last", "mean", "sentence"]
    rows = read(store, root, measure, "representation")
    assert [row["pooling"] for row in rows] == ["last", "mean", "sentence"] * 3
    assert rows[7]["num_points"] == 40
    assert rows[8]["num_points"] == expected.shape[1] > 40
    distances = find_neighbours(states[2], expected.shape[1] - 1).distances
    assert rows[8]["two_nn"] == pytest.approx(two_nn(distances).value, rel=1e-9)
    disturb(byte_base)
    measure_sentences(store, byte_base, cell, measure)
    tuned = pool_by_hand(byte_base, measure, texts)
    row = read(store, cell, measure, "representation")[8]
    assert row["cka"] == pytest.approx(debiased_cka(tuned[2], expected[2]), rel=1e-4)
    assert row["procrustes"] == pytest.approx(procrustes_distance(tuned[2], expected[2]), rel=1e-4)


def test_a_set_of_single_sentences_has_no_sentence_rows(
    tmp_path: Path, byte_base: BaseModel, store: Store
) -> None:
    """They would say what those of the mean say."""
    measure = write_sentences(tmp_path, draw_sentences(20, most=1))
    root, _ = cells_of(byte_base)
    record = measure_sentences(store, byte_base, root, measure)
    assert record.result["num_sentences"] == record.result["num_texts"] == 20
    assert record.result["poolings"] == ["last", "mean"]
    folder = store.layout.measure(root.fingerprint, measure.fingerprint)
    assert sorted(path.name for path in folder.glob("*.npy")) == [
        "states_last.npy",
        "states_mean.npy",
    ]
    rows = read(store, root, measure, "representation")
    assert {row["pooling"] for row in rows} == {"last", "mean"}


def test_of_many_sentences_a_seeded_choice_is_taken(
    tmp_path: Path, byte_base: BaseModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = draw_sentences(30)
    measure = write_sentences(tmp_path, texts)
    root, _ = cells_of(byte_base)
    monkeypatch.setattr(representation, "MAX_SENTENCES", 35)
    record = measure_sentences(store, byte_base, root, measure)
    everything = pool_by_hand(byte_base, measure, texts)
    assert record.result["num_sentences"] == everything.shape[1] > 60
    folder = store.layout.measure(root.fingerprint, measure.fingerprint)
    states = np.load(folder / "states_sentence.npy")
    assert states.shape == (3, 35, 32)
    gaps = np.abs(states[2][:, None] - everything[2]).max(axis=2)
    chosen = gaps.argmin(axis=1)
    assert gaps.min(axis=1).max() < 1e-4
    assert (np.diff(chosen) > 0).all()
    # From anywhere in the set, and others under another seed.
    assert chosen[0] < 10
    assert chosen[-1] > 50
    other = replace(measure, seed=1)
    measure_sentences(store, byte_base, root, other)
    folder = store.layout.measure(root.fingerprint, other.fingerprint)
    assert not np.array_equal(np.load(folder / "states_sentence.npy"), states)


def test_reasons_of_sentences_speak_of_sentences() -> None:
    texts = draw_layers([2, 2], 50)
    states = by_pooling(texts) | {"sentence": np.ones((2, 60, 40), dtype=np.float32)}
    rows = profile_states(states)[0]
    assert [row["pooling"] for row in rows] == ["last", "mean", "sentence"] * 2
    assert rows[2]["reason"] == (
        "1 of 60 sentences have different states; the estimators need at least 32"
    )
    assert rows[2]["num_points"] + rows[2]["num_duplicates"] == 60
