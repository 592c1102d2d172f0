"""How do the charts that a page draws by its own scripts become files?

In: an analysis and its tables. Out: sections of charts in the forms that `figures` writes, each
with the rows that the page's chart of the same name rests on. The page itself draws these charts
with more choices and marks; points of single cells and the map of models are saved from there.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from sft_atlas.analyze.analysis import Analysis
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.render import forms
from sft_atlas.render.exhibits import Chart, Choice, Section
from sft_atlas.render.payload import downsample
from sft_atlas.render.section_rows import (
    choices,
    estimates,
    matrix,
    named,
    ordered,
    saturation,
    with_choices,
)

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

_MODELS = "average over models"


def study_charts(analysis: Analysis, tables: "Tables") -> Section:
    """Return the charts that have rows."""
    charts = [
        *_gain_map(analysis.gain_map),
        *_predictors(analysis),
        *_layers(analysis.layers),
        *_dimensions(analysis.dimensions),
        *_spectra(analysis.spectra),
        *_losses(tables),
    ]
    first = [_in_main_setting(chart, analysis.main_setting) for chart in charts]
    return Section(name="study", title="Study", short="Study", lead="", charts=first)


def _in_main_setting(chart: Chart, setting: str) -> Chart:
    """Let a chart show first what the answers are about."""
    if not any(choice.column == "setting" for choice in chart.choices):
        return chart
    if setting not in set(chart.rows["setting"]):
        return chart
    return replace(
        chart,
        choices=tuple(
            replace(choice, first=setting) if choice.column == "setting" else choice
            for choice in chart.choices
        ),
    )


def _gain_map(found: pd.DataFrame) -> Iterator[Chart]:
    if found.empty:
        return
    last = found["epoch"] == found.groupby(["setting", "method", "model"])["epoch"].transform("max")
    drawn = found[last & found["gain"].notna()]
    rows = matrix(drawn.assign(x=drawn["benchmark"], y=drawn["data"]), value="gain").assign(
        is_marked=drawn["is_own"].astype(bool), model=named(drawn["model"], _MODELS)
    )
    names = ("setting", "method")
    yield Chart(
        name="gain-map",
        title="Gain map",
        caption="Gain in points by data and benchmark.",
        form=forms.heat_map("Gain, points", saturation(rows["value"])),
        rows=with_choices(rows, drawn, names),
        choices=(*choices(drawn, names), Choice(column="model", label="Model", first=_MODELS)),
    )


def _predictors(analysis: Analysis) -> Iterator[Chart]:
    found = analysis.associations
    if found.empty:
        return
    found = found[(found["statistic"] == "spearman") & found["estimate"].notna()]
    if found.empty:
        return
    labels = {item.key: item.label for item in analysis.predictors}
    rows = estimates(found, "estimate", scale=1, digits=2, is_signed=False).assign(
        label=found["predictor"].map(labels),
        series=found["variant"].str.replace("_", " "),
        benchmark=named(found["benchmark"]).replace("*", "all benchmarks, pooled"),
    )
    names = ("setting", "method")
    yield Chart(
        name="predictors",
        title="Correlation of properties with gain",
        caption="Spearman's correlation.",
        form=forms.forest("Rank correlation with gain", series="Compared"),
        rows=ordered(with_choices(rows, found, names)),
        choices=(
            *choices(found, names),
            Choice(column="benchmark", label="Benchmark", first="mean over benchmarks"),
        ),
    )


def _layers(found: pd.DataFrame) -> Iterator[Chart]:
    for name, value, title, bounds in (
        ("layer-correlation", "correlation", "Correlation of change with gain", ("low", "high")),
        ("layer-change", "change", "Weight change", ("change_low", "change_high")),
        (
            "layer-agreement",
            "agreement",
            "Agreement of models",
            ("agreement_low", "agreement_high"),
        ),
    ):
        yield from _by_depth(found, name, value, title, bounds, ("setting", "method", "norm"))


def _dimensions(found: pd.DataFrame) -> Iterator[Chart]:
    for name, value, title, bounds in (
        ("dimension", "tuned", "Of tuned models", ("tuned_low", "tuned_high")),
        (
            "dimension-difference",
            "difference",
            "Tuned less base",
            ("difference_low", "difference_high"),
        ),
    ):
        names = ("quantity", "setting", "method", "pooling")
        yield from _by_depth(found, name, value, title, bounds, names)


def _spectra(found: pd.DataFrame) -> Iterator[Chart]:
    if found.empty:
        return
    named_kinds = found.assign(model=found["kind"].where(found["kind"].notna(), AVERAGE))
    names = ("quantity", "setting", "method")
    yield from _by_depth(named_kinds, "spectrum", "value", "Value", ("low", "high"), names)


def _by_depth(
    found: pd.DataFrame,
    name: str,
    value: str,
    title: str,
    bounds: tuple[str, str],
    names: tuple[str, ...],
) -> Iterator[Chart]:
    if found.empty or found[value].isna().all():
        return
    drawn = found[found[value].notna()]
    rows = estimates(drawn, value, bounds, scale=1, digits=3, is_signed=False).assign(
        x=drawn["position"].astype(float), series=named(drawn["model"], "all models")
    )
    yield Chart(
        name=name,
        title=title,
        caption="",
        form=forms.bands("Position along the depth", title, line_at=None),
        rows=with_choices(rows, drawn, names),
        choices=choices(drawn, names),
    )


def _losses(tables: "Tables") -> Iterator[Chart]:
    curves, cells = tables.curves, tables.cells
    if curves.empty or cells.empty:
        return
    labels = cells.drop_duplicates("trajectory").set_index("trajectory")
    parts = []
    for trajectory, curve in curves.groupby("trajectory", sort=False):
        if trajectory not in labels.index:
            continue
        run = labels.loc[trajectory]
        drawn = downsample(curve["step"].to_numpy(), curve["loss"].to_numpy())
        parts.append(
            pd.DataFrame({"x": drawn["step"], "estimate": drawn["loss"]}).assign(
                low=None,
                high=None,
                value_text=[f"{loss:.3f}" for loss in drawn["loss"]],
                series=f"{run['data']}, {run['method']}, {run['samples']:,}, seed {run['seed']}",
                model=str(run["model"]),
            )
        )
    if parts:
        rows = pd.concat(parts, ignore_index=True)
        yield Chart(
            name="losses",
            title="Loss curves",
            caption="Training loss.",
            form=forms.bands("Optimizer step", "Loss, nats per supervised token", line_at=None),
            rows=rows,
            choices=choices(rows, ("model",)),
        )
