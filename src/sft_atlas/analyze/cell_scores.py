"""What did each trained cell score, on one scale?

In: the tables `cells` and `scores`. Out: scores as fractions of the range from worst to best, with
the labels of their cell. Questions that compare cells of one base model use these: the base's own
score cancels in a difference, so that a base row that is missing or wrong does not matter.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.gains import NORMAL_QUANTILE, labelled_cells
from sft_atlas.store.scored import SCORE_BOUNDS

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

_MEASURED: Final = ("benchmark", "skill", "language", "metric", "in_mean", "num_items")
_OF_CELL: Final = ("family", "languages", "num_samples")


def cell_scores(tables: "Tables") -> pd.DataFrame:
    """Return one row per trained cell and benchmark that has a score.

    Columns: those of `gains.labelled_cells`, family, languages, num_samples, benchmark, skill,
    language, metric, in_mean, num_items, `value` (fraction of the range from worst to best),
    `value_se` (its standard error over items, NaN where not known) and `range` (`value` x range is
    a difference in the metric's own unit: 9 for grades from 1 to 10, else 1). The error is no
    smaller than half the interval's width over 1.96: it is 0 where all items agree, which is no
    certainty.
    """
    labels = labelled_cells(tables.cells)
    if labels.empty or tables.scores.empty or tables.scores["score"].isna().all():
        names = [*labels.columns, *_OF_CELL, *_MEASURED, "value", "value_se", "range"]
        return pd.DataFrame(columns=names)
    labels = labels.merge(tables.cells[["cell", *_OF_CELL]], on="cell")
    found = tables.scores[tables.scores["score"].notna()]
    bounds = {metric: SCORE_BOUNDS.get(metric, (0.0, 1.0)) for metric in found["metric"].unique()}
    low = found["metric"].map({metric: worst for metric, (worst, _) in bounds.items()})
    span = found["metric"].map({metric: best - worst for metric, (worst, best) in bounds.items()})
    width = (found["score_high"] - found["score_low"]) / (2 * NORMAL_QUANTILE)
    error = np.fmax(found["standard_error"].astype(float), width.astype(float))
    scores = found[["cell", *_MEASURED]].assign(
        value=((found["score"] - low) / span).astype(float),
        value_se=(error / span).astype(float),
        range=span.astype(float),
    )
    return labels.merge(scores, on="cell", how="inner", validate="one_to_many")
