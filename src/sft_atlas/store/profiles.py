"""Keep how fast this machine's devices were measured to be; the newest measurement counts.

A profile is an immutable record below the fingerprint of its processor. It is read for that
processor alone: what another machine measured says nothing here.
"""

import time
from pathlib import Path
from typing import Any, Final

from sft_atlas.machine import Check, Processor
from sft_atlas.store.records import make_provenance
from sft_atlas.store.states import list_names
from sft_atlas.store.store import Store
from sft_atlas.study.profile import BUSY_LOAD, PROFILE, Profile

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


def profile_checks(store: Store, processor: Processor) -> list[Check]:
    """Say what is known of a processor's speed, in lines of `doctor`."""
    folder, profile = newest_profile(store, processor), read_profile(store, processor)
    if folder is None or profile is None:
        return [
            Check(
                name="speed",
                status="limited",
                found=f"{processor.name} was not measured; plans rest on device cards",
                needed_for="times of `plan` and `status`",
                fix="sft-atlas doctor --measure STUDY",
            )
        ]
    device, is_busy = profile.device, profile.load > BUSY_LOAD
    half = f", {device.peak_flops / 1e12:.3g} in bfloat16" if device.kind == "gpu" else ""
    found = [
        Check(
            name="speed",
            status="limited" if is_busy else "ok",
            found=f"{device.float32_flops / 1e12:.3g} TFLOP/s in float32{half}, "
            f"{device.bandwidth / 1e9:.3g} GB/s, {1e3 * device.train_layer_seconds:.3g} ms per "
            f"layer and training step; {device.source}; {folder}",
            needed_for="times of `plan` and `status`",
            fix="measure again when nothing else runs" if is_busy else "",
        )
    ]
    for speed in profile.speeds:
        text = f"{speed.tokens_per_second:,.0f} tokens/s in passes of {speed.pass_tokens:,}"
        found.append(
            Check(
                name=f"{speed.name}, {speed.work}",
                status="ok",
                found=f"{text}, {speed.date}",
                needed_for=f"times of its {'scores' if speed.work == 'score' else 'runs'}",
            )
        )
    for skipped in profile.skipped:
        found.append(
            Check(
                name=skipped.name,
                status="limited",
                found=f"not measured: {skipped.reason}",
                needed_for="times of its runs; they rest on other base models",
            )
        )
    return found
