"""Reports of a study find the map of earlier ones, and move none of its marks."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import sft_atlas
from planted_vectors import publish_vector
from report_page import payload_of
from sft_atlas.store.store import Store, open_store
from sft_atlas.store.tables import grid_of

STUDY = """
study: mapped
models: [mini-llama, mini-seed]
datasets: [mini-math, mini-code, mini-instruction]
benchmarks: [{name: mini-math, limit: 5}]
max_tokens: 64
precision: float32
methods:
  full: {learning_rate: 5.0e-4, batch_samples: 8}
blocks:
  single: {data: each, samples: 20, schedule: constant, epochs: 3, keep: every}
measures: {likelihoods: every, likelihood_items: 5}
"""
NUM_CELLS = 20
NUM_FIRST = 16

Publish = Callable[[int, int], None]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "mapped.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


@pytest.fixture
def publish(study: Path, store: Store) -> Publish:
    """Publish planted likelihoods of the study's cells from one place to another."""
    wishes = grid_of(sft_atlas.load_study(study)).cells
    assert len(wishes) == NUM_CELLS
    rng = np.random.default_rng(0)
    centres = {name: -50 + 5 * rng.normal(size=30) for name in ("mini-llama", "mini-seed")}
    rows = [centres[wish.cell.model.name] + rng.normal(size=30) for wish in wishes]

    def publish_some(first: int, last: int) -> None:
        for place in range(first, last):
            (measure,) = (m for m in wishes[place].measures if m.kind == "likelihood")
            cell, prompt = wishes[place].cell.fingerprint, rows[place].tolist()
            publish_vector(store, cell, prompt, measure=measure)

    return publish_some


def map_files(store: Store) -> dict[str, bytes]:
    found = sorted((store.layout.root / "maps").glob("*/*/map.parquet"))
    return {str(path.relative_to(store.layout.root)): path.read_bytes() for path in found}


def places_on(page: Path) -> Any:
    return payload_of(page.read_text())["model_map"]


def test_a_later_report_keeps_every_place_bit_for_bit_and_a_read_only_store_gets_none(
    study: Path, store: Store, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store.layout.root
    publish(0, NUM_FIRST)
    sft_atlas.report(study, store=root, output=tmp_path / "first.html")
    first = map_files(store)
    (name,) = first
    assert name.endswith("/0/map.parquet")
    publish(NUM_FIRST, NUM_CELLS)
    refused: list[str] = []
    # Root may write anywhere, so what a read-only disk would refuse is refused here.
    with monkeypatch.context() as disk:
        for call in ("mkdir", "rename", "replace", "link"):
            disk.setattr(os, call, guarded(getattr(os, call), root, refused))
        unwritten = sft_atlas.report(study, store=root, output=tmp_path / "unwritten.html")
    assert refused and map_files(store) == first
    written = sft_atlas.report(study, store=root, output=tmp_path / "written.html")
    assert places_on(unwritten) == places_on(written)
    assert {drawn["num_added"] for drawn in places_on(written)["maps"]} == {NUM_CELLS - NUM_FIRST}
    second = map_files(store)
    assert second[name] == first[name] and len(second) == 2
    old = pq.read_table(root / name).to_pandas()
    new = pq.read_table(root / name.replace("/0/", "/1/")).to_pandas()
    assert new["cell"].nunique() == NUM_CELLS
    assert new.loc[new["is_added"], "cell"].nunique() == NUM_CELLS - NUM_FIRST
    kept = old.merge(new, on=["cell", "method"], suffixes=("", "_new"))
    assert len(kept) == len(old) == 3 * NUM_FIRST
    for axis in ("x", "y"):
        assert kept[axis].to_numpy().tobytes() == kept[f"{axis}_new"].to_numpy().tobytes()


def guarded(call: Callable[..., None], folder: Path, refused: list[str]) -> Callable[..., None]:
    def checked(*args: object, **named: object) -> None:
        if any(folder in Path(os.fspath(a)).parents for a in args if isinstance(a, str | Path)):
            refused.append(str(args[0]))
            raise PermissionError(30, "Read-only file system", str(args[0]))
        call(*args, **named)

    return checked
