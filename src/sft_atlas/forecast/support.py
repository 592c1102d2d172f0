"""Is there enough evidence to forecast this at all?

In: a panel and queries. Out: for each query why it is outside of what was seen; empty where it is
inside. Nothing is extrapolated: a number of samples, an epoch, a method or a schedule that no other
model was run with has no forecast, however close it is to one that was.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from sft_atlas.forecast.outcomes import SETTING
from sft_atlas.forecast.panel import Panel

MIN_OTHERS: Final = 2
"""Fewest other models that a forecast rests on."""


def why_not(panel: Panel, query: Mapping[str, object], *, new_data_reason: str) -> str:
    """Say why a query has no forecast; empty where it has one.

    `new_data_reason` says why datasets that nothing was trained on cannot be forecast; empty where
    they can.
    """
    test, data = str(query["benchmark"]), str(query["data"])
    if test not in panel.benchmarks:
        return f"no run in the evidence was scored on {test}"
    seen = np.isfinite(panel.value[..., panel.benchmarks.index(test)])
    others = seen[[name != query["model"] for name in panel.models]]
    count = int(others.any(axis=(1, 2)).sum())
    if count < MIN_OTHERS:
        return f"{_models(count)} in the evidence {_have(count)} a score on {test}; {_NEEDED}"
    setting = tuple(query[name] for name in SETTING)
    if setting not in panel.settings:
        return _unseen_setting(panel, query)
    count = int(others[:, panel.settings.index(setting)].any(axis=1).sum())
    if count < MIN_OTHERS:
        return f"{_models(count)} {_have(count)} a run with {_words(query)}; {_NEEDED}"
    if data not in panel.datasets:
        return f"no run in the evidence used {data}, and nothing else is known about it"
    count = int(others[:, :, panel.datasets.index(data)].any(axis=1).sum())
    if count >= MIN_OTHERS:
        return ""
    if count:
        return f"{_models(count)} {_have(count)} a run on {data}; {_NEEDED}"
    return new_data_reason and f"nothing was trained on {data}: {new_data_reason}"


_NEEDED: Final = f"a forecast takes {MIN_OTHERS}"


def _unseen_setting(panel: Panel, query: Mapping[str, object]) -> str:
    """Name the first part of a setting that was never seen, and what was."""
    for place, name in enumerate(SETTING):
        known = sorted({setting[place] for setting in panel.settings}, key=_order)
        if query[name] not in known:
            listed = ", ".join(_number(value) for value in known[:8])
            more = f" and {len(known) - 8} more" if len(known) > 8 else ""
            return f"{name} {_number(query[name])} was never run; the evidence has {listed}{more}"
    return f"no run in the evidence has {_words(query)} together"


def _order(value: object) -> tuple[bool, float, str]:
    is_number = isinstance(value, (int, np.integer))
    return (not is_number, float(str(value)) if is_number else 0.0, str(value))


def _words(query: Mapping[str, object]) -> str:
    return (
        f"{query['method']}, {_number(query['samples'])} samples, {query['schedule']}, "
        f"epoch {query['epoch']}"
    )


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)


def _models(count: int) -> str:
    return f"{count or 'no'} other model{'' if count == 1 else 's'}"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"
