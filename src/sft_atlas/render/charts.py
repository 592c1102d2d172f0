"""How is each chart drawn?

Out: Vega-Lite specifications without data: each names a data source that the page fills from its
one embedded payload, and a field list that `assets/page.js` provides. Colours come from the theme
(`range` names), so that light, dark and print share one specification.
"""

from typing import Any, Final

import altair as alt
from altair.utils.schemapi import debug_mode

from sft_atlas.render import depth_charts as depths
from sft_atlas.render import property_charts as properties
from sft_atlas.render.chart_parts import series_color
from sft_atlas.render.map_chart import model_map

ROW_PIXELS: Final = 30
"""Height of a row of the gain map."""

FADED: Final = 0.3
"""Opacity of a gain that cannot be told from none."""


def chart_specs() -> dict[str, dict[str, Any]]:
    """Return all specifications by the name of their place on the page."""
    # Every chart is the same on every page: tests validate them once for all.
    with debug_mode(False):
        return {name: _spec(chart) for name, chart in _charts().items()}


def _charts() -> dict[str, Any]:
    return {
        "gain-map": gain_map(),
        "properties": properties.property_panels(),
        "predictors": properties.predictor_intervals(),
        "layer-twin": depths.change_and_correlation(),
        "layer-change": depths.layer_change(),
        "layer-agreement": depths.model_agreement(),
        "depth-series": depths.depth_series(),
        "scale-series": depths.scale_series(),
        "updates": depths.update_cosines(),
        "forgetting": depths.forgetting_points(),
        "kept-tokens": depths.kept_tokens(),
        "losses": loss_curves(),
        "model-map": model_map(),
    }


def _spec(chart: Any) -> dict[str, Any]:
    spec = chart.to_dict(validate=False)
    spec.pop("config", None)
    return dict(spec)


def gain_map() -> alt.LayerChart:
    """Dataset x benchmark in percentage points; faded where the interval covers 0."""
    order = alt.EncodingSortField(field="order", op="min")
    data_order = alt.EncodingSortField(field="data_order", op="min")
    gap = alt.Scale(paddingInner=0.03)
    benchmark = alt.X(
        "benchmark:N",
        sort=order,
        scale=gap,
        title=None,
        axis=alt.Axis(orient="top", labelAngle=-40, labelLimit=150, domain=False, ticks=False),
    )
    data = alt.Y(
        "data:N",
        sort=data_order,
        scale=gap,
        title=None,
        axis=alt.Axis(domain=False, ticks=False, labelLimit=150),
    )
    tooltip = [
        alt.Tooltip("data:N", title="Data"),
        alt.Tooltip("benchmark:N", title="Benchmark"),
        alt.Tooltip("gain_text:N", title="Gain"),
        alt.Tooltip("interval_text:N", title="95 % interval"),
        alt.Tooltip("n_text:N", title="Rests on"),
    ]
    legend = alt.Legend(
        title="Gain, points",
        orient="bottom",
        gradientLength=220,
        format="d",
        labelExpr="datum.value > 0 ? '+' + datum.label : datum.label",
    )
    scale = alt.Scale(range="diverging", domainMid=0, clamp=True, interpolate="rgb")
    ink = alt.Color("ink:N", scale=None)
    base = alt.Chart(alt.NamedData("rows")).encode(x=benchmark, y=data, tooltip=tooltip)
    known = base.transform_filter("isValid(datum.gain)")
    own = base.transform_filter("datum.is_own")
    clear = base.transform_filter("datum.is_clear")
    unclear = base.transform_filter("!datum.is_clear")
    # Colours of tiles and text do not share a scale: Vega-Lite 6.4 fails where one has none.
    return (
        alt.layer(
            known.mark_rect(cornerRadius=3).encode(
                color=alt.Color("gain:Q", scale=scale, legend=legend),
                opacity=alt.condition("datum.is_clear", alt.value(1), alt.value(FADED)),
            ),
            own.mark_rect(cornerRadius=3, filled=False, strokeWidth=1.75),
            clear.mark_text(fontSize=11.5, fontWeight="bold").encode(text="label:N", color=ink),
            unclear.mark_text(fontSize=11.5, opacity=0.8).encode(text="label:N", color=ink),
        )
        .resolve_scale(color="independent")
        .properties(width=alt.Step(58), height=alt.Step(ROW_PIXELS))
    )


def loss_curves() -> alt.Chart:
    """Training loss over optimizer steps, one line per trajectory."""
    return (
        alt.Chart(alt.NamedData("rows"))
        .mark_line(strokeWidth=1.75)
        .encode(
            x=alt.X("step:Q", title="Optimizer step", axis=alt.Axis(format="~s")),
            y=alt.Y("loss:Q", title="Loss, nats per supervised token", scale=alt.Scale(zero=False)),
            color=series_color(),
            detail="trajectory:N",
            tooltip=[
                alt.Tooltip("series:N", title="Data"),
                alt.Tooltip("step:Q", title="Step", format=",d"),
                alt.Tooltip("loss:Q", title="Loss", format=".3f"),
            ],
        )
        .properties(width="container", height=320)
    )
