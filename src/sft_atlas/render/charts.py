"""How is each chart drawn?

Out: Vega-Lite specifications without data: each names a data source that the page fills from its
one embedded payload, and a field list that `assets/page.js` provides. Colours come from the theme
(`range` names), so that light, dark and print share one specification.
"""

from typing import Any, Final

import altair as alt

from sft_atlas.render.map_chart import model_map

ROW_PIXELS: Final = 30
"""Height of a row of the gain map."""

FADED: Final = 0.3
"""Opacity of a gain that cannot be told from none."""


def chart_specs() -> dict[str, dict[str, Any]]:
    """Return all specifications by the name of their place on the page."""
    charts = {
        "gain-map": gain_map(),
        "perplexity-raw": perplexity(is_raw=True),
        "perplexity-within": perplexity(is_raw=False),
        "associations": association_intervals(),
        "layer-change": layer_change(),
        "layer-correlation": layer_correlation(),
        "epochs": epoch_curves(),
        "losses": loss_curves(),
        "model-map": model_map(),
    }
    specs = {}
    for name, chart in charts.items():
        spec = chart.to_dict()
        spec.pop("config", None)
        specs[name] = spec
    return specs


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


def perplexity(*, is_raw: bool) -> alt.LayerChart:
    """Gain against answer perplexity, one mark per model and dataset."""
    x = (
        alt.X(
            "x:Q",
            title="Answer perplexity (log scale)",
            scale=alt.Scale(type="log", nice=False, padding=16),
            axis=alt.Axis(format="~g", tickCount=6),
        )
        if is_raw
        else alt.X("x:Q", title="Log perplexity, from the mean (nats per token)")
    )
    y_title = "Gain, points" if is_raw else "Gain, points, from the mean"
    legend = _legend()
    points = (
        alt.Chart()
        .mark_point(filled=True, size=62, opacity=0.85)
        .encode(
            x=x,
            y=alt.Y("y:Q", title=y_title),
            color=alt.Color("model:N", legend=legend, sort=None),
            shape=alt.Shape("model:N", legend=legend, sort=None),
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("data:N", title="Data"),
                alt.Tooltip("benchmark:N", title="Benchmark"),
                alt.Tooltip("x:Q", title="x", format=".3~f"),
                alt.Tooltip("y:Q", title="y (points)", format="+.1f"),
            ],
        )
    )
    return alt.layer(_zero_rule(), points).properties(
        width="container", height=340, data=alt.NamedData("rows")
    )


def association_intervals() -> alt.LayerChart:
    """Correlation with its interval for each way of comparing."""
    y = alt.Y(
        "variant:N", title=None, sort=None, axis=alt.Axis(labelLimit=240, domain=False, ticks=False)
    )
    tooltip = [
        alt.Tooltip("variant:N", title="Compared"),
        alt.Tooltip("estimate:Q", title="Correlation", format="+.2f"),
        alt.Tooltip("interval_text:N", title="95 % interval"),
        alt.Tooltip("p_text:N", title="p"),
        alt.Tooltip("n_text:N", title="Rests on"),
    ]
    domain = alt.Scale(domain=[-1, 1])
    base = alt.Chart().encode(y=y, tooltip=tooltip)
    zero = (
        alt.Chart(alt.InlineData(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[3, 3], opacity=0.7)
        .encode(x="zero:Q")
    )
    rule = base.mark_rule(strokeWidth=2).encode(
        x=alt.X(
            "low:Q",
            title="Rank correlation",
            scale=domain,
            axis=alt.Axis(values=[-1, -0.5, 0, 0.5, 1]),
        ),
        x2="high:Q",
    )
    dot = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=alt.X("estimate:Q", scale=domain)
    )
    return alt.layer(zero, rule, dot).properties(
        width="container", height=96, data=alt.NamedData("rows")
    )


def layer_change() -> alt.LayerChart:
    """Relative weight change over depth: models as thin lines, their mean thick with its band."""
    x = _position()
    color = _series_color()
    tooltip = [
        alt.Tooltip("series:N", title="Model"),
        alt.Tooltip("position:Q", title="Position", format=".2f"),
        alt.Tooltip("change_percent:Q", title="Change, %", format=".3f"),
        alt.Tooltip("n_text:N", title="Rests on"),
    ]
    title = "Relative weight change, %"
    y = alt.Y("change_percent:Q", title=title, scale=alt.Scale(zero=True))
    band = (
        alt.Chart()
        .transform_filter("datum.is_average")
        .mark_area(opacity=0.16)
        .encode(x=x, y=alt.Y("low_percent:Q", title=title), y2="high_percent:Q", color=color)
    )
    lines = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=22))
        .encode(
            x=x,
            y=y,
            color=color,
            tooltip=tooltip,
            strokeWidth=alt.condition("datum.is_average", alt.value(2.75), alt.value(1.25)),
        )
    )
    return alt.layer(band, lines).properties(
        width="container", height=250, data=alt.NamedData("rows")
    )


def layer_correlation() -> alt.LayerChart:
    """Correlation of weight change with mean gain over depth, with its simultaneous band."""
    x = _position()
    title = "Correlation with mean gain"
    domain = alt.Scale(domain=[-1, 1])
    band = (
        alt.Chart()
        .mark_area(opacity=0.18)
        .encode(x=x, y=alt.Y("low:Q", title=title, scale=domain), y2="high:Q")
    )
    line = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=30), strokeWidth=2.5)
        .encode(
            x=x,
            y=alt.Y("correlation:Q", title=title, scale=domain),
            tooltip=[
                alt.Tooltip("position:Q", title="Position", format=".2f"),
                alt.Tooltip("correlation:Q", title="Correlation", format="+.2f"),
                alt.Tooltip("interval_text:N", title="95 % band"),
                alt.Tooltip("n_text:N", title="Rests on"),
            ],
        )
    )
    return alt.layer(_zero_rule(), band, line).properties(
        width="container", height=250, data=alt.NamedData("rows")
    )


def epoch_curves() -> alt.LayerChart:
    """Mean gain per epoch by data; the mean over all data is thick and has a band."""
    x = alt.X(
        "epoch:Q",
        title="Epoch",
        axis=alt.Axis(format="d", tickMinStep=1),
        scale=alt.Scale(zero=False),
    )
    color = _series_color()
    title = "Mean gain, points"
    band = (
        alt.Chart()
        .transform_filter("datum.is_average")
        .mark_area(opacity=0.16)
        .encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=color)
    )
    lines = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=36))
        .encode(
            x=x,
            y=alt.Y("gain:Q", title=title),
            color=color,
            strokeWidth=alt.condition("datum.is_average", alt.value(3), alt.value(1.5)),
            tooltip=[
                alt.Tooltip("series:N", title="Data"),
                alt.Tooltip("epoch:Q", title="Epoch"),
                alt.Tooltip("gain:Q", title="Gain, points", format="+.1f"),
                alt.Tooltip("interval_text:N", title="95 % interval"),
                alt.Tooltip("n_text:N", title="Rests on"),
            ],
        )
    )
    return alt.layer(_zero_rule(), band, lines).properties(
        width="container", height=320, data=alt.NamedData("rows")
    )


def loss_curves() -> alt.Chart:
    """Training loss over optimizer steps, one line per trajectory."""
    return (
        alt.Chart(alt.NamedData("rows"))
        .mark_line(strokeWidth=1.75)
        .encode(
            x=alt.X("step:Q", title="Optimizer step", axis=alt.Axis(format="~s")),
            y=alt.Y("loss:Q", title="Loss, nats per supervised token", scale=alt.Scale(zero=False)),
            color=_series_color(),
            detail="trajectory:N",
            tooltip=[
                alt.Tooltip("series:N", title="Data"),
                alt.Tooltip("step:Q", title="Step", format=",d"),
                alt.Tooltip("loss:Q", title="Loss", format=".3f"),
            ],
        )
        .properties(width="container", height=320)
    )


def _legend(**more: Any) -> alt.Legend:
    return alt.Legend(title=None, orient="bottom", symbolOpacity=1, **more)


def _series_color() -> alt.Color:
    legend = _legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=180)
    return alt.Color("series:N", legend=legend, sort=None)


def _position() -> alt.X:
    return alt.X(
        "position:Q",
        title="Position along the depth (0 = input, 1 = output)",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
    )


def _zero_rule() -> alt.Chart:
    return (
        alt.Chart(alt.InlineData(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[3, 3], opacity=0.7)
        .encode(y="zero:Q")
    )
