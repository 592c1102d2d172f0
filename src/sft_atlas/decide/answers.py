"""Can a decision from this evidence be trusted, and how many runs of one's own does it take?

In: tables of one grid. Out: findings in words and the table `replay`. The one decision: a decision
is judged by what it gives away (regret), beside the plainest rule that one could apply by hand.
"""

from typing import Final

import pandas as pd

from sft_atlas.analyze.findings import Finding, minus, not_estimable, plural
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.decide.replay import MIXED, OURS, PLAIN, RANDOM, SINGLE, Replay, replay
from sft_atlas.store.tables import Tables

QUESTION: Final = "Can the best data for a new model be chosen in advance?"

NEGLIGIBLE: Final = 5e-4
"""A difference of regrets below this many standard deviations is shown as 0, and called none."""

UNIT: Final = "model x benchmark (or weighted mix); models are resampled"
METHOD: Final = (
    "Each model in turn is new: its datasets are forecast from the other models (mean of scores "
    "centred within model, relatives counting twice), the most promising is revealed, the rest is "
    "forecast again. Regret is the lead of the truly best dataset over the chosen one, in standard "
    "deviations of scores within models; 95 % bootstrap interval over models."
)


def decision_answered(tables: Tables, *, num_resamples: int = 1000, seed: int = 0) -> Answered:
    """Replay decisions on models whose outcome is known.

    Each model of the setting with the most runs is taken for new. Its runs are revealed one by one,
    the most promising first, and after each the choice that the evidence supports is compared with
    the truth: regret in standard deviations within models, and the share of choices among the true
    best three, beside the plain order (the other models' mean) and a random order. Weights are
    single benchmarks and random mixes of them.

    Table `replay`: weights (`single benchmarks`, `weighted mixes`), policy (`decision`, `plain
    order`, `random order`), num_revealed, regret with regret_low and regret_high, top3, difference
    (regret less that of the plain order) with difference_low and difference_high, claimed and held
    (mean probability that the decision gave its choice to be best, and how often it was),
    num_problems, num_models.
    """
    found = replay(tables, num_resamples=num_resamples, seed=seed)
    if found.reason:
        return Answered(findings=(_nothing(found.reason),), tables={"replay": found.frame})
    findings = [_regret(found, kind) for kind in (SINGLE, MIXED)]
    return Answered(
        findings=(*findings, *[_compared(found, kind) for kind in (SINGLE, MIXED)]),
        tables={"replay": found.frame},
    )


def _nothing(reason: str) -> Finding:
    return not_estimable(QUESTION, reason, scale="difference", unit=UNIT, method=METHOD)


def _row(found: Replay, kind: str, policy: str, step: int) -> "pd.Series[float]":
    frame = found.frame
    is_it = (frame["weights"] == kind) & (frame["policy"] == policy)
    row: pd.Series[float] = frame[is_it & (frame["num_revealed"] == step)].iloc[0]
    return row


def _steps(found: Replay) -> list[int]:
    return sorted(int(step) for step in found.frame["num_revealed"].unique())


def _regret(found: Replay, kind: str) -> Finding:
    """Say what a decision without a run of the new model gives away, and after some."""
    first, *later = _steps(found)
    start = _row(found, kind, OURS, first)
    parts = [
        f"{_share(row['top3'])} {_after(step)} ({row['regret']:.2f} SD)"
        for step in later
        for row in [_row(found, kind, OURS, step)]
    ]
    low, high = start["regret_low"], start["regret_high"]
    statement = (
        f"{found.setting}, {kind}: without any run of the new model, the chosen dataset is among "
        f"the true best three in {_share(start['top3'])} of {int(start['num_problems'])} cases and "
        f"gives away {start['regret']:.2f} SD [{low:.2f}, {high:.2f}]; {', '.join(parts)}. The "
        f"choice was called the best with probability {_share(start['claimed'])} on average and "
        f"was in {_share(start['held'])}."
    )
    return Finding(
        question=QUESTION,
        statement=statement,
        estimate=float(start["regret"]),
        interval=(float(low), float(high)),
        scale="count",
        n=int(start["num_problems"]),
        unit=UNIT,
        method=METHOD,
        rows=(),
    )


def _compared(found: Replay, kind: str) -> Finding:
    """Compare with the plain order at every step, and with a random one."""
    steps = _steps(found)
    rows = {step: _row(found, kind, OURS, step) for step in steps}
    parts = [
        f"{_less(row['difference'])} [{row['difference_low']:+.3f}, "
        f"{row['difference_high']:+.3f}] {_after(step)}"
        for step, row in rows.items()
    ]
    last = _row(found, kind, RANDOM, steps[-1])["regret"]
    worse = [step for step, row in rows.items() if row["difference_low"] > NEGLIGIBLE]
    better = [step for step, row in rows.items() if row["difference_high"] < -NEGLIGIBLE]
    verdict = (
        "At no step is it clearly worse than the plain order."
        if not worse
        else (f"It is clearly worse than the plain order after {', '.join(map(str, worse))}.")
    )
    if better:
        verdict += (
            (
                f" Its interval lies below 0 after {', '.join(map(str, better))} (one of "
                f"{len(steps)} steps, not adjusted for their number)."
            )
            if len(better) == 1
            else (
                f" Its intervals lie below 0 after {', '.join(map(str, better))} (of {len(steps)} "
                "steps, not adjusted for their number)."
            )
        )
    first = rows[steps[0]]
    plain = _row(found, kind, PLAIN, steps[-1])["regret"]
    return Finding(
        question=QUESTION,
        statement=minus(
            f"{kind}: against training in the order of the other models' means, the choice gives "
            f"away {', '.join(parts)} (difference of regrets in SD within models). {verdict} "
            f"After {steps[-1]} runs the plain order gives away {plain:.2f} SD, a random order "
            f"{last:.2f} SD."
        ),
        estimate=float(first["difference"]),
        interval=(float(first["difference_low"]), float(first["difference_high"])),
        scale="difference",
        n=int(first["num_problems"]),
        unit=UNIT,
        method=f"{METHOD} Paired by problem.",
        rows=(),
    )


def _less(difference: float) -> str:
    if round(abs(difference), 3) == 0:
        return "as much"
    return f"{abs(difference):.3f} SD {'less' if difference < 0 else 'more'}"


def _after(step: int) -> str:
    return "without any run" if step == 0 else f"after {plural(step, 'run')}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
