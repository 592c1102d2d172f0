"""Let a worker meet a full disk and too little memory, and do the next job all the same."""

import io
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_atlas.evaluate.canary import probe_model
from sft_atlas.execute.assignment import ASSIGNMENT, Assignment
from sft_atlas.execute.placement import Placement
from sft_atlas.execute.session import Worker
from sft_atlas.execute.worker import serve
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import PrepareJob, TrainJob
from tiny import LORA, build_job, build_prepared, save_base
from train.disk_trainer import mount_disk, num_used, resize_disk
from train.forked import Wish, fork

SPARE_PAGES = 60
"""A run's checkpoint does not fit into these, but a record of that does."""

SPARE_BYTES = 70 << 20
"""An adapter of the wide base trains in these, but not its 6 million weights."""


def serve_jobs(base: BaseModel, store: Store, jobs: Sequence[TrainJob]) -> dict[str, Any]:
    """Do jobs one after the other as a worker does; returns what it says and records."""
    events = io.StringIO()
    worker = Worker(
        store=store,
        placement=Placement(device="cpu", num_workers=1, checkpoint_seconds=0),
        events=events,
        base=base,
        base_probe=probe_model(base.model),
    )
    for job in jobs:
        (part,) = job.trajectory.data.parts
        wish = PrepareJob(
            model=base.spec,
            dataset=part.dataset,
            num_samples=part.num_samples,
            subset_seed=job.trajectory.data.subset_seed,
            template=job.trajectory.template,
            max_tokens=job.trajectory.max_tokens,
        )
        worker.rows[wish.fingerprint] = build_prepared()
    lines = [ASSIGNMENT.dump_json(Assignment(jobs=(job,))).decode() for job in jobs]
    serve(worker, io.StringIO("".join(f"{line}\n" for line in lines)))
    said = [json.loads(line) for line in events.getvalue().splitlines()]
    failures = [store.find(store.layout.failure(job.fingerprint)) for job in jobs]
    return {
        "ends": [event["kind"] for event in said if event["kind"] in ("done", "failed", "held")],
        "texts": [event.get("text", "") for event in said if event["kind"] == "failed"],
        "failures": [failure and failure.result for failure in failures],
        "cells": [store.has(store.layout.cell(c.fingerprint)) for job in jobs for c in job.cells],
    }


def fill_disk(wish: Wish, root: Path, _num_points: int) -> list[dict[str, Any]] | None:
    """Give a worker's store a disk that is nearly full, then one that is full, then room."""
    root.mkdir(parents=True)
    if fork(lambda: mount_disk(root))[0]:
        return None

    def do() -> list[dict[str, Any]]:
        mount_disk(root)
        store, jobs = open_store(root, create=True), wish.jobs
        serve_jobs(wish.base, store, [])
        found = []
        for spare in (SPARE_PAGES, 0):
            resize_disk(root, "nr_blocks", num_used(root, "nr_blocks") + spare)
            found.append(serve_jobs(wish.base, store, jobs))
            store.clear_failure(jobs[0].fingerprint)
        resize_disk(root, "nr_blocks", 0)
        return [*found, serve_jobs(wish.base, store, jobs)]

    status, found = fork(do)
    assert status == 0, "the worker did not live through it"
    return found


def fill_memory(_wish: Wish, root: Path, _num_points: int) -> list[dict[str, Any]]:
    """Give a worker too little memory for a full fine-tune and enough for an adapter."""

    def do() -> list[dict[str, Any]]:
        store = open_store(root, create=True)
        base = load_base(save_base(root.with_name("wide"), hidden_size=1024))
        jobs = [build_job(base.spec), build_job(base.spec, lora=LORA)]
        # What libraries set up once is there before there is too little.
        serve_jobs(base, store, [build_job(base.spec, lora=LORA, seed=1)])
        (line,) = [
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmData:")
        ]
        limit = (int(line.split()[1]) << 10) + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        return [serve_jobs(base, store, jobs)]

    status, found = fork(do)
    assert status == 0, "the worker did not live through it"
    return found
