"""How often would forecasts have held?

In: a panel of outcomes. Out: figures of every candidate where whole models, whole datasets or
random runs are hidden, and those of the choice among candidates. The choice is nested: for each
hidden group the candidate is chosen, and the width of intervals set, by how the other groups are
forecast with that group hidden as well. Candidates are chosen by pairwise accuracy, because a
forecast is there to choose with.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.findings import plural
from sft_atlas.forecast.candidates import AVERAGE_DATA, FOR_DATA, FOR_MODELS, OTHERS
from sft_atlas.forecast.figures import add, figures, pairwise_accuracy
from sft_atlas.forecast.panel import Panel, own_skill
from sft_atlas.forecast.told import (
    Results,
    Told,
    hole_results,
    new_data_results,
    new_model_results,
    tell_models,
)
from sft_atlas.statistics.clusters import Floats, Ints
from sft_atlas.statistics.conformal import calibrated_margin

NEW_MODEL: Final = "new model"
HOLES: Final = "random holes"
NEW_DATA: Final = "new dataset"

CHOSEN: Final = "chosen"
"""In the column `candidate`: the nested choice."""

MIN_GROUPS: Final = 3
"""Fewest models (datasets) for a back-test: one is hidden, and one more to choose by."""

MAX_TESTED: Final = 12
NUM_BLOCKS: Final = 6
"""For the nested choice, hidden groups are hidden together with one block of others at a time."""

BASELINES: Final = {NEW_MODEL: OTHERS, HOLES: OTHERS, NEW_DATA: AVERAGE_DATA}
"""The plain candidate that a scheme's others are compared with."""

COLUMNS: Final = (
    *("scheme", "candidate", "is_chosen", "pairwise_accuracy", "top1", "top3", "regret"),
    *("random_regret", "rmse", "correlation", "coverage", "worst_coverage", "worst_group"),
    *("width", "num_problems", "num_groups"),
)
_SUMS: Final = ("num_right", "num_pairs", "num_problems", "regret")
GROUP_COLUMNS: Final = ("scheme", "candidate", "group", *_SUMS, "coverage", "used")


@dataclass(frozen=True, kw_only=True)
class BackTest:
    """How often forecasts held where the truth is known."""

    frame: pd.DataFrame
    """One row per scheme and candidate, columns `COLUMNS`: regret, random_regret, rmse and width in
    standard deviations of a benchmark's gains; rmse is of differences between datasets; correlation
    that of gains; coverage of 90 % intervals (new model: of gains; else of scores), mean over
    groups and of the worst group. The candidate `chosen` is the nested choice. A figure that does
    not exist is null."""
    groups: pd.DataFrame
    """One row per scheme, candidate and hidden group: group, num_right, num_pairs, num_problems,
    regret (sum over problems), coverage, and `used`: the candidate that made its forecasts."""
    chosen: Mapping[str, str]
    """Candidate by scheme: what a forecast uses."""
    margins: Mapping[str, float]
    """By scheme: half-width of the 90 % interval in units of the panel's scale; infinite where too
    few groups were left out."""
    variance_ratios: Mapping[str, float] = field(default_factory=dict)
    """By candidate for new models: squared errors over those that the joint covariance expected."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By scheme: why it could not be tested."""


@dataclass(frozen=True, kw_only=True)
class _Trials:
    """Results of hidden groups: alone, and (group, other) of the other while both are hidden."""

    alone: Mapping[int, Results]
    nested: Mapping[tuple[int, int], Results]


def back_test_panel(panel: Panel, *, seed: int = 0) -> BackTest:
    """Hide models, datasets and runs of a panel in turn, and compare."""
    rows: list[dict[str, object]] = []
    parts: list[dict[str, object]] = []
    chosen: dict[str, str] = {}
    margins: dict[str, float] = {}
    reasons: dict[str, str] = {}
    ratios: dict[str, float] = {}
    for scheme, trials, names in _schemes(panel, seed, reasons):
        candidates = [name for name in names if _exists(trials, name)]
        is_tested = any(
            result.problems.num_pairs
            for results in trials.alone.values()
            for result in results.values()
        )
        if not is_tested or not candidates:
            reasons[scheme] = "no two datasets with different outcomes can be compared"
            continue
        accuracy = {name: _accuracy(trials.alone.values(), name) for name in candidates}
        chosen[scheme] = max(candidates, key=lambda name: accuracy[name])
        margins[scheme] = _margin(trials.alone, chosen[scheme])
        if scheme == NEW_MODEL:
            ratios = {name: _variance_ratio(trials, name) for name in candidates}
        labels = panel.datasets if scheme == NEW_DATA else panel.models
        picked = {name: dict.fromkeys(trials.alone, name) for name in candidates}
        picked[CHOSEN] = {
            group: _nested_choice(trials, group, candidates) for group in trials.alone
        }
        for name, candidate in picked.items():
            covered, width = _coverage(trials, candidate)
            row = _row(trials, candidate, labels, covered) | {"width": width}
            if scheme == NEW_DATA:
                # All choices but one are known: which is the best of them is no forecast.
                row |= dict.fromkeys(("top1", "top3", "regret", "random_regret"))
            is_chosen = name == chosen[scheme]
            rows.append({"scheme": scheme, "candidate": name, "is_chosen": is_chosen} | row)
            for group, used in candidate.items():
                sums = trials.alone[group][used].problems
                part = {key: getattr(sums, key) for key in _SUMS}
                part |= {"coverage": covered.get(group), "used": used, "group": labels[group]}
                parts.append({"scheme": scheme, "candidate": name} | part)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    details = pd.DataFrame(parts, columns=list(GROUP_COLUMNS))
    return BackTest(
        frame=frame,
        groups=details,
        chosen=chosen,
        margins=margins,
        variance_ratios=ratios,
        reasons=reasons,
    )


def _schemes(
    panel: Panel, seed: int, reasons: dict[str, str]
) -> Sequence[tuple[str, _Trials, Sequence[str]]]:
    """Run every scheme that can be; say in `reasons` why another cannot."""
    found: list[tuple[str, _Trials, Sequence[str]]] = []
    seen = np.isfinite(panel.value)
    models = _tested(np.flatnonzero(seen.any(axis=(1, 2, 3))), seed)
    datasets = _tested(np.flatnonzero(seen.any(axis=(0, 1, 3))), seed)
    if len(models) < MIN_GROUPS or len(datasets) < 2:
        counts = f"{plural(len(models), 'model')} and {plural(len(datasets), 'dataset')}"
        why = f"{counts}; a back-test takes {MIN_GROUPS} models and 2 datasets"
        reasons |= {NEW_MODEL: why, HOLES: why}
    else:
        told: dict[tuple[int, ...], Told] = {}

        def tell(hidden: tuple[int, ...]) -> Told:
            return told.setdefault(hidden, told.get(hidden) or tell_models(panel, hidden))

        trials = _run(models, lambda hidden: new_model_results(panel, tell(hidden)))
        found.append((NEW_MODEL, trials, FOR_MODELS))
        trials = _run(models, lambda hidden: hole_results(panel, tell(hidden), seed=seed))
        found.append((HOLES, trials, FOR_MODELS))
    if len(datasets) < MIN_GROUPS + 1:
        reasons[NEW_DATA] = (
            f"{plural(len(datasets), 'dataset')}; a back-test takes {MIN_GROUPS + 1}"
        )
    elif panel.properties.shape[-1] == 0 and not own_skill(panel).any():
        reasons[NEW_DATA] = "nothing is known about the data: no group, no measured property"
    else:
        trials = _run(datasets, lambda hidden: new_data_results(panel, hidden))
        found.append((NEW_DATA, trials, FOR_DATA))
    return found


def _tested(groups: Ints, seed: int) -> list[int]:
    """All groups, or `MAX_TESTED` of them drawn at random."""
    rng = np.random.default_rng([seed, 0x7E57])
    return sorted(int(g) for g in rng.permutation(groups)[:MAX_TESTED])


def _run(groups: list[int], results: Callable[[tuple[int, ...]], Mapping[int, Results]]) -> _Trials:
    """Hide each group alone, and each pair of blocks of groups."""
    alone = {group: found for group in groups for found in results((group,)).values()}
    blocks = [groups[start::NUM_BLOCKS] for start in range(min(NUM_BLOCKS, len(groups)))]
    nested: dict[tuple[int, int], Results] = {}
    for first, second in combinations(blocks, 2):
        both = results(tuple(sorted(first + second)))
        for hidden, others in ((first, second), (second, first)):
            nested |= {(g, o): both[o] for g in hidden for o in others if o in both}
    return _Trials(alone=alone, nested=nested)


def _exists(trials: _Trials, name: str) -> bool:
    """Tell whether a candidate forecasts something in every group."""
    every = [*trials.alone.values(), *trials.nested.values()]
    return bool(every) and all(
        name in results and np.isfinite(results[name].guess).any() for results in every
    )


def _accuracy(many: Iterable[Results], name: str) -> float:
    parts = [results[name].problems for results in many]
    found = pairwise_accuracy(add(parts)) if parts else None
    return -1.0 if found is None else found


def _nested_choice(trials: _Trials, group: int, candidates: Sequence[str]) -> str:
    """Choose a candidate without a group: by the others, forecast while it is hidden too."""
    others = [results for (hidden, _), results in trials.nested.items() if hidden == group]
    accuracy = {name: _accuracy(others, name) for name in candidates}
    return max(candidates, key=lambda name: accuracy[name])


def _margin(by_group: Mapping[int, Results], name: str) -> float:
    errors = {g: _errors(results, name) for g, results in by_group.items()}
    if not errors:
        return float("inf")
    sizes = [part.size for part in errors.values()]
    return calibrated_margin(np.concatenate(list(errors.values())), np.repeat(list(errors), sizes))


def _variance_ratio(trials: _Trials, name: str) -> float:
    """How much larger errors were than the joint covariance said; 1 where it said nothing."""
    results = [found[name] for found in trials.alone.values()]
    missed = sum(float(np.nansum((r.truth - r.guess) ** 2)) for r in results)
    expected = sum(result.expected_square for result in results)
    return missed / expected if missed > 0 and expected > 0 else 1.0


def _errors(results: Results, name: str) -> Floats:
    """Absolute errors of gains that exist."""
    error = np.abs(results[name].gain - results[name].gain_guess)
    found: Floats = error[np.isfinite(error)]
    return found


def _coverage(trials: _Trials, picked: Mapping[int, str]) -> tuple[dict[int, float], float | None]:
    """Share of each group's gains within the interval that the other groups set, and mean width."""
    covered, widths = {}, []
    for group, name in picked.items():
        others = {o: found for (g, o), found in trials.nested.items() if g == group}
        margin = _margin(others, name)
        errors = _errors(trials.alone[group], name)
        if np.isfinite(margin) and errors.size:
            covered[group] = float((errors <= margin).mean())
            widths.append(2 * margin)
    return covered, float(np.mean(widths)) if widths else None


def _row(
    trials: _Trials,
    picked: Mapping[int, str],
    labels: Sequence[str],
    covered: Mapping[int, float],
) -> dict[str, object]:
    """Figures of forecasts in which each group has the candidate that was picked for it."""
    results = {group: trials.alone[group][name] for group, name in picked.items()}
    worst = min(covered, key=lambda g: covered[g]) if covered else None
    missed = np.concatenate([result.truth - result.guess for result in results.values()])
    missed = missed[np.isfinite(missed)]
    gain = np.concatenate([result.gain for result in results.values()])
    guess = np.concatenate([result.gain_guess for result in results.values()])
    return figures(add([result.problems for result in results.values()])) | {
        "rmse": float(np.sqrt((missed**2).mean())) if missed.size else None,
        "correlation": _correlation(gain, guess),
        "coverage": float(np.mean(list(covered.values()))) if covered else None,
        "worst_coverage": None if worst is None else covered[worst],
        "worst_group": None if worst is None else labels[worst],
        "num_groups": len(results),
    }


def new_data_reason(test: BackTest) -> str:
    """Say why a dataset that nothing was trained on has no forecast; empty where it has one."""
    if NEW_DATA not in test.chosen:
        return test.reasons[NEW_DATA]
    rows = test.frame[test.frame["scheme"] == NEW_DATA].set_index("candidate")["pairwise_accuracy"]
    if rows[CHOSEN] > rows[AVERAGE_DATA]:
        return ""
    return "in back-tests, what is known about data told no more than an average dataset"


def untested(reason: str) -> BackTest:
    """Return a back-test that could not be made at all."""
    return BackTest(
        frame=pd.DataFrame(columns=list(COLUMNS)),
        groups=pd.DataFrame(columns=list(GROUP_COLUMNS)),
        chosen={},
        margins={},
        reasons=dict.fromkeys(BASELINES, reason),
    )


def _correlation(first: Floats, second: Floats) -> float | None:
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 2 or first[both].std() == 0 or second[both].std() == 0:
        return None
    return float(np.corrcoef(first[both], second[both])[0, 1])
