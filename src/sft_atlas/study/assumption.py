"""Name what a cost estimate takes for granted: each value with its low, its high and its source.

`low` and `high` are the ends that make a plan cheap and dear, so they are not always the smaller
and the larger number.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Final, NamedTuple


class Range(NamedTuple):
    """An estimate with the ends that all assumptions together would give."""

    low: float
    likely: float
    high: float

    def plus(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, factor: float) -> "Range":
        return Range(self.low * factor, self.likely * factor, self.high * factor)


NOTHING: Final = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumption:
    """One thing that the estimate takes for granted."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One value of every quantity that no file states."""

    token_factor: float
    train_utilisation: float
    score_utilisation: float
    padding_factor: float
    packing_factor: float
    supervised_fraction: float
    speed_factor: float
    scored_bytes_per_weight: float
    bandwidth_fraction: float
    decode_length: float
    unmerged_factor: float
    layer_factor: float
    load_bytes_per_second: float
    save_bytes_per_second: float
    job_seconds: float
    benchmark_seconds: float
    checkpoint_fraction: float
    prepare_samples_per_second: float
    texts_per_second: float
    estimate_fraction: float
    estimate_seconds: float


_OF_PROFILES: Final = "speed_factor"
"""Counts only where a device was measured."""

_TABLE: Final = {
    "token_factor": (
        (0.7, 1.0, 1.5),
        "mean tokens per sample and per question, relative to the cards",
        "most cards infer them from descriptions of the data",
    ),
    "train_utilisation": (
        (0.45, 0.35, 0.2),
        "fraction of the peak in training, once a step is long enough to fill the device",
        "35 % of an H100 reproduces common reports; a core of the test machine reaches 37 %",
    ),
    "score_utilisation": (
        (0.5, 0.35, 0.15),
        "fraction of the peak in likelihood scoring and in reading prompts",
        "as training; less where prompts are short",
    ),
    "padding_factor": (
        (1.0, 1.1, 1.4),
        "computed tokens per real token in scoring batches, which are sorted by length",
        "packing gains up to 1.15x over batches grouped by length",
    ),
    "packing_factor": (
        (1.0, 1.02, 1.1),
        "computed tokens per real token in training, where samples stand end to end",
        "packed lines hold no padding; attention pads documents of similar length",
    ),
    "supervised_fraction": (
        (0.4, 0.6, 0.9),
        "part of a sample's tokens that is supervised: the output head is computed for no other",
        "half to two thirds of instruction data; a dataset that was measured counts as it is",
    ),
    "speed_factor": (
        (0.92, 1.0, 1.16),
        "time of a pass, relative to what was measured of its base model",
        "spread of the repeats",
    ),
    "scored_bytes_per_weight": (
        (2.0, 4.0, 6.0),
        "bytes read per weight and decoded token",
        "weights are held in float32; a bfloat16 copy would halve it, a cast adds to it",
    ),
    "bandwidth_fraction": (
        (0.8, 0.6, 0.35),
        "fraction of the memory bandwidth that decoding reaches",
        "usual for batched decoding without fused kernels",
    ),
    "decode_length": (
        (0.1, 0.3, 1.0),
        "steps of a decoding batch, from the mean answer (0) to the limit of new tokens (1)",
        "a batch ends with its longest answer: 0.12 on the miniature study, where each of 7,700 "
        "answers ended by itself; 1 where base models do not stop",
    ),
    "unmerged_factor": (
        (1.1, 2.2, 4.0),
        "time of scoring an adapter that is not merged, relative to a merged one",
        "released hours per cell, LoRA to full: 0.8 to 4.5 by family, 2.2 of the sums (OLMo left "
        "out: 9.5, another engine); counted only where the plan compares ways of evaluating",
    ),
    "layer_factor": (
        (0.5, 1.0, 1.5),
        "time to issue a layer's kernels, relative to the device's card",
        "depends on the host's processor",
    ),
    "load_bytes_per_second": (
        (4e9, 2e9, 0.5e9),
        "rate at which base weights come into the device's memory, bytes/s",
        "local SSD or page cache; a network drive is slower",
    ),
    "save_bytes_per_second": (
        (1.5e9, 0.6e9, 0.2e9),
        "rate at which a cell's weights are written, forced to disk and digested, bytes/s",
        "SSD at 1-3 GB/s, SHA-256 at 1-2 GB/s",
    ),
    "job_seconds": (
        (0.05, 0.3, 3.0),
        "fixed time of a job: claim it, open its data, make an optimizer, publish, s",
        "measured on the miniature study",
    ),
    "benchmark_seconds": (
        (0.005, 0.01, 0.05),
        "fixed time of one benchmark on one cell: find its questions, write and publish, s",
        "8 ms on the miniature study",
    ),
    "checkpoint_fraction": (
        (0.0, 0.02, 0.1),
        "time spent on checkpoints, per training time",
        "they are written beside training, one a minute or less often; a step waits for a copy",
    ),
    "prepare_samples_per_second": (
        (5000.0, 2000.0, 500.0),
        "samples read and tokenised per second",
        "one core, fast tokenizers",
    ),
    "texts_per_second": (
        (8000.0, 3000.0, 500.0),
        "texts that a core describes, or embeds by their words, per second",
        "52,000 rows of 60 words described in 19 s; longer texts take longer",
    ),
    "estimate_fraction": (
        (0.3, 0.1, 0.03),
        "fraction of the peak in decompositions of matrices and in estimates from distances",
        "bound by memory, and partly in float64; a core reaches 35 % in products alone",
    ),
    "estimate_seconds": (
        (0.0005, 0.001, 0.005),
        "fixed time of one decomposition of a matrix, or of one estimate from a layer's states, s",
        "1 ms on the miniature study, whose matrices are small",
    ),
}


MeasuredValues = dict[str, tuple[tuple[float, float, float], str]]
"""By name of a `Scenario`'s quantity: its three values as a device's profile gives them, and their
source."""


def scenarios(measured: MeasuredValues | None = None) -> tuple[Scenario, Scenario, Scenario]:
    """Return the cheap, the likely and the dear end of all assumptions, less what is measured."""
    if not measured:
        return _assumed_scenarios()
    values = {name: values for name, (values, _) in measured.items()}
    low, likely, high = (
        replace(assumed, **{name: ends[i] for name, ends in values.items()})
        for i, assumed in enumerate(_assumed_scenarios())
    )
    return low, likely, high


@cache
def _assumed_scenarios() -> tuple[Scenario, Scenario, Scenario]:
    low, likely, high = (
        Scenario(**{name: values[i] for name, (values, _, _) in _TABLE.items()}) for i in range(3)
    )
    return low, likely, high


def named_assumptions(measured: MeasuredValues | None = None) -> list[Assumption]:
    """Return every scenario quantity with its three values and its source."""
    found = []
    for name, (assumed, meaning, why) in _TABLE.items():
        if name == _OF_PROFILES and not measured:
            continue
        values, source = (measured or {}).get(name, (assumed, why))
        text = f"{values[1]:.4g} (low {values[0]:.4g}, high {values[2]:.4g})"
        found.append(Assumption(name=f"{name}: {meaning}", value=text, source=source))
    return found
