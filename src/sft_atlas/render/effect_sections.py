"""How is the evidence drawn for what works: where, for which models, in which languages, above
which noise?

In: the answers of `synergies`, `likeness`, `cross_lingual` and `noise_floor`. Out: their charts
and tables.
"""

from collections.abc import Iterator
from typing import Any, Final

import pandas as pd

from sft_atlas.render import forms
from sft_atlas.render.exhibits import Chart, Frames, Table
from sft_atlas.render.section_rows import (
    choices,
    estimates,
    has,
    matrix,
    named,
    ordered,
    rests,
    saturation,
    table,
    with_choices,
)

MIN_MATRIX: Final = 3
"""Of fewer things a table of correlations shows nothing that the answer does not say."""

_PLACE: Final = ("setting", "method")
_MEANING: Final = (("meaning", "Meaning"),)
_LIKENESS: Final = (
    ("model", "Models", "two models, over datasets and benchmarks"),
    ("data", "Datasets", "two datasets, over models and benchmarks"),
    ("benchmark", "Benchmarks", "two benchmarks, over models and datasets"),
)


def synergies(frames: Frames) -> Iterator[Chart | Table]:
    """Draw the shares of variance by source, and the effects that hold over models."""
    shares = frames.get("variance_shares")
    if has(shares, "source", "share") and shares is not None:
        drawn = shares[shares["share"].notna()]
        rows = estimates(drawn, "share", is_signed=False)
        yield Chart(
            name="variance-shares",
            title="Where the differences between scores come from",
            caption="Share of the variance by source, in percent, with 95 % intervals.",
            form=forms.bars("Share of the variance, %", tooltip=_MEANING),
            rows=ordered(with_choices(rows.assign(**_sources(drawn)), drawn, _PLACE)),
            choices=choices(drawn, _PLACE),
        )
        yield table("variance-shares", "Shares of the variance", shares, is_open=False)
    if has(frames.get("data_shares")):
        yield table(
            "data-shares",
            "Shares of what differs between the datasets of a model",
            frames["data_shares"],
            is_open=False,
        )
    found = frames.get("synergies")
    if has(found, "data", "benchmark", "effect") and found is not None:
        drawn = found[found["effect"].notna()]
        rows = matrix(
            drawn.assign(x=named(drawn["benchmark"]), y=drawn["data"].astype(str)), value="effect"
        )
        if "persists" in drawn:
            persists = drawn["persists"].fillna(False).astype(bool)
            rows = rows.assign(is_marked=persists, is_faded=~persists)
        limit = saturation(rows["value"])
        yield Chart(
            name="synergies",
            title="What a dataset does to a benchmark, whatever the model",
            caption=(
                "Effect of a dataset (rows) on a benchmark (columns) beyond what it does on "
                "average, in points, shrunk towards 0. Outlined: it holds over models after "
                f"adjustment. Colours saturate at ±{limit:g} points."
            ),
            form=forms.heat_map("Points", limit),
            rows=with_choices(rows, drawn, _PLACE),
            choices=choices(drawn, _PLACE),
        )
        yield table("synergies", "Effects of datasets on benchmarks", found, is_open=False)


def likeness(frames: Frames) -> Iterator[Chart | Table]:
    """Draw which models, datasets and benchmarks are alike, and how many components they need."""
    for kind, title, compared in _LIKENESS:
        found = frames.get(f"{kind}_likeness")
        if has(found, "first", "second", "correlation") and found is not None:
            drawn = found[found["correlation"].notna()]
            if drawn["first"].nunique() >= MIN_MATRIX:
                yield _likeness_chart(kind, title, compared, drawn)
    shares = frames.get("components")
    if has(shares, "component", "cumulative") and shares is not None:
        rows = estimates(shares, "cumulative", is_signed=False).assign(
            x=shares["component"].astype(float), series="share of the variance"
        )
        yield Chart(
            name="components",
            title="How many ways there are in which models differ",
            caption=(
                "Share of the variance in the first principal components of what data did to "
                "models. Dashed: 90 %. Band: 95 %, resampling datasets."
            ),
            form=forms.bands("Number of components", "Share of the variance, %", line_at=90),
            rows=with_choices(rows.drop(columns="is_faded"), shares, _PLACE),
            choices=choices(shares, _PLACE),
        )
    for name, title in (
        ("likeness_labels", "Does a shared label make things more alike?"),
        ("mean_effects", "What each dataset does on average over models"),
    ):
        if has(frames.get(name)):
            yield table(name.replace("_", "-"), title, frames[name], is_open=False)


def languages(frames: Frames) -> Iterator[Chart | Table]:
    """Draw how results on one test in several languages go together, and what they gained."""
    found = frames.get("cross_lingual")
    if has(found, "first", "second", "quantity", "group", "correlation") and found is not None:
        drawn = found[found["correlation"].notna()]
        rows = estimates(drawn, "correlation", scale=1, digits=2, is_signed=False).assign(
            label=drawn["first"].astype(str) + " / " + drawn["second"].astype(str),
            series=_groups(drawn),
            n_text=rests(drawn),
        )
        names = ("quantity", "epochs_used", "test")
        yield Chart(
            name="cross-lingual",
            title="How far results in two languages go together",
            caption=(
                "Correlation over runs, for all models and by the first language of their "
                "pre-training; 95 % intervals that resample models and datasets. Faded: the "
                "interval covers 0."
            ),
            form=forms.forest("Correlation", series="Models", tooltip=(("n_text", "Rests on"),)),
            rows=ordered(with_choices(rows, drawn, names)),
            choices=choices(drawn, names),
        )
        yield table("cross-lingual", "Correlations between languages", found, is_open=False)
    gains = frames.get("language_gains")
    if has(gains, "test", "group", "language", "gain") and gains is not None:
        drawn = gains[gains["gain"].notna()]
        rows = estimates(drawn, "gain").assign(
            label=drawn["language"].astype("string").fillna("").replace("", "mean").astype(object),
            series=_groups(drawn),
            n_text=rests(drawn),
        )
        yield Chart(
            name="language-gains",
            title="Gain by the language of the test",
            caption="Mean gain at final epochs, in points, with 95 % intervals where there are "
            "three models.",
            form=forms.forest("Gain, points", series="Models", tooltip=(("n_text", "Rests on"),)),
            rows=ordered(with_choices(rows, drawn, ("test",))),
            choices=choices(drawn, ("test",)),
        )
        yield table("language-gains", "Gains by language", gains, is_open=False)


def noise(frames: Frames) -> Iterator[Chart | Table]:
    """List the noise of seeds and of items, and what it hides."""
    found = frames.get("noise_floor")
    if has(found) and found is not None:
        yield table(
            "noise-floor",
            "Noise of seeds and items, in points",
            found,
            {
                "benchmark": ("Benchmark", "text", 0),
                "num_settings": ("Settings with two seeds", "count", 0),
                "num_runs": ("Runs", "count", 0),
                "total_sd": ("SD between seeds", "percent", 1),
                "item_sd": ("of which items", "percent", 1),
                "seed_sd": ("of which the run", "percent", 1),
                "seed_low": ("Low", "percent", 1),
                "seed_high": ("High", "percent", 1),
                "detectable": ("Smallest difference noticed", "percent", 1),
                "seeds_for_a_point": ("Runs to notice one point", "count", 0),
                "reason": ("Why not", "text", 0),
            },
        )


def _sources(shares: pd.DataFrame) -> dict[str, "pd.Series[Any]"]:
    label = shares["source"].astype(str).str.replace(":", " \N{MULTIPLICATION SIGN} ", regex=False)
    return {"label": label, "meaning": shares.get("meaning", label)}


def _groups(frame: pd.DataFrame) -> "pd.Series[Any]":
    """Name the models that a row is about by their first language."""
    return named(frame["group"], "all models")


def _likeness_chart(kind: str, title: str, compared: str, drawn: pd.DataFrame) -> Chart:
    rows = matrix(
        drawn.assign(x=drawn["second"], y=drawn["first"]), value="correlation", scale=1, digits=2
    )
    if has(drawn, "first_order", "second_order"):
        rows = rows.assign(x_order=drawn["second_order"], y_order=drawn["first_order"])
    rows = rows.assign(
        label=rows["label"].str.replace("0.", ".", regex=False),
        strength=rows["value"].abs().clip(upper=1),
        is_faded=False,
        n_text=rests(drawn),
    )
    return Chart(
        name=f"{kind}-likeness",
        title=f"{title} that behave alike",
        caption=(
            f"Correlation of the results of {compared}, each less its model's mean and in standard "
            "deviations of its benchmark. The order puts alike ones together."
        ),
        form=forms.heat_map("Correlation", 1.0),
        rows=with_choices(rows, drawn, _PLACE),
        choices=choices(drawn, _PLACE),
    )
