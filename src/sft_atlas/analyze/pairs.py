"""What changes when one training choice changes and everything else stays?

In: gains, and the name of the choice (`method` or `samples`). Out: differences of cells that agree
in model, data, epoch, seed and every other choice: what a study with a factorial design was run
for.
"""

from typing import Any, Final

import numpy as np
import pandas as pd

from sft_atlas.statistics.clusters import Mean, codes, two_way_mean

_FIXED: Final = (
    "model",
    "data",
    "samples",
    "schedule",
    "epochs",
    "epoch",
    "seed",
    "method",
    "benchmark",
)


def paired_differences(rows: pd.DataFrame, *, factor: str, first: Any, second: Any) -> pd.DataFrame:
    """Return one row per pair: the fixed labels, both cells, and `difference` = second - first.

    Raises:
        KeyError: if `factor` is no column of the gains.
    """
    keys = [name for name in _FIXED if name != factor]
    values = [*keys, "gain", "gain_se", "cell", "skill"]
    left = rows.loc[rows[factor] == first, values]
    right = rows.loc[rows[factor] == second, values]
    pairs: pd.DataFrame = left.merge(right, on=keys, suffixes=("_first", "_second"))
    return pairs.assign(difference=pairs["gain_second"] - pairs["gain_first"])


def mean_difference(pairs: pd.DataFrame) -> Mean:
    """Average the differences, with an interval over models and datasets."""
    values = pairs["difference"].to_numpy(dtype=np.float64)
    errors = np.hypot(*pairs[["gain_se_first", "gain_se_second"]].to_numpy(dtype=np.float64).T)
    return two_way_mean(
        values,
        models=codes(pairs["model"]),
        datasets=codes(pairs["data"]),
        item_errors=errors,
    )
