"""How are layers drawn, from the input of a model to its output?

Out: specifications as in `charts`. Two lines of different units share one chart where the question
is whether they peak at the same depth; each then has an axis in its own colour.
"""

import altair as alt

from sft_atlas.render.chart_parts import depth, legend, series_color, zero_rule


def change_and_correlation() -> alt.LayerChart:
    """Weight change (right axis) and its correlation with gain (left axis) with their bands."""
    x = depth()
    domain = alt.Scale(domain=[-1, 1])
    left = alt.Axis(values=[-1, -0.5, 0, 0.5, 1], orient="left")
    title = "Correlation with mean gain"
    correlation = alt.Y("correlation:Q", title=title, scale=domain, axis=left)
    tooltip = [
        alt.Tooltip("position:Q", title="Position", format=".2f"),
        alt.Tooltip("correlation:Q", title="Correlation", format="+.2f"),
        alt.Tooltip("interval_text:N", title="95 % band"),
        alt.Tooltip("change_text:N", title="Change"),
        alt.Tooltip("change_interval_text:N", title="95 % interval"),
        alt.Tooltip("n_text:N", title="Rests on"),
    ]
    band = (
        alt.Chart()
        .transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.16)
        .encode(x=x, y=alt.Y("low:Q", title=title, scale=domain, axis=left), y2="high:Q")
    )
    line = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=34), strokeWidth=2.5)
        .encode(x=x, y=correlation, tooltip=tooltip)
    )
    right = alt.Axis(orient="right", grid=False, tickCount=6)
    scale = alt.Scale(zero=True)
    change_band = (
        alt.Chart()
        .transform_filter("isValid(datum.change_low)")
        .mark_area(opacity=0.16)
        .encode(
            x=x,
            y=alt.Y("change_low:Q", title="Weight change", scale=scale, axis=right),
            y2="change_high:Q",
        )
    )
    change_line = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=34), strokeWidth=2.5)
        .encode(
            x=x,
            y=alt.Y("change:Q", title="Weight change", scale=scale, axis=right),
            tooltip=tooltip,
        )
    )
    first = alt.layer(zero_rule(), band, line)
    second = alt.layer(change_band, change_line)
    return (
        alt.layer(first, second)
        .resolve_scale(y="independent")
        .properties(width="container", height=300, data=alt.NamedData("rows"))
    )


def layer_change() -> alt.LayerChart:
    """Weight change over depth: models as thin lines, their mean thick."""
    lines = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=22))
        .encode(
            x=depth(),
            y=alt.Y("change:Q", title="Weight change", scale=alt.Scale(zero=True)),
            color=series_color(),
            strokeWidth=alt.condition("datum.is_average", alt.value(2.75), alt.value(1.25)),
            tooltip=[
                alt.Tooltip("series:N", title="Model"),
                alt.Tooltip("position:Q", title="Position", format=".2f"),
                alt.Tooltip("change_text:N", title="Change"),
                alt.Tooltip("n_text:N", title="Rests on"),
            ],
        )
    )
    return alt.layer(lines).properties(width="container", height=250, data=alt.NamedData("rows"))


def model_agreement() -> alt.LayerChart:
    """How alike models are in which data moves a layer, with its pointwise band."""
    x, domain = depth(), alt.Scale(domain=[-1, 1])
    axis = alt.Axis(values=[-1, -0.5, 0, 0.5, 1])
    title = "Mean correlation of two models"
    band = (
        alt.Chart()
        .transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.18)
        .encode(x=x, y=alt.Y("low:Q", title=title, scale=domain, axis=axis), y2="high:Q")
    )
    line = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=30), strokeWidth=2.5)
        .encode(
            x=x,
            y=alt.Y("estimate:Q", title=title, scale=domain, axis=axis),
            tooltip=[
                alt.Tooltip("position:Q", title="Position", format=".2f"),
                alt.Tooltip("estimate:Q", title="Agreement", format="+.2f"),
                alt.Tooltip("interval_text:N", title="95 % interval"),
            ],
        )
    )
    return alt.layer(zero_rule(), band, line).properties(
        width="container", height=250, data=alt.NamedData("rows")
    )


def depth_series() -> alt.LayerChart:
    """One or two series over depth with bands; the page sets the title of y."""
    return _series(depth())


def scale_series() -> alt.LayerChart:
    """A dimension against the rank of the neighbour it was measured with (log scale)."""
    axis = alt.Axis(values=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512], grid=False)
    title = "Rank of the nearer neighbour (log scale)"
    x = alt.X("position:Q", title=title, scale=alt.Scale(type="log", nice=False), axis=axis)
    return _series(x)


def _series(x: alt.X) -> alt.LayerChart:
    color = series_color()
    scale = alt.Scale(zero=False)
    band = (
        alt.Chart()
        .transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.16)
        .encode(x=x, y=alt.Y("low:Q", title="", scale=scale), y2="high:Q", color=color)
    )
    line = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=30), strokeWidth=2.25)
        .encode(
            x=x,
            y=alt.Y("value:Q", title="", scale=scale),
            color=color,
            tooltip=[
                alt.Tooltip("series:N", title="Series"),
                alt.Tooltip("position_text:N", title="At"),
                alt.Tooltip("value:Q", title="Value", format=".4~g"),
                alt.Tooltip("interval_text:N", title="95 % interval"),
                alt.Tooltip("n_text:N", title="Rests on"),
            ],
        )
    )
    return alt.layer(band, line).properties(
        width="container", height=230, data=alt.NamedData("rows")
    )


def update_cosines() -> alt.LayerChart:
    """Cosine between the weight changes of two cells of one model."""
    order = alt.EncodingSortField(field="order", op="min")
    other = alt.EncodingSortField(field="other_order", op="min")
    axis = alt.Axis(domain=False, ticks=False, labelLimit=170)
    top = alt.Axis(domain=False, ticks=False, labelLimit=170, labelAngle=-50, orient="top")
    scale = alt.Scale(range="diverging", domain=[-1, 1], interpolate="rgb")
    bar = alt.Legend(title="Cosine", orient="bottom", gradientLength=180)
    tooltip = [
        alt.Tooltip("a:N", title="One"),
        alt.Tooltip("b:N", title="Other"),
        alt.Tooltip("cosine:Q", title="Cosine", format="+.2f"),
    ]
    gap = alt.Scale(paddingInner=0.04)
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=alt.X("b:N", sort=other, title=None, axis=top, scale=gap),
        y=alt.Y("a:N", sort=order, title=None, axis=axis, scale=gap),
        tooltip=tooltip,
    )
    tiles = base.mark_rect(cornerRadius=2).encode(
        color=alt.Color("cosine:Q", scale=scale, legend=bar)
    )
    return alt.layer(tiles).properties(width=alt.Step(22), height=alt.Step(22))


def forgetting_points() -> alt.LayerChart:
    """Mean gain against the divergence from the base, with training runs as paths."""
    x = alt.X(
        "kl:Q",
        title="KL to the base, nats per token (log scale)",
        scale=alt.Scale(type="log", nice=False, padding=16),
        axis=alt.Axis(format="~g", tickCount=6, labelOverlap="greedy", labelSeparation=6),
    )
    y = alt.Y("gain:Q", title="Mean gain, points")
    color = alt.Color("method:N", sort=None, legend=legend())
    paths = (
        alt.Chart()
        .mark_line(strokeWidth=1, opacity=0.35)
        .encode(x=x, y=y, color=color, detail="run:N", order="epoch:Q")
    )
    marks = (
        alt.Chart()
        .mark_point(filled=True, opacity=0.85)
        .encode(
            x=x,
            y=y,
            color=color,
            shape=alt.Shape("method:N", sort=None, legend=legend()),
            size=alt.condition("datum.is_final", alt.value(58), alt.value(16)),
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("data:N", title="Data"),
                alt.Tooltip("method:N", title="Method"),
                alt.Tooltip("epoch:Q", title="Epoch"),
                alt.Tooltip("kl_text:N", title="KL, nats per token"),
                alt.Tooltip("agreement_text:N", title="Same next token"),
                alt.Tooltip("gain:Q", title="Mean gain, points", format="+.1f"),
            ],
        )
    )
    return alt.layer(zero_rule(), paths, marks).properties(
        width="container", height=330, data=alt.NamedData("rows")
    )


def kept_tokens() -> alt.Chart:
    """Share of neutral tokens whose most likely next token stayed the base's, by epoch."""
    return (
        alt.Chart(alt.NamedData("rows"))
        .mark_boxplot(extent="min-max", size=18)
        .encode(
            x=alt.X("epoch:O", title="Epoch", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("method:N", sort=None),
            y=alt.Y("agreement:Q", title="Same next token, %", scale=alt.Scale(zero=False)),
            color=alt.Color("method:N", sort=None, legend=legend()),
        )
        .properties(width="container", height=230)
    )
