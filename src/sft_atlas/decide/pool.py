"""What do several sources of results say together?

In: tables by source. Out: one pair of tables `cells` and `scores`. Models, datasets and benchmarks
keep their names; a cell that two sources hold is the first one's. Nothing is averaged over sources:
comparisons are made within a model, so that other ways of scoring shift all of its choices alike.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from sft_atlas.store.tables import Tables


def pool(sources: Mapping[str, Tables]) -> Tables:
    """Join tables; `datasets` and other measures are those of the first source that has them."""
    every = list(sources.values())
    if len(every) == 1:
        return every[0]
    cells = _stack([one.cells for one in every], ["cell"])
    scores = _stack([one.scores for one in every], ["cell", "benchmark"])
    measured = {
        name: next((getattr(one, name) for one in every if not getattr(one, name).empty), None)
        for name in ("datasets", "descriptions", "similarities")
    }
    known = {name: frame for name, frame in measured.items() if frame is not None}
    empty = pd.DataFrame()
    parts = {"drift": empty, "datasets": empty, "curves": empty} | known
    return Tables(cells=cells, scores=scores, **parts)


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
