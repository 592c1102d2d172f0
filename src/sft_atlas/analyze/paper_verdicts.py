"""How is each claim of the paper judged by an analysis?

In: an analysis. Out: a word and its reason. A judge reads the estimates and intervals that the
report shows and makes none of its own, but for means of gains.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd

from sft_atlas.analyze import relations, traces
from sft_atlas.analyze.analysis import Analysis
from sft_atlas.analyze.findings import Finding, bounds_of, interval_text, minus, points
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.statistics.clusters import codes, two_way_mean

NOTICEABLE: Final = 0.2
"""Difference of two mean correlations that is noticed: what is not found must be smaller."""

Word = Literal["reproduced", "partly reproduced", "not reproduced", "not testable"]


class Verdict(NamedTuple):
    """What becomes of a claim, and why."""

    word: Word
    because: str


def synergies(analysis: Analysis) -> Verdict:
    """Some pairs of dataset and benchmark persist, and a share of the variance is one model's."""
    table = _table(analysis, "synergies", "synergies")
    shares = _table(analysis, "synergies", "variance_shares")
    if table.empty or shares.empty:
        return Verdict("not testable", "too few models, datasets or benchmarks to tell them apart.")
    lasting = int(table["persists"].astype(bool).sum())
    text = f"{lasting} of {len(table)} pairs of dataset and benchmark persist over models"
    own = shares[shares["source"] == "model:data:benchmark"]
    if own.empty or np.isnan(own["share"].iloc[0]):
        return Verdict("partly reproduced" if lasting else "not reproduced", f"{text}.")
    row = own.iloc[0]
    text += f"; {100 * row['share']:.0f} % of the variance is of one model with one pair."
    is_both = lasting > 0 and row["low"] > 0
    return Verdict("reproduced" if is_both else "not reproduced", text)


def family(analysis: Analysis) -> Verdict:
    """Models of a family are more alike than others, by interval and adjusted p-value."""
    row = _label_row(analysis, "family")
    if row is None:
        return Verdict("not testable", "there are no two models of one family.")
    clear = row["low"] > 0 and row["p_adjusted"] <= 0.05
    return Verdict("reproduced" if clear else "not reproduced", _label_text(row))


def language(analysis: Analysis) -> Verdict:
    """Models of a language are not more alike than others, and the interval leaves out differences
    beyond `NOTICEABLE`.
    """
    row = _label_row(analysis, "language")
    if row is None:
        return Verdict("not testable", "there are no two models of one pre-training language.")
    bound = max(abs(row["low"]), abs(row["high"]))
    if np.isnan(bound):
        return Verdict("not testable", f"{_label_text(row)} Too few models for an interval.")
    text = f"{_label_text(row)} Differences beyond {bound:.2f} are excluded."
    if row["p_adjusted"] <= 0.05:
        return Verdict("not reproduced", text)
    return Verdict("reproduced" if bound <= NOTICEABLE else "partly reproduced", text)


def components(analysis: Analysis) -> Verdict:
    """Four to six components hold 90 %, where at least seven could be needed."""
    table = _of_main(analysis, _table(analysis, "likeness", "components"))
    if table.empty:
        return Verdict("not testable", "too few models or datasets.")
    enough = table[table["cumulative"] >= 0.9]
    if enough.empty:
        return Verdict("not testable", "too few models for 90 % of the variance.")
    first = enough.iloc[0]
    count, most = int(first["component"]), int(table["component"].max())
    text = (
        f"{count} of at most {most} components hold {100 * first['cumulative']:.0f} % of the "
        f"variance of {int(first['num_models'])} models."
    )
    if most < 7:
        return Verdict("not testable", f"{text} So few models have no more than {most}.")
    return Verdict("reproduced" if 4 <= count <= 6 else "not reproduced", text)


def code_is_wide(analysis: Analysis) -> Verdict:
    """The widest code dataset is above the mean dataset on more benchmarks than the widest of
    maths.
    """
    effects = _of_main(analysis, _table(analysis, "likeness", "mean_effects"))
    effects = effects[effects["benchmark"] != AVERAGE] if not effects.empty else effects
    groups = _groups(analysis)
    if effects.empty or not {"code", "math"} <= set(groups.values()):
        return Verdict("not testable", "the study has no code data, or no maths data.")
    helped = effects[effects["effect"] > 0].groupby("data")["benchmark"].nunique()
    helped = helped.reindex(effects["data"].unique(), fill_value=0)
    code = {name: int(helped[name]) for name in helped.index if groups.get(str(name)) == "code"}
    maths = {name: int(helped[name]) for name in helped.index if groups.get(str(name)) == "math"}
    total = effects["benchmark"].nunique()
    listed = ", ".join(f"{name} {count}" for name, count in (code | maths).items())
    text = (
        f"benchmarks of {total} on which a dataset is above the mean dataset (counts, without an "
        f"interval): {listed}."
    )
    if max(code.values()) > max(maths.values()):
        return Verdict("reproduced", text)
    tied = max(code.values()) == max(maths.values())
    return Verdict("partly reproduced" if tied else "not reproduced", text)


def code_helps_maths(analysis: Analysis) -> Verdict:
    """Each code dataset raises maths against the base model, clearly, over models."""
    gains = analysis.gains
    chosen = (gains["data_group"] == "code") & (gains["skill"] == "math")
    chosen &= gains["is_final"].astype(bool) & (gains["data_kind"] == "each")
    rows = gains[chosen & (gains["setting"] == analysis.main_setting)]
    if rows.empty:
        return Verdict("not testable", "no maths benchmark was scored after code data.")
    texts, risen = [], 0
    for data, part in rows.groupby("data", sort=False):
        models = codes(part["model"])
        mean = two_way_mean(
            part["gain"].to_numpy(np.float64),
            models=models,
            datasets=0 * models,
            item_errors=part["gain_se"].to_numpy(np.float64),
            limit=1.0,
        )
        risen += int(mean.interval is not None and mean.interval[0] > 0)
        texts.append(f"{data} {points(mean.estimate)} {interval_text(mean.interval)}")
    text = f"points against the base model, over models: {'; '.join(texts)}."
    word: Word = "partly reproduced" if risen else "not reproduced"
    return Verdict("reproduced" if risen == len(texts) else word, text)


def perplexity(analysis: Analysis) -> Verdict:
    """Between datasets for one model, less perplexing data goes with larger gains."""
    items = [
        item
        for item in _asked(analysis, relations.PERPLEXITY)
        if "between datasets for the same model" in item.statement
    ]
    if not items:
        return Verdict("not testable", _NO_DATA)
    clear = [item for item in items if item.is_clear and (item.estimate or 0) < 0]
    word: Word = "not reproduced"
    if clear:
        word = "reproduced" if len(clear) == len(items) else "partly reproduced"
    return Verdict(word, _statements(items))


def rivals(analysis: Analysis) -> Verdict:
    """Perplexity goes with gain more closely than each other property."""
    items = _asked(analysis, relations.RIVALS)
    if not items:
        return Verdict("not testable", _NO_DATA)
    ahead = [item for item in items if item.is_clear and (item.estimate or 0) > 0]
    word: Word = "not reproduced"
    if ahead:
        word = "reproduced" if len(ahead) == len(items) else "partly reproduced"
    return Verdict(word, _statements(items))


def layers(analysis: Analysis) -> Verdict:
    """The interval of the strongest position lies between 0.3 and 0.8 of the depth."""
    items = [item for item in _asked(analysis, relations.LAYERS) if item.interval is not None]
    if not items:
        return Verdict("not testable", _NO_WEIGHTS)
    inside = [i for i in items if i.interval and i.interval[0] >= 0.3 and i.interval[1] <= 0.8]
    word: Word = "reproduced" if len(inside) == len(items) else "not reproduced"
    if inside and len(inside) < len(items):
        word = "partly reproduced"
    return Verdict(word, _statements(items))


def change_grows(analysis: Analysis) -> Verdict:
    """Relative change rises with depth: rank correlation above 0.5."""
    table = analysis.layers
    if table.empty:
        return Verdict("not testable", _NO_WEIGHTS)
    rows = table[(table["model"] == AVERAGE) & (table["norm"] == "relative")]
    rows = rows[rows["setting"] == analysis.main_setting]
    if rows.empty:
        return Verdict("not testable", _NO_WEIGHTS)
    texts, rising = [], 0
    for method, part in rows.groupby("method", sort=False):
        if part["change"].nunique() < 2 or part["position"].nunique() < 2:
            continue
        rank = part["position"].corr(part["change"], method="spearman")
        rising += int(rank > 0.5)
        texts.append(f"{method} {minus(f'{rank:.2f}')}")
    if not texts:
        return Verdict("not testable", "the change of weights does not vary with depth.")
    text = f"rank correlation of relative change with depth, no interval: {', '.join(texts)}."
    if rising == len(texts):
        return Verdict("reproduced", text)
    return Verdict("partly reproduced" if rising else "not reproduced", text)


def dimension(analysis: Analysis) -> Verdict:
    """The dimension of tuned models rises above 0.6 of the depth against below."""
    items = [item for item in _asked(analysis, traces.DIMENSION) if item.interval is not None]
    if not items:
        return Verdict("not testable", "no hidden states were measured.")
    rises = [item for item in items if item.is_clear and (item.estimate or 0) > 0]
    word: Word = "reproduced" if len(rises) == len(items) else "not reproduced"
    return Verdict("partly reproduced" if 0 < len(rises) < len(items) else word, _statements(items))


def on_the_map(analysis: Analysis) -> Verdict:
    """Scores say nothing about places on the map."""
    return Verdict(
        "not testable",
        "it is about places on the map of log-likelihoods, not about scores: where they were "
        "measured, the section on the map tells.",
    )


def sizes(analysis: Analysis) -> Verdict:
    """The larger size is neither clearly ahead, on the mean and on most benchmarks with a clear
    difference, nor ahead at all on two thirds of the benchmarks.
    """
    table = _table(analysis, "doses", "size_differences")
    rows = table[table["benchmark"] != AVERAGE] if not table.empty else table
    rows = rows[rows["in_mean"].astype(bool)] if not rows.empty else rows
    mean = table[table["benchmark"] == AVERAGE] if not table.empty else table
    if rows.empty or mean.empty:
        return Verdict("not testable", "no two runs differ in nothing but their samples.")
    clear = rows[rows["p_adjusted"] <= 0.05]
    up = int((clear["difference"] > 0).sum())
    row = mean.iloc[0]
    text = (
        f"{int(row['second']):,} instead of {int(row['first']):,} samples: mean "
        f"{points(row['difference'])} points {_interval(row)}; of {len(rows)} benchmarks {up} "
        f"clearly rise and {len(clear) - up} clearly fall; "
        f"{int((rows['difference'] > 0).sum())} rise at all."
    )
    if pd.isna(row["low"]):
        return Verdict("not testable", text)
    if row["low"] > 0 and up > len(clear) - up:
        return Verdict("not reproduced", text)
    is_consistent = (rows["difference"] > 0).mean() >= 2 / 3
    return Verdict("partly reproduced" if is_consistent else "reproduced", text)


def trade(analysis: Analysis) -> Verdict:
    """In every setting LoRA is ahead on open-ended answers and behind on knowledge or maths."""
    table = _table(analysis, "methods", "method_differences")
    rows = table[table["level"] == "skill"] if not table.empty else table
    if rows.empty or "open-ended" not in set(rows["skill"]):
        return Verdict("not testable", "no open-ended benchmark was scored after both methods.")
    rows = rows[rows["epochs_used"] == "final epoch"]
    texts: list[str] = []
    held = half = seen = 0
    for (kind, setting), part in rows.groupby(["data_kind", "setting"], sort=False):
        by_skill = {str(row["skill"]): row for row in part.to_dict("records")}
        found = [name for name in ("open-ended", "knowledge", "math") if name in by_skill]
        found = [name for name in found if pd.notna(by_skill[name]["difference"])]
        said = ", ".join(
            f"{name} {points(float(by_skill[name]['difference']))} {_interval(by_skill[name])}"
            for name in found
        )
        texts += [f"{_KINDS.get(str(kind), kind)} ({setting}): {said}"] if found else []
        if found[:1] != ["open-ended"] or pd.isna(by_skill["open-ended"]["low"]):
            continue
        is_ahead = by_skill["open-ended"]["low"] > 0
        seen += 1
        half += int(is_ahead)
        held += int(is_ahead and any(by_skill[name]["high"] < 0 for name in found[1:]))
    text = f"LoRA minus full in points. {'; '.join(texts)}."
    if not seen:
        return Verdict("not testable", f"{text} Nothing could be resampled.")
    if held == seen:
        return Verdict("reproduced", text)
    word: Word = "partly reproduced" if half else "not reproduced"
    return Verdict(word, f"{text} It depends on the data.")


def languages(analysis: Analysis) -> Verdict:
    """Every pair of languages correlates by at least 0.7 within models."""
    table = _table(analysis, "languages", "cross_lingual")
    if table.empty:
        return Verdict("not testable", "no test was scored in two languages.")
    chosen = (table["quantity"] == "score within model") & (table["epochs_used"] == "final epoch")
    rows = table[chosen & table["correlation"].notna()]
    if rows.empty:
        return Verdict("not testable", "too few runs to correlate two languages.")
    strong = int((rows["correlation"] >= 0.7).sum())
    above = int((rows["low"] > 0).sum())
    text = (
        f"within models, correlations by pair of languages and pre-training language lie from "
        f"{minus(format(rows['correlation'].min(), '.2f'))} to "
        f"{rows['correlation'].max():.2f}; {strong} of {len(rows)} reach 0.7, and {above} have an "
        f"interval above 0."
    )
    if strong == len(rows):
        return Verdict("reproduced", text)
    return Verdict("partly reproduced" if above else "not reproduced", text)


_NO_DATA: Final = (
    "perplexity, length and similarity of the data are not in these results: it takes the texts "
    "and the base models."
)
_NO_WEIGHTS: Final = "weights are not in these results."
_KINDS: Final = {"each": "single datasets", "all": "all merged", "leave-one-out": "all but one"}


def _table(analysis: Analysis, question: str, name: str) -> pd.DataFrame:
    answered = analysis.answered.get(question)
    return answered.tables.get(name, pd.DataFrame()) if answered else pd.DataFrame()


def _of_main(analysis: Analysis, table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main setting, of full fine-tuning where there is any."""
    if table.empty:
        return table
    rows = table[table["setting"] == analysis.main_setting]
    methods = list(dict.fromkeys(rows["method"]))
    full = [name for name in methods if not str(name).startswith("lora")]
    found: pd.DataFrame = rows[rows["method"] == (full or methods or [""])[0]]
    return found


def _label_row(analysis: Analysis, label: str) -> "pd.Series[Any] | None":
    rows = _of_main(analysis, _table(analysis, "likeness", "likeness_labels"))
    if rows.empty:
        return None
    rows = rows[(rows["kind"] == "model") & (rows["label"] == label) & rows["difference"].notna()]
    return None if rows.empty else rows.iloc[0]


def _label_text(row: "pd.Series[Any]") -> str:
    bounds = None if pd.isna(row["low"]) else (float(row["low"]), float(row["high"]))
    return (
        f"models of the same {row['label']} correlate by {minus(format(row['same'], '.2f'))}, "
        f"others by {minus(format(row['different'], '.2f'))}; difference "
        f"{minus(format(row['difference'], '.2f'))} "
        f"{interval_text(bounds, 'correlation')}, adjusted p = "
        f"{row['p_adjusted']:.3f}."
    )


def _groups(analysis: Analysis) -> dict[str, str]:
    rows = analysis.gains.drop_duplicates("data")
    return dict(zip(rows["data"].astype(str), rows["data_group"].astype(str), strict=True))


def _asked(analysis: Analysis, question: str) -> list[Finding]:
    return [item for item in analysis.findings if item.question == question]


def _statements(items: Sequence[Finding]) -> str:
    return " ".join(item.statement for item in items)


def _interval(row: Any) -> str:
    """Word the bounds of a row of a table."""
    return interval_text(bounds_of(row))
