"""What did a fine-tune lose of what its base model said about neutral text?

In: the table `forgetting`, gains and labels. Out: one point per cell: the divergence from the base
model's next tokens, KL(base || cell) in nats per token, the share of tokens whose most likely next
token is still the base's, and the mean gain; and how one goes with the other. KL spans orders of
magnitude, so it is compared by its logarithm.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.associations import associations
from sft_atlas.analyze.data_properties import Predictor
from sft_atlas.analyze.gains import AVERAGE, labelled_cells
from sft_atlas.analyze.pairs import paired_differences

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

LOG_KL: Final = Predictor("log_kl", "divergence from the base", "KL to the base", True, True)

_MEASURED: Final = (
    *("kl_per_token", "kl_se", "reverse_kl_per_token", "agreement_fraction", "agreement_se"),
    *("base_nll_per_token", "cell_nll_per_token", "num_texts", "num_tokens"),
)
_LABELS: Final = (
    "setting",
    "method",
    "model",
    "data",
    "data_kind",
    "samples",
    "schedule",
    "epochs",
)
_POINTS: Final = ("cell", "trajectory", *_LABELS, "epoch", "seed", "is_final", *_MEASURED, "gain")


def forgetting_points(tables: "Tables", means: pd.DataFrame) -> pd.DataFrame:
    """Return one row per measured cell: labels, what it lost, and its mean gain where it has one.

    Columns: cell, trajectory, setting, method, model, data, data_kind, samples, schedule, epochs,
    epoch, seed, is_final, the columns of the table `forgetting`, gain.
    """
    lost = tables.forgetting
    if lost.empty or tables.cells.empty:
        return pd.DataFrame(columns=list(_POINTS))
    labels = labelled_cells(tables.cells)
    rows = labels.merge(lost[["cell", *_MEASURED]], on="cell")
    rows = rows[rows["kl_per_token"].notna()]
    gains = means[["cell", "gain"]] if not means.empty else pd.DataFrame(columns=["cell", "gain"])
    rows = rows.merge(gains, on="cell", how="left")
    return rows[list(_POINTS)].reset_index(drop=True)


def forgetting_associations(
    points: pd.DataFrame, *, num_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Correlate log KL of final single-dataset cells with their mean gain: columns of
    `associations`.
    """
    rows = points[points["is_final"].astype(bool) & (points["data_kind"] == "each")]
    rows = rows[rows["gain"].notna() & (rows["kl_per_token"] > 0)]
    rows = rows.assign(benchmark=AVERAGE, log_kl=np.log(rows["kl_per_token"].astype(float)))
    keys = ["setting", "method", "model", "data", "benchmark"]
    averaged = rows.groupby(keys, sort=False, as_index=False)[["gain", "log_kl"]].mean()
    return associations(
        averaged,
        [LOG_KL],
        num_resamples=num_resamples,
        num_permutations=num_resamples,
        seed=seed,
    )


def method_pairs(points: pd.DataFrame, *, first: str, second: str) -> pd.DataFrame:
    """Pair final cells that differ in the method alone: `difference` is log KL of `second` minus
    that of `first` (columns: `pairs.paired_differences`).
    """
    rows = points[points["is_final"].astype(bool) & (points["kl_per_token"] > 0)]
    kl = rows["kl_per_token"].astype(float)
    # The error of a logarithm is the relative error (delta method).
    errors = rows["kl_se"].astype(float) / kl
    ready = rows.assign(benchmark=AVERAGE, skill="", gain=np.log(kl), gain_se=errors)
    return paired_differences(ready, factor="method", first=first, second=second)
