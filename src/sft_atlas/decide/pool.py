"""What do several sources of results say together?

In: tables by source. Out: one pair of tables `cells` and `scores`. Models, datasets and benchmarks
keep their names, but `X-0shot` is `X` where another source calls it so; a run that two sources
scored on one benchmark has the first one's score. Nothing is averaged over sources: comparisons are
made within a model, so that other ways of scoring shift all of its choices alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.store.tables import Tables


def pool(sources: Mapping[str, Tables]) -> Tables:
    """Join tables; `datasets` and other measures are those of the first source that has them."""
    every = list(sources.values())
    if len(every) == 1:
        return every[0]
    every = _with_one_name(every)
    cells = _stack([one.cells for one in every], ["cell"])
    scores = _stack([one.scores for one in _unrepeated(every)], ["cell", "benchmark"])
    measured = {
        name: next((getattr(one, name) for one in every if not getattr(one, name).empty), None)
        for name in ("datasets", "descriptions", "similarities")
    }
    known = {name: frame for name, frame in measured.items() if frame is not None}
    empty = pd.DataFrame()
    parts = {"drift": empty, "datasets": empty, "curves": empty} | known
    return Tables(cells=cells, scores=scores, **parts)


_NO_EXAMPLES: Final = "-0shot"


def _with_one_name(sources: Sequence[Tables]) -> list[Tables]:
    """Call a benchmark asked without examples by its bare name, where a source calls it so."""
    names = {
        str(name) for one in sources if len(one.scores) for name in one.scores["benchmark"].unique()
    }
    bare = {name + _NO_EXAMPLES: name for name in names if name + _NO_EXAMPLES in names}
    return [
        one
        if one.scores.empty or not bare
        else replace(one, scores=one.scores.assign(benchmark=one.scores["benchmark"].replace(bare)))
        for one in sources
    ]


_RUN: Final = ("model", "data", "method", "samples", "schedule", "epoch", "benchmark")


def _unrepeated(sources: Sequence[Tables]) -> list[Tables]:
    """Drop scores of runs that an earlier source scored on the same benchmark.

    Two ways of scoring would otherwise be averaged as if they were seeds of one run.
    """
    seen: set[tuple[object, ...]] = set()
    kept = []
    for one in sources:
        if one.scores.empty:
            continue
        known = one.scores[one.scores["score"].notna()]
        keys = list(one.scores[list(_RUN)].itertuples(index=False, name=None))
        is_new = np.array([key not in seen for key in keys], dtype=np.bool_)
        seen |= set(known[list(_RUN)].itertuples(index=False, name=None))
        kept.append(replace(one, scores=one.scores[is_new]))
    return kept


def _stack(frames: Sequence[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    full = [frame for frame in frames if not frame.empty]
    if not full:
        return pd.DataFrame()
    # Columns of different kinds (a null column of one source) are joined as objects.
    names = list(dict.fromkeys(name for frame in full for name in frame.columns))
    columns = {}
    for name in names:
        parts = [
            f[name] if name in f else pd.Series(None, index=f.index, dtype=object) for f in full
        ]
        kinds = {str(part.dtype) for part in parts}
        if len(kinds) > 1:
            parts = [part.astype(object) for part in parts]
        columns[name] = pd.concat(parts, ignore_index=True)
        if len(kinds) > 1:
            columns[name] = columns[name].infer_objects()
    return pd.DataFrame(columns).drop_duplicates(keys, ignore_index=True)
