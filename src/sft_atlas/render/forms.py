"""In which forms are answers drawn, whatever they are about?

Four forms serve every question: estimates with intervals (`forest`), a coloured matrix
(`heat_map`), curves with bands (`bands`), and parts of a whole (`bars`). Each draws rows with fixed
field names, so that a question says what it shows and not how.

Out: Vega-Lite specifications without data. `usermeta` says how the size follows the rows, which
only the place where they are drawn knows: `step` pixels per distinct value of `step_field` make the
height, and the width per distinct value of `column_field` lies between `min_column` and
`max_column`.
"""

from collections.abc import Sequence
from typing import Any, Final

import altair as alt

from sft_atlas.render.chart_parts import legend, series_color

ROW_PIXELS: Final = 25

INKS: Final = ("strongText", "weakText", "own", "band")
"""Parameters of every form: colours that follow the theme, by their names in `theme.THEMES`."""

Form = dict[str, Any]

_FEW: Final = alt.Axis(tickCount=9, labelOverlap="greedy")
_BY_ORDER: Final = alt.EncodingSortField(field="order", op="min")
_ENDS: Final = {
    name: f"isValid(datum.{name}) ? datum.{name} : datum.estimate" for name in ("low", "high")
}
"""Where there is no interval its line has no length: a layer without rows is an error to Vega."""


def forest(
    title: str,
    *,
    margin: float | None = None,
    series: str = "",
    tooltip: Sequence[tuple[str, str]] = (),
) -> Form:
    """Estimates with intervals, one line each, by the fields label, estimate, low, high, order.

    `margin` draws the band within which a difference is held to be small. With `series`, the field
    `series` tells estimates of one label apart. The field `is_faded` fades what is open.
    """
    y = alt.Y(
        "label:N",
        title=None,
        sort=_BY_ORDER,
        axis=alt.Axis(labelLimit=230, domain=False, ticks=False, grid=True, tickBand="extent"),
    )
    named = [("label", "What"), *([("series", series)] if series else []), *tooltip]
    shared: dict[str, Any] = {"y": y, "tooltip": _tooltip(*named)}
    if series:
        shared["yOffset"] = alt.YOffset("series:N", sort=None, scale=alt.Scale(paddingOuter=0.3))
        shared["color"] = alt.Color("series:N", sort=None, legend=legend())
    shared["opacity"] = alt.condition("datum.is_faded", alt.value(0.45), alt.value(1))
    base = alt.Chart().encode(**shared)
    x = alt.X("from:Q", title=title, scale=alt.Scale(zero=False, nice=True), axis=_FEW)
    rule = _with_ends(base).mark_rule(strokeWidth=2).encode(x=x, x2="to:Q")
    dot = base.mark_point(filled=True, size=58).encode(x=alt.X("estimate:Q"))
    layers = [_zero("x"), rule, dot]
    if margin is not None:
        band = alt.Chart(alt.InlineData(values=[{"from": -margin, "to": margin}]))
        layers.insert(
            0, band.mark_rect(opacity=1).encode(x="from:Q", x2="to:Q", color=_ink("band"))
        )
        chart = alt.layer(*layers).resolve_scale(color="independent")
    else:
        chart = alt.layer(*layers)
    step = ROW_PIXELS if not series else 2 * ROW_PIXELS
    return _form(chart.properties(width="container"), step=step, step_field="label")


def bars(title: str, *, tooltip: Sequence[tuple[str, str]] = ()) -> Form:
    """Parts of a whole with their intervals, by the fields label, estimate, low, high, order."""
    y = alt.Y(
        "label:N",
        title=None,
        sort=_BY_ORDER,
        axis=alt.Axis(labelLimit=230, domain=False, ticks=False),
    )
    base = alt.Chart().encode(y=y, tooltip=_tooltip(("label", "What"), *tooltip))
    bar = base.mark_bar(height=14, opacity=0.75).encode(
        x=alt.X("estimate:Q", title=title, axis=_FEW)
    )
    rule = _with_ends(base).mark_rule(strokeWidth=2).encode(x="from:Q", x2="to:Q")
    chart = alt.layer(bar, rule).properties(width="container")
    return _form(chart, step=ROW_PIXELS + 3, step_field="label")


def heat_map(
    title: str,
    limit: float,
    *,
    is_diverging: bool = True,
    tooltip: Sequence[tuple[str, str]] = (),
) -> Form:
    """A matrix by the fields x, y, value, label, x_order, y_order, strength.

    `limit` is where the colours saturate. `is_marked` outlines an entry, `is_faded` fades it,
    `strength` in [0, 1] says how dark its ground is.
    """
    gap = alt.Scale(paddingInner=0.03)
    x = alt.X(
        "x:N",
        sort=alt.EncodingSortField(field="x_order", op="min"),
        scale=gap,
        title=None,
        axis=alt.Axis(orient="top", labelAngle=-40, labelLimit=150, domain=False, ticks=False),
    )
    y = alt.Y(
        "y:N",
        sort=alt.EncodingSortField(field="y_order", op="min"),
        scale=gap,
        title=None,
        axis=alt.Axis(domain=False, ticks=False, labelLimit=170),
    )
    hints = _tooltip(("y", "Row"), ("x", "Column"), *tooltip)
    base = alt.Chart().encode(x=x, y=y, tooltip=hints)
    if is_diverging:
        scale = alt.Scale(
            range="diverging", domain=[-limit, limit], domainMid=0, clamp=True, interpolate="rgb"
        )
    else:
        scale = alt.Scale(range="ramp", domain=[0, limit], clamp=True, interpolate="rgb")
    key = alt.Legend(title=title, orient="bottom", gradientLength=220)
    faded = alt.condition("datum.is_faded", alt.value(0.35), alt.value(1))
    rect = base.transform_filter("isValid(datum.value)").mark_rect(cornerRadius=3)
    outline = base.transform_filter("datum.is_marked")
    # The ink is a parameter: which one can be read on a strong colour depends on the theme.
    text = base.mark_text(fontSize=11).encode(
        text="label:N",
        color=alt.condition(
            "datum.strength > 0.78 && !datum.is_faded", _ink("strongText"), _ink("weakText")
        ),
    )
    chart = alt.layer(
        rect.encode(color=alt.Color("value:Q", scale=scale, legend=key), opacity=faded),
        outline.mark_rect(cornerRadius=3, filled=False, strokeWidth=2).encode(stroke=_ink("own")),
        text,
    ).resolve_scale(color="independent")
    size = {"column_field": "x", "min_column": 34, "max_column": 84}
    return _form(chart, step=ROW_PIXELS + 1, step_field="y", **size)


def bands(
    x_title: str,
    y_title: str,
    *,
    tooltip: Sequence[tuple[str, str]] = (),
    line_at: float | None = 0.0,
    is_log: bool = False,
) -> Form:
    """Curves over the field x by estimate, low, high and series; a band where low and high are."""
    scale = alt.Scale(type="log") if is_log else alt.Scale(zero=False)
    x = alt.X("x:Q", title=x_title, scale=scale, axis=alt.Axis(tickMinStep=1, format="~s"))
    color = series_color()
    lines = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=40))
        .encode(
            x=x,
            y=alt.Y("estimate:Q", title=y_title, scale=alt.Scale(zero=False)),
            color=color,
            tooltip=_tooltip(("series", "Curve"), ("x", x_title), *tooltip),
        )
    )
    area = (
        _with_ends(alt.Chart())
        .mark_area(opacity=0.15)
        .encode(x=x, y=alt.Y("from:Q", title=y_title), y2="to:Q", color=color)
    )
    layers = [area, lines]
    if line_at is not None:
        layers.insert(0, _zero("y", line_at))
    return _form(alt.layer(*layers).properties(width="container", height=300))


def _zero(axis: str, place: float = 0.0) -> alt.Chart:
    line = alt.Chart(alt.InlineData(values=[{"zero": place}]))
    return line.mark_rule(strokeDash=[3, 3], opacity=0.7).encode(**{axis: "zero:Q"})


def _with_ends(chart: alt.Chart) -> alt.Chart:
    return chart.transform_calculate(**{"from": _ENDS["low"], "to": _ENDS["high"]})


def _ink(name: str) -> dict[str, Any]:
    """Return a colour that the theme gives, by the name of its parameter."""
    return {"value": {"expr": name}}


def _tooltip(*fields: tuple[str, str]) -> list[alt.Tooltip]:
    """Name the labels, then the estimate with its interval; a later name replaces an earlier."""
    titles = dict(fields) | {"value_text": "Estimate"}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def _form(chart: alt.LayerChart, **usermeta: Any) -> Form:
    inks = [alt.param(name=name, value="#777") for name in INKS]
    spec = chart.add_params(*inks).properties(data=alt.NamedData("rows")).to_dict(validate=False)
    spec.pop("config", None)
    spec["usermeta"] = usermeta
    return dict(spec)
