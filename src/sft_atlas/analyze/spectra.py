"""In which directions did weights move: few or many, and are they new?

In: the tables `spectra` and `updates`. Out: by method, kind of matrix and depth the effective and
stable rank of the change and its intruder dimensions, averaged over final cells; and how parallel
the changes of two cells of one base model are. Depth is read in at most ten bands, because a
matrix's spectrum says little by itself.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.gains import AVERAGE, labelled_cells
from sft_atlas.statistics.clusters import codes, two_way_mean

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

MAX_BANDS: Final = 10

SPECTRAL: Final = ("effective_rank", "stable_rank", "top_share", "intruder_fraction")
"""What is averaged; `intruder_fraction` is `intruders_05` over the vectors looked at."""

_SPECTRUM_COLUMNS: Final = (
    *("setting", "method", "kind", "position", "quantity", "value", "low", "high"),
    *("num_trajectories", "num_models", "num_datasets"),
)
_PAIR_COLUMNS: Final = ("cell_a", "cell_b", "setting", "model", "cosine")
_GROUP_COLUMNS: Final = ("setting", "relation", "cosine", "low", "high", "num_pairs", "num_models")


def spectrum_profile(tables: "Tables") -> pd.DataFrame:
    """Return each of `SPECTRAL` by setting, method, kind (`AVERAGE` over all) and depth.

    Columns: setting, method, kind, position (middle of the band in (0, 1)), quantity, value, low,
    high (95 %, models and datasets), num_trajectories, num_models, num_datasets. A cell counts once
    per kind and band, as the mean over its matrices there.
    """
    spectra = tables.spectra
    if spectra.empty or tables.cells.empty:
        return pd.DataFrame(columns=list(_SPECTRUM_COLUMNS))
    labels = labelled_cells(tables.cells)
    final = labels.loc[labels["is_final"], ["cell", "setting", "method", "model", "data"]]
    rows = spectra[spectra["position"].notna()].merge(final, on="cell")
    if rows.empty:
        return pd.DataFrame(columns=list(_SPECTRUM_COLUMNS))
    looked_at = rows["num_vectors"].where(rows["num_vectors"] > 0)
    rows = rows.assign(intruder_fraction=rows["intruders_05"] / looked_at)
    results: list[dict[str, object]] = []
    for (setting, method), part in rows.groupby(["setting", "method"], sort=False):
        num_bands = min(MAX_BANDS, int(part["num_layers"].min()))
        band = np.minimum((part["position"] * num_bands).astype(int), num_bands - 1)
        banded = part.assign(position=(band + 0.5) / num_bands)
        for kind in [AVERAGE, *part["kind"].unique()]:
            chosen = banded if kind == AVERAGE else banded[banded["kind"] == kind]
            place = {"setting": setting, "method": method, "kind": kind}
            results += [place | answer for answer in _bands(chosen)]
    return pd.DataFrame(results, columns=list(_SPECTRUM_COLUMNS))


def _bands(rows: pd.DataFrame) -> list[dict[str, object]]:
    keys = ["position", "cell", "model", "data"]
    cells = rows.groupby(keys, sort=True, as_index=False)[list(SPECTRAL)].mean()
    answers: list[dict[str, object]] = []
    for position, part in cells.groupby("position", sort=True):
        for quantity in SPECTRAL:
            known = part[part[quantity].notna()]
            if known.empty:
                continue
            mean = two_way_mean(
                known[quantity].to_numpy(dtype=np.float64),
                models=codes(known["model"]),
                datasets=codes(known["data"]),
            )
            counts = {"num_trajectories": mean.num_rows, "num_models": mean.num_models}
            bounds = {"value": mean.estimate, "low": mean.low, "high": mean.high}
            place: dict[str, object] = {"position": position, "quantity": quantity}
            answers.append({**place, **bounds, **counts, "num_datasets": mean.num_datasets})
    return answers


def update_pairs(tables: "Tables") -> pd.DataFrame:
    """Return the cosine of the whole weight changes of two final cells of one model and setting.

    Columns: cell_a, cell_b, setting, model, cosine.
    """
    updates = tables.updates
    if updates.empty or tables.cells.empty:
        return pd.DataFrame(columns=list(_PAIR_COLUMNS))
    labels = labelled_cells(tables.cells)
    final = labels[labels["is_final"]].set_index("cell")
    whole = updates[(updates["scope"] == "model") & updates["cosine"].notna()]
    for side in ("a", "b"):
        whole = whole[whole[f"cell_{side}"].isin(final.index)]
    settings = [whole[f"cell_{side}"].map(final["setting"]).to_numpy() for side in ("a", "b")]
    rows = whole.assign(setting=settings[0], model=whole["cell_a"].map(final["model"]))
    same = (settings[0] == settings[1]) & (rows["cell_a"] != rows["cell_b"])
    result: pd.DataFrame = rows.loc[same, list(_PAIR_COLUMNS)].reset_index(drop=True)
    return result


def update_groups(pairs: pd.DataFrame, tables: "Tables") -> pd.DataFrame:
    """Average cosines by what two cells share: data, method, or neither.

    Columns: setting, relation (`same data, other method`, `other data, same method`, `other data,
    other method`, `same data, same method`: seeds), cosine (mean over models of each model's mean),
    low, high (95 %, Student's t over models; NaN for one), num_pairs, num_models.
    """
    if pairs.empty:
        return pd.DataFrame(columns=list(_GROUP_COLUMNS))
    labels = tables.cells.set_index("cell")
    words = {}
    for column in ("data", "method"):
        same = pairs["cell_a"].map(labels[column]) == pairs["cell_b"].map(labels[column])
        words[column] = np.where(same, f"same {column}", f"other {column}")
    rows = pairs.assign(relation=[f"{d}, {m}" for d, m in zip(*words.values(), strict=True)])
    results = []
    for (setting, relation), part in rows.groupby(["setting", "relation"], sort=True):
        by_model = part.groupby("model", sort=False)["cosine"].mean()
        models = codes(by_model.index)
        mean = two_way_mean(by_model.to_numpy(dtype=np.float64), models=models, datasets=0 * models)
        facts = {"cosine": mean.estimate, "low": mean.low, "high": mean.high}
        facts |= {"num_pairs": len(part), "num_models": mean.num_models}
        results.append({"setting": setting, "relation": relation} | facts)
    return pd.DataFrame(results, columns=list(_GROUP_COLUMNS))
