"""How do results that somebody else measured become the tables of a study?

In: one row per model and benchmark, with labels in this project's vocabulary. Out: the tables
`cells` and `scores` with the columns that a store's tables have, so that one analysis and one
report serve both. A gain is the difference of two published scores: without the items it cannot be
paired, so its error is that of two independent samples, which is no smaller than the paired one
where models agree on what is hard.
"""

import json
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.evidence.source import LABELS
from sft_atlas.identity import fingerprint_text
from sft_atlas.store.score_index import COLUMNS
from sft_atlas.store.tables import LABELS as TABLE_LABELS
from sft_atlas.store.tables import Tables

NO_BASE: Final = "its base model has no score here"

_NORMAL: Final = 1.959963984540054
_WHOLE: Final = ("samples", "num_samples", "horizon_epochs", "epoch", "seed")
_RUN: Final = [name for name in LABELS if name not in ("epoch", "block", "horizon_epochs")]


def tidy_tables(rows: pd.DataFrame) -> Tables:
    """Form a study's tables.

    `rows` has the columns `source.LABELS`, and benchmark, skill, language, metric, in_mean, score
    (a fraction of 1, or a rating; NaN where missing), reason (why it is missing, else null),
    base_reason (why no gain may be formed with this score, else null), num_items (null where not
    known), and standard_error (NaN where not known: then that of a share of `num_items`).
    Where the base model's score has a base_reason, none of its runs gets a gain.
    """
    rows = rows.reset_index(drop=True)
    rows["cell"] = _names(rows, [*_RUN, "epoch"])
    is_base = rows["method"] == "base"
    rows["trajectory"] = _names(rows, _RUN).mask(is_base)
    rows["num_samples"] = rows["samples"]
    rows["state"] = np.where(
        rows.groupby("cell")["score"].transform("count") > 0, "done", "missing"
    )
    rows = rows.astype(dict.fromkeys(_WHOLE, "Int64"))
    scores = _with_gains(_with_errors(rows))
    cells = rows.drop_duplicates("cell").assign(
        is_trained=lambda found: found["state"] == "done", failure_kind=None, failure_message=None
    )
    names = ["cell", *TABLE_LABELS, "state", "is_trained", "failure_kind", "failure_message"]
    empty = pd.DataFrame()
    return Tables(
        cells=cells[names].reset_index(drop=True),
        scores=scores,
        drift=empty,
        datasets=empty,
        curves=empty,
    )


def _names(rows: pd.DataFrame, keys: list[str]) -> "pd.Series[str]":
    """Fingerprint of each row's values of `keys`; two kinds of null are one value."""
    codes = np.zeros(len(rows), dtype=np.int64)
    for key in keys:
        found, values = pd.factorize(rows[key], use_na_sentinel=False)
        codes, _ = pd.factorize(codes * len(values) + found)
    firsts = rows.loc[~pd.Series(codes).duplicated(), keys].astype("string").fillna("")
    # The canonical JSON of a list of texts, written by the fast encoder: there may be 100,000.
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    names = [fingerprint_text(encode(row)) for row in firsts.to_numpy().tolist()]
    return pd.Series(names, dtype="string").take(codes).set_axis(rows.index)


def _with_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Fill in the error of a share of items: that of two more successes and failures (Agresti and
    Coull 1998), which is not 0 where all items agree.
    """
    known = rows["standard_error"].astype(float)
    items = rows["num_items"].astype(float)
    is_share = rows["metric"] != "rating"
    share = (rows["score"] * items + 2) / (items + 4)
    error = np.sqrt((share * (1 - share)).clip(lower=0) / (items + 4)).where(is_share)
    error = known.fillna(error)
    high = pd.Series(np.where(is_share, 1.0, 10.0), index=rows.index)
    low = 1.0 - is_share
    return rows.assign(
        standard_error=error,
        score_low=(rows["score"] - _NORMAL * error).clip(lower=low),
        score_high=(rows["score"] + _NORMAL * error).clip(upper=high),
    )


def _with_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Subtract the base model's score on the same benchmark, where both may be used."""
    base = rows[rows["method"] == "base"].drop_duplicates(["model", "benchmark"])
    base = base[["model", "benchmark", "score", "standard_error", "base_reason"]]
    base = base.rename(
        columns={"score": "base_score", "standard_error": "base_error", "base_reason": "why"}
    )
    found = rows.merge(base, on=["model", "benchmark"], how="left")
    why = found["why"].astype("string").fillna(found["base_reason"].astype("string"))
    why = why.mask(why.isna() & found["base_score"].isna(), NO_BASE)
    is_usable = why.isna()
    gain = (found["score"] - found["base_score"]).where(is_usable)
    is_base = found["method"] == "base"
    error = pd.Series(np.hypot(found["standard_error"], found["base_error"]), index=found.index)
    error = error.where(gain.notna() & ~is_base)
    error = error.mask(is_base & gain.notna(), 0.0)
    found = found.assign(
        gain=gain,
        gain_se=error,
        gain_low=gain - _NORMAL * error,
        gain_high=gain + _NORMAL * error,
        gain_reason=why.mask(found["score"].isna()),
        num_scored=found["num_items"],
        flags="",
    )
    missing = {name: None for name in COLUMNS if name not in found}
    found = found.assign(**missing).astype(
        {name: kind for name, kind in COLUMNS.items() if name in found or name in missing}
    )
    measured = list(COLUMNS)[3:]
    names = ["cell", "benchmark", "skill", "language", "metric", "in_mean", *measured]
    return found[[*names, *TABLE_LABELS, "state"]]
