"""Which numbers does the map of all models need on the page?

In: the map's tables and the page's cells. Out: plain JSON. Places are whole numbers on a grid of
4,096 steps along the longer side, which is finer than any screen and a third of the bytes.
"""

import math
from typing import Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.likelihood_map import MapTables
from sft_atlas.render.trust import RATING
from sft_atlas.store.scored import SCORE_BOUNDS

STEPS: Final = 4095

_QUALITY: Final = (
    *("num_cells", "num_fitted", "num_added", "num_texts", "num_left_out", "clip_quantile"),
    *("clip_value", "perplexity", "seed", "trustworthiness", "num_neighbours", "stress"),
    *("rank_correlation", "explained", "dimensions_90"),
)


def map_payload(
    drawn: MapTables | None, cells: pd.DataFrame, index: dict[str, int]
) -> dict[str, Any] | None:
    """Return the map's numbers, or None where there is no map.

    `index` gives a cell's place among the page's cells.
    """
    if drawn is None or drawn.points.empty:
        return None
    mapped = set(drawn.points["cell"])
    shown = [cell for cell in index if cell in mapped]
    labels = cells.drop_duplicates("cell").set_index("cell").loc[shown]
    families, names = pd.factorize(labels["family"].astype(str))
    runs = pd.factorize(labels["trajectory"])[0]
    low, high = SCORE_BOUNDS[RATING]
    return {
        "cell": [index[cell] for cell in shown],
        "family": families.tolist(),
        "families": list(names),
        "run": runs.tolist(),
        "rating_range": high - low,
        "from_base": {
            str(variant): _from_base(rows, shown)
            for variant, rows in drawn.points.groupby("variant", sort=False)
        },
        "maps": [
            _map(row, _rows(drawn.points, row, shown)) for row in drawn.quality.to_dict("records")
        ],
    }


def _rows(points: pd.DataFrame, row: dict[Any, Any], shown: list[str]) -> pd.DataFrame | None:
    part = points[(points["variant"] == row["variant"]) & (points["method"] == row["method"])]
    return None if part.empty else part.set_index("cell").loc[shown]


def _map(row: dict[Any, Any], rows: pd.DataFrame | None) -> dict[str, Any]:
    facts: dict[str, Any] = {name: row[name] for name in ("variant", "method")}
    if rows is None:
        return facts | {"reason": row["reason"]}
    places = rows[["x", "y"]].to_numpy(dtype=np.float64)
    places = places - places.min(axis=0)
    span = float(places.max())
    grid = np.rint(places / span * STEPS if span else places).astype(int)
    return facts | {
        "x": grid[:, 0].tolist(),
        "y": grid[:, 1].tolist(),
        "added": np.flatnonzero(rows["is_added"].to_numpy(dtype=bool)).tolist(),
        **{name: _number(row.get(name)) for name in _QUALITY},
    }


def _from_base(rows: pd.DataFrame, shown: list[str]) -> list[float | None]:
    once = rows.drop_duplicates("cell").set_index("cell")["kl_base"]
    return [_number(value) for value in once.loc[shown]]


def _number(value: Any) -> float | None:
    """Four significant digits; what is absent is null."""
    if value is None or pd.isna(value) or not math.isfinite(value):
        return None
    return float(f"{float(value):.4g}")
