"""A result is whole or absent, found damaged when it is, and a job has one holder."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sft_atlas.errors import StoreError
from sft_atlas.store import records
from sft_atlas.store.inventory import read_inventory, set_damaged_aside
from sft_atlas.store.records import Record, make_provenance, read_record
from sft_atlas.store.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def publish(store: Store, name: str = "a", text: str = "weights") -> Record:
    def fill(aside: Path) -> dict[str, object]:
        (aside / "deep").mkdir()
        (aside / "deep" / "data.bin").write_text(text)
        return {"score": 0.5}

    return store.publish(
        store.layout.cell(name),
        schema="cell/1",
        spec={"name": name},
        fill=fill,
        provenance=lambda: make_provenance(time.time(), note="x"),
    )


def test_a_published_result_reads_back(store: Store) -> None:
    record = publish(store)
    folder = store.layout.cell("a")
    assert store.read(folder) == record
    assert store.artifact(folder, "deep/data.bin").read_text() == "weights"
    assert not list(store.layout.temporary.iterdir())


def test_two_runs_of_one_wish_share_a_digest_whatever_their_provenance(tmp_path: Path) -> None:
    first = publish(open_store(tmp_path / "one", create=True))
    second = publish(open_store(tmp_path / "two", create=True))
    assert first.digest == second.digest
    assert publish(open_store(tmp_path / "three", create=True), text="other").digest != first.digest


def test_the_first_of_two_publishers_wins(store: Store) -> None:
    first = publish(store)
    assert publish(store, text="later").digest == first.digest


def test_a_failing_writer_leaves_nothing(store: Store) -> None:
    def fill(aside: Path) -> dict[str, object]:
        (aside / "half").write_text("x")
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        store.publish(store.layout.cell("a"), schema="cell/1", spec={}, fill=fill, provenance=dict)
    assert not store.has(store.layout.cell("a"))
    assert not list(store.layout.temporary.iterdir())


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_every_flipped_bit_of_a_record_is_noticed(store: Store, position: float) -> None:
    publish(store)
    path = store.layout.cell("a") / "record.json"
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"record\.json: (was altered|is not JSON|is no record)"):
        store.read(store.layout.cell("a"))


def test_what_another_version_published_stays_and_is_not_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [store.layout.dataset("d"), store.layout.root / "drift" / "c"]
    with monkeypatch.context() as earlier:
        earlier.setattr(records, "SCHEMAS", ("dataset/1", "drift/1"))
        for folder, schema in zip(folders, ("dataset/1", "drift/1"), strict=True):
            store.publish(folder, schema=schema, spec={}, fill=lambda _: {}, provenance=dict)
    publish(store)
    assert set_damaged_aside(store) == []
    assert all(store.has(folder) for folder in folders)
    assert read_inventory(store).cells == {"a"}
    with pytest.raises(StoreError, match=r"a record of schema 'dataset/1'; this version reads"):
        store.read(folders[0])
    (folders[0] / "record.json").write_text("{}")
    assert set_damaged_aside(store) == [folders[0]]


def test_a_flipped_bit_of_an_artefact_is_noticed(store: Store) -> None:
    publish(store)
    folder = store.layout.cell("a")
    (folder / "deep/data.bin").write_text("Weights")
    with pytest.raises(StoreError) as caught:
        store.artifact(folder, "deep/data.bin")
    assert str(caught.value) == (
        f"{folder}/deep/data.bin: differs from the digest in its record. Run the study again: "
        f"the damaged folder is moved to quarantine/ and made anew."
    )
    aside = store.set_aside(folder)
    assert not store.has(folder)
    assert read_record(aside).schema == "cell/1"


def test_a_foreign_folder_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(StoreError, match="is not a store and not empty"):
        open_store(tmp_path, create=True)


def test_looking_makes_no_store(tmp_path: Path) -> None:
    store = open_store(tmp_path / "none")
    assert not store.has(store.layout.cell("a"))
    assert not store.holders()
    assert not store.layout.root.exists()


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "s", create=True)
    (tmp_path / "s/store.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match="is a store of format 99; this version reads 1"):
        open_store(tmp_path / "s", create=True)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from sft_atlas.store.store import open_store

store, when = open_store(Path(sys.argv[1]), create=True), sys.argv[2]

def fill(aside):
    (aside / "data.bin").write_bytes(b"x" * 1000)
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    return {}

def provenance():
    if when == "late":
        os.kill(os.getpid(), signal.SIGKILL)
    return {}

store.publish(store.layout.cell("a"), schema="cell/1", spec={}, fill=fill, provenance=provenance)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("when", "is_there"), [("before", False), ("late", False), ("after", True)]
)
def test_a_killed_writer_leaves_a_whole_result_or_none(
    store: Store, when: str, is_there: bool
) -> None:
    command = [sys.executable, "-c", KILLED_WRITER, str(store.layout.root), when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    folder = store.layout.cell("a")
    assert store.has(folder) == is_there
    assert folder.exists() == is_there
    publish(store)
    assert store.artifact(folder, "data.bin" if is_there else "deep/data.bin").exists()


def _open_when_told(root: Path, barrier: object, opened: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    for number in range(20):
        store = open_store(root / str(number), create=True)
        result = {"kind": "error", "message": "", "step": None, "trace": ""}
        store.record_failure(f"job-{os.getpid()}", {}, result)
    opened.put(1)  # type: ignore[attr-defined]


def test_many_processes_make_one_store_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, opened = context.Barrier(4), context.Queue()
    makers = [
        context.Process(target=_open_when_told, args=(tmp_path, barrier, opened)) for _ in range(4)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0, 0]


def _hold_if_free(root: Path, barrier: object, winners: object) -> None:
    store = open_store(root, create=True)
    barrier.wait()  # type: ignore[attr-defined]
    with store.lease("job") as mine:
        if mine:
            winners.put(os.getpid())  # type: ignore[attr-defined]
            time.sleep(0.5)


def test_of_many_processes_one_holds_a_job(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, winners = context.Barrier(6), context.Queue()
    arguments = (store.layout.root, barrier, winners)
    racers = [context.Process(target=_hold_if_free, args=arguments) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert winners.get(timeout=5) in {racer.pid for racer in racers}
    assert winners.empty()


def test_a_lease_ends_with_the_process_that_held_it(store: Store) -> None:
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from sft_atlas.store.store import open_store
        with open_store(Path(sys.argv[1]), create=True).lease("job") as mine:
            print(mine, flush=True)
            time.sleep(60)
    """)
    command = [sys.executable, "-c", code, str(store.layout.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with store.lease("job") as mine:
            assert not mine
        assert store.holders()["job"]["pid"] == holder.pid
        holder.kill()
    with store.lease("job") as mine:
        assert mine
    assert not store.holders()


def test_a_failure_is_kept_until_it_is_cleared(store: Store) -> None:
    store.record_failure("job", {"kind": "train"}, {"kind": "oom", "message": "first"})
    store.record_failure("job", {"kind": "train"}, {"kind": "oom", "message": "second"})
    assert store.read(store.layout.failure("job")).result["message"] == "second"
    store.clear_failure("job")
    assert not store.has(store.layout.failure("job"))


def test_two_processes_set_a_damaged_result_aside_once(store: Store) -> None:
    folder = store.layout.dataset("b")

    def publish() -> None:
        store.publish(
            folder,
            schema="dataset/2",
            spec={},
            fill=lambda aside: {"n": (aside / "a.txt").write_text("whole")},
            provenance=dict,
        )

    publish()
    (folder / "a.txt").write_text("other")
    store.set_aside(folder, only_damaged=True)
    assert not store.has(folder)
    # The second one saw the same damage: the folder is gone, or made anew and whole.
    store.set_aside(folder, only_damaged=True)
    publish()
    store.set_aside(folder, only_damaged=True)
    assert store.has(folder)
    store.set_aside(folder)
    assert not store.has(folder)
