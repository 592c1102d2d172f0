"""The shipped pocket study, killed ten times and run by two coordinators at once: minutes each."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest

import sft_atlas
from coordinators import command, digests, jobs_done, run_command, run_with_kills

STUDY = Path(__file__).parents[2] / "studies" / "pocket.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    done = run_command("run", STUDY, "--store", store)
    assert done.returncode == 0, done.stderr
    return store


def test_killed_ten_times_equals_undisturbed(undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    killed = run_with_kills(STUDY, store, num_kills=10, seed=7, seconds=(5.0, 20.0))
    assert killed == 10, "the faults that this test is about did not happen"
    assert digests(store) == digests(undisturbed)
    pd.testing.assert_frame_equal(
        sft_atlas.table(STUDY, store=store), sft_atlas.table(STUDY, store=undisturbed)
    )


def test_two_coordinators_do_every_job_once(undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = command("run", STUDY, "--store", store, "--workers", 1)
    runs = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(2)]
    for run in runs:
        _, errors = run.communicate()
        assert run.returncode == 0, errors
    assert digests(store) == digests(undisturbed)
    wanted = {p.job.fingerprint for p in sft_atlas.plan(STUDY).jobs if p.job.kind != "prepare"}
    assert sorted(job for job in jobs_done(store) if job in wanted) == sorted(wanted)
