"""A local source is its bytes, wherever it lies."""

from pathlib import Path

from sft_atlas.catalog.cards import CardSource
from sft_atlas.identity import fingerprint
from sft_atlas.study.source import local_source, source_from_card


def test_a_moved_file_keeps_its_identity_and_a_changed_one_does_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    first, second = local_source(tmp_path / "a"), local_source(tmp_path / "b")
    assert fingerprint(first) == fingerprint(second)
    (tmp_path / "b").write_text("other")
    assert fingerprint(local_source(tmp_path / "b")) != fingerprint(first)


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    before = local_source(tmp_path / "model")
    (tmp_path / "model" / "weights").write_text("x")
    assert local_source(tmp_path / "model").sha256 != before.sha256


def test_what_does_not_exist_yet_has_no_digest(tmp_path: Path) -> None:
    source = local_source(tmp_path / "none")
    assert (source.sha256, source.path) == (None, tmp_path / "none")


def test_a_hub_card_keeps_every_part_of_its_address() -> None:
    card = CardSource(hub="o/n", revision="r", config="c", split="s", file="f")
    source = source_from_card(card)
    assert (source.hub, source.revision, source.config) == ("o/n", "r", "c")
    assert (source.split, source.file, source.path) == ("s", "f", None)
