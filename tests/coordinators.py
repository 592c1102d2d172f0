"""Start, kill and compare runs of a study, from the outside, as a user would."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from sft_atlas.store.records import read_record


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "sft_atlas", *map(str, words)]


def run_command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False)


def digests(store: Path) -> dict[str, str]:
    """Every published result's digest, which covers its spec, numbers and all its files."""
    folders = [path.parent for path in store.rglob("record.json") if "quarantine" not in path.parts]
    return {str(folder.relative_to(store)): read_record(folder).digest for folder in folders}


def jobs_done(store: Path) -> list[str]:
    """Fingerprints of all jobs that a worker really did, with repetitions."""
    logs = (store / "log").glob("*.jsonl")
    lines = [line for log in logs for line in log.read_text().splitlines()]
    events = [json.loads(line) for line in lines]
    return [event["job"] for event in events if event["kind"] == "done" and not event["text"]]


def run_with_kills(
    study: Path, store: Path, *, num_kills: int, seed: int, seconds: tuple[float, float]
) -> int:
    """Kill the whole process group at random moments, rerun each time, and let the last run end.

    Returns how many runs were killed while they worked: fewer than asked where one ended before.
    """
    moments = random.Random(seed)
    for number in range(num_kills + 1):
        run = subprocess.Popen(
            command("run", study, "--store", store),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if number == num_kills:
            assert run.wait() == 0
            return number
        time.sleep(moments.uniform(*seconds))
        if run.poll() is not None:
            assert run.returncode == 0
            return number
        os.killpg(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    raise AssertionError("the loop ends with its last run")
