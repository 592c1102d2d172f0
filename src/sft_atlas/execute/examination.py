"""Say what this machine can do, what is missing for what, and how fast it was measured to be."""

import time
from importlib import metadata
from pathlib import Path

from sft_atlas import machine
from sft_atlas.execute.placement import detect_placement
from sft_atlas.execute.profiling import candidates_of, measure_profile
from sft_atlas.sandbox.sandbox import why_unavailable
from sft_atlas.store.layout import Layout
from sft_atlas.store.profiles import profile_checks, read_profile, record_profile
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.study import Study


def examine(folder: Path) -> list[machine.Check]:
    """Look at the machine, its libraries, the sandbox, and what a store knows of its speed."""
    found = [*machine.examine(folder), _sandbox_check()]
    if Layout(folder.absolute()).marker.is_file():
        found += profile_checks(open_store(folder), machine.this_processor())
    return found


def measure_device(study: Study | None, store: Store) -> None:
    """Time the device, and the base models of a study if there is one, and keep it in a store."""
    started, processor = time.time(), machine.this_processor()
    candidates = [] if study is None else candidates_of(study)
    profile = measure_profile(processor, detect_placement(), candidates)
    profile = profile.beside(read_profile(store, processor))
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    record_profile(store, processor, profile, started=started, **versions)


def _sandbox_check() -> machine.Check:
    reason = why_unavailable()
    return machine.Check(
        name="sandbox",
        status="ok" if reason is None else "missing",
        found="bubblewrap works" if reason is None else reason,
        needed_for="benchmarks that run what a model wrote: humaneval, mbpp",
        fix="" if reason is None else "install bubblewrap (Debian: apt-get install bubblewrap)",
    )
