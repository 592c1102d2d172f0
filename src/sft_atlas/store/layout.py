"""Know every path of a store; nothing else names its files.

store.json                            format version
prepared/<fingerprint>/<samples>/     tokenised rows
trajectories/<fingerprint>/           outcome and loss curve of a training run
cells/<fingerprint>/                  weights of a kept epoch
scores/<cell>/<benchmark>/            per-item results of one benchmark
answers/<cell>/<benchmark>/           what a cell wrote, for a benchmark that is graded later
partial/<cell>/<benchmark>.jsonl      items of a benchmark that is being scored
requests/<fingerprint>/               a benchmark's questions as token ids of one tokenizer
probes/<cell>/                        log-likelihoods of fixed texts, to recognise a cell by
verdicts/<xx>/<program>.json          how a generated program fared
overlap/<fingerprint>/                training rows that hold a benchmark's items
extensions/<study>/<benchmark>/<n>/   more items than a study's limit, asked for while it ran
measures/<cell>/<measure>/            weight change, likelihoods, forgetting, hidden states
datasets/<fingerprint>/               a dataset under a base model
descriptions/<fingerprint>/           a dataset as texts: lengths, duplicates, diversity
similarities/<fingerprint>/           how close a dataset is to a benchmark
updates/<fingerprint>/                cosines between weight changes of a base model's cells
maps/<fingerprint>/                   places of cells on the map of all models
profiles/<processor>/<moment>/        how fast this machine's devices are; the newest counts
evidence/<name>/                      results that somebody else measured, as tables
failures/<job>/                       the latest failure of a job, until it succeeds
working/<trajectory>/                 checkpoints of a run that is not finished
leases/<job>.lock                     who works on what
log/                                  what ran when; what worker processes printed
quarantine/, tmp/                     damaged folders; folders being written
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Paths below one store's root; fingerprints are 32 hex digits."""

    root: Path

    @property
    def marker(self) -> Path:
        return self.root / "store.json"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def cells(self) -> Path:
        return self.root / "cells"

    @property
    def scores(self) -> Path:
        return self.root / "scores"

    @property
    def failures(self) -> Path:
        return self.root / "failures"

    def prepared(self, fingerprint: str) -> Path:
        """Folder of all sizes of one tokenised dataset; each size is a folder below it."""
        return self.root / "prepared" / fingerprint

    def trajectory(self, fingerprint: str) -> Path:
        return self.root / "trajectories" / fingerprint

    def working(self, trajectory: str) -> Path:
        return self.root / "working" / trajectory

    def cell(self, fingerprint: str) -> Path:
        return self.cells / fingerprint

    def score(self, cell: str, benchmark: str) -> Path:
        return self.scores / cell / benchmark

    def answers(self, cell: str, benchmark: str) -> Path:
        return self.root / "answers" / cell / benchmark

    def partial(self, cell: str, benchmark: str) -> Path:
        return self.root / "partial" / cell / f"{benchmark}.jsonl"

    def requests(self, fingerprint: str) -> Path:
        return self.root / "requests" / fingerprint

    def probe(self, cell: str) -> Path:
        return self.root / "probes" / cell

    def verdict(self, program: str) -> Path:
        return self.root / "verdicts" / program[:2] / f"{program}.json"

    def overlap(self, fingerprint: str) -> Path:
        return self.root / "overlap" / fingerprint

    def extensions(self, study: str, benchmark: str) -> Path:
        return self.root / "extensions" / study / benchmark

    @property
    def measures(self) -> Path:
        return self.root / "measures"

    def measure(self, cell: str, measure: str) -> Path:
        return self.measures / cell / measure

    @property
    def descriptions(self) -> Path:
        return self.root / "descriptions"

    def description(self, fingerprint: str) -> Path:
        return self.descriptions / fingerprint

    @property
    def similarities(self) -> Path:
        return self.root / "similarities"

    def similarity(self, fingerprint: str) -> Path:
        return self.similarities / fingerprint

    @property
    def updates(self) -> Path:
        return self.root / "updates"

    def update(self, fingerprint: str) -> Path:
        return self.updates / fingerprint

    @property
    def maps(self) -> Path:
        return self.root / "maps"

    def map(self, fingerprint: str) -> Path:
        return self.maps / fingerprint

    def profiles(self, processor: str) -> Path:
        return self.root / "profiles" / processor

    @property
    def evidences(self) -> Path:
        return self.root / "evidence"

    def evidence(self, name: str) -> Path:
        return self.evidences / name

    def dataset(self, fingerprint: str) -> Path:
        return self.root / "datasets" / fingerprint

    def failure(self, job: str) -> Path:
        return self.failures / job

    def lease(self, job: str) -> Path:
        return self.leases / f"{job}.lock"
