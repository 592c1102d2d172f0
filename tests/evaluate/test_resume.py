"""An evaluation that was killed goes on at the next item, and ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from sft_atlas.evaluate.answer import ItemResult
from sft_atlas.evaluate.journal import Journal
from sft_atlas.store.store import open_store
from tiny import build_model

from . import kill_evaluator

FIRST = ItemResult(1.0, "Paris", -0.1 - 0.2, None, None)
SECOND = ItemResult(None, None, None, None, "a logit is not finite")


@pytest.mark.parametrize("num_points", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_an_evaluation_killed_at_many_points_ends_in_the_same_bytes(
    tmp_path: Path, num_points: int
) -> None:
    done = subprocess.run(
        [sys.executable, kill_evaluator.__file__, str(tmp_path), str(num_points)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["statuses"] == [-signal.SIGKILL] * num_points
    assert set(found["digests"]) == {found["digest"]}
    assert found["num_batches"] >= 8
    # Each process died later than the one before it, and what it had kept was not scored again.
    assert found["resumed"] == sorted(found["resumed"])
    assert found["resumed"][0] == 0
    assert found["resumed"][-1] >= kill_evaluator.NUM_ITEMS - 2


def test_two_evaluators_at_once_leave_one_result_and_count_no_item_twice(tmp_path: Path) -> None:
    benchmark = kill_evaluator.make_benchmark(tmp_path)
    alone, _ = kill_evaluator.evaluate(open_store(tmp_path / "alone", create=True), benchmark)
    store = open_store(tmp_path / "store", create=True)
    start = threading.Barrier(3)
    found: list[tuple[str, int]] = []

    def work(model: PreTrainedModel) -> None:
        start.wait()
        found.append(kill_evaluator.evaluate(store, benchmark, model))

    threads = [threading.Thread(target=work, args=[build_model()]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [digest for digest, _ in found] == [alone] * 3


def test_a_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    with Journal(path, ItemResult) as journal:
        assert journal.done == {}
        journal.append([(0, FIRST), (5, SECOND)])
        journal.append([(2, FIRST)])
    with Journal(path, ItemResult) as journal:
        assert journal.done == {0: FIRST, 5: SECOND, 2: FIRST}
        assert journal.num_damaged == 0


def test_a_damaged_line_is_scored_again_and_the_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, ItemResult) as journal:
        journal.append([(i, FIRST) for i in range(6)])
    content = bytearray(path.read_bytes())
    lines = path.read_bytes().splitlines(keepends=True)
    content[len(lines[0]) + 20] ^= 1
    path.write_bytes(bytes(content[:-3]))
    with Journal(path, ItemResult) as journal:
        assert sorted(journal.done) == [0, 2, 3, 4]
        assert journal.num_damaged == 2
        journal.append([(1, FIRST), (5, SECOND)])
    with Journal(path, ItemResult) as journal:
        assert sorted(journal.done) == [0, 1, 2, 3, 4, 5]


def test_an_item_that_stands_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, ItemResult) as journal:
        journal.append([(0, FIRST)])
        journal.append([(0, FIRST)])
    with Journal(path, ItemResult) as journal:
        assert journal.done == {0: FIRST}


def test_a_journal_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, ItemResult) as first:
        first.append([(0, FIRST)])
        with Journal(path, ItemResult) as second:
            assert second.done == {}
            second.append([(1, SECOND)])
        first.append([(2, FIRST)])
    with Journal(path, ItemResult) as journal:
        assert sorted(journal.done) == [0, 2]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_full_disk_loses_no_item_that_was_kept(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        num_kept = 0
        with (
            Journal(disk / "journal.jsonl", ItemResult) as journal,
            pytest.raises(OSError, match="No space"),
        ):
            for i in range(10_000):
                journal.append([(i, FIRST)])
                num_kept = i + 1
        assert num_kept > 50
        with Journal(disk / "journal.jsonl", ItemResult) as journal:
            assert sorted(journal.done) == list(range(num_kept))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
