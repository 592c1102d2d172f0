"""Keep how fast this machine's devices were measured to be; the newest measurement counts.

A profile is an immutable record below the fingerprint of its processor. It is read for that
processor alone: what another machine measured says nothing here.
"""

import time
from pathlib import Path
from typing import Any, Final

from sft_atlas.machine import Processor
from sft_atlas.store.records import make_provenance
from sft_atlas.store.states import list_names
from sft_atlas.store.store import Store
from sft_atlas.study.profile import PROFILE, Profile

SCHEMA: Final = "profile/1"


def record_profile(
    store: Store, processor: Processor, profile: Profile, *, started: float, **facts: Any
) -> Path:
    """Publish a measurement and return its folder; `facts` go into its provenance."""
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(started))
    folder = store.layout.profiles(processor.key) / f"{moment}-{time.time_ns() % 10**9:09d}"
    spec = {name: getattr(processor, name) for name in ("kind", "name", "model", "count")}
    store.publish(
        folder,
        schema=SCHEMA,
        spec=spec,
        fill=lambda _: PROFILE.dump_python(profile, mode="json"),
        provenance=lambda: make_provenance(started, **facts),
    )
    return folder


def newest_profile(store: Store, processor: Processor) -> Path | None:
    """Return the folder of a processor's newest profile; None where it was never measured."""
    folder = store.layout.profiles(processor.key)
    names = sorted(list_names(folder), reverse=True)
    return next((folder / name for name in names if store.has(folder / name)), None)


def read_profile(store: Store, processor: Processor) -> Profile | None:
    """Read a processor's newest profile; raises DamagedError if it was altered."""
    folder = newest_profile(store, processor)
    return None if folder is None else PROFILE.validate_python(store.read(folder).result)
