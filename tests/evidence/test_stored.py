"""Imported results are kept unchanged under a name that stands for one content."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from released_form import write_grid
from sft_atlas.errors import DamagedError, StoreError
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.imported import Imported, import_results
from sft_atlas.evidence.stored import check_name, list_evidence, load_evidence, store_evidence
from sft_atlas.store.store import Store, open_store

DEFECT = Defect(
    kind="planted",
    columns=("gsm8k-0shot",),
    rows=(2, 3),
    where="here",
    evidence="as seen",
    effect="wrong",
    treatment="note",
    what_is_done="nothing",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


@pytest.fixture
def found(tmp_path: Path) -> Imported:
    read = import_results("massive-sft", write_grid(tmp_path / "t.csv"))
    return replace(read, defects=(DEFECT,), notes=("said",))


def test_what_is_loaded_is_what_was_stored(store: Store, found: Imported) -> None:
    assert store_evidence(store, found)
    loaded = load_evidence(store, "massive-sft")
    for name in ("cells", "scores"):
        pd.testing.assert_frame_equal(getattr(loaded.tables, name), getattr(found.tables, name))
        pd.testing.assert_frame_equal(getattr(loaded.released, name), getattr(found.released, name))
    assert (loaded.defects, loaded.checks, loaded.notes) == ((DEFECT,), found.checks, ("said",))
    assert (loaded.kind, loaded.origin, loaded.sha256) == (found.kind, found.origin, found.sha256)


def test_the_record_names_its_source_and_counts(store: Store, found: Imported) -> None:
    store_evidence(store, found)
    record = store.read_verified(store.layout.evidence("massive-sft"))
    assert record.schema == "evidence/1"
    assert record.spec == {
        "kind": "massive-sft",
        "name": "massive-sft",
        "importer": 1,
        "sha256": found.sha256,
    }
    assert record.provenance["origin"] == found.origin
    assert {key: record.result[key] for key in found.counts()} == found.counts()
    assert set(record.artifacts) == {"cells.parquet", "scores.parquet", "scores_released.parquet"}


def test_the_same_results_again_change_nothing(store: Store, found: Imported) -> None:
    assert store_evidence(store, found)
    before = store.read(store.layout.evidence("massive-sft")).provenance
    assert not store_evidence(store, found)
    assert store.read(store.layout.evidence("massive-sft")).provenance == before


def test_a_name_stands_for_one_content(store: Store, found: Imported, tmp_path: Path) -> None:
    store_evidence(store, found)
    other = import_results("massive-sft", write_grid(tmp_path / "o.csv", seed=1))
    with pytest.raises(StoreError) as error:
        store_evidence(store, other)
    assert str(error.value) == (
        f"{store.layout.evidence('massive-sft')}: holds other results, from {found.origin} "
        f"(SHA-256 {found.sha256[:12]}); expected the same results again. Choose another name "
        f"with --name."
    )
    assert store_evidence(store, replace(other, name="second"))
    assert list_evidence(store) == ("massive-sft", "second")


def test_other_defects_of_the_same_file_are_another_version(store: Store, found: Imported) -> None:
    store_evidence(store, found)
    with pytest.raises(StoreError, match="was made of the same results by another version of the"):
        store_evidence(store, replace(found, defects=()))


def test_what_is_not_there_is_named_with_what_is(store: Store, found: Imported) -> None:
    with pytest.raises(StoreError) as error:
        load_evidence(store, "massive")
    assert str(error.value) == (
        f"{store.layout.root}: has no imported results 'massive'; it holds none. See `sft-atlas "
        f"import`."
    )
    store_evidence(store, found)
    with pytest.raises(StoreError, match="'massive'; did you mean massive-sft"):
        load_evidence(store, "massive")


def test_a_store_without_evidence_lists_none(tmp_path: Path) -> None:
    assert list_evidence(open_store(tmp_path / "nowhere")) == ()


def test_altered_tables_are_noticed(store: Store, found: Imported) -> None:
    store_evidence(store, found)
    path = store.layout.evidence("massive-sft") / "scores.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError) as caught:
        load_evidence(store, "massive-sft")
    assert str(caught.value) == (
        f"{path}: differs from the digest in its record. Remove the folder {path.parent} and "
        f"import the results again."
    )


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a b", "a/b", "x" * 65, "名"])
def test_names_that_are_no_folder_are_refused(name: str) -> None:
    with pytest.raises(StoreError) as error:
        check_name(name)
    assert str(error.value) == (
        f"name {name!r}: cannot name a folder; expected up to 64 letters, digits, '.', '-' or "
        f"'_', the first a letter or digit. Choose one with --name."
    )
