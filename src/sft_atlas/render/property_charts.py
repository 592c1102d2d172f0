"""How is it drawn which property of the data goes with gain?

Out: two specifications as in `charts`. The page copies the one panel of `property_panels` per
property, puts in its title and its scale, and sets the width.
"""

import altair as alt

from sft_atlas.render.chart_parts import legend


def property_panels() -> alt.ConcatChart:
    """Gain against a property, one mark per model and dataset; panels side by side."""
    panel = (
        alt.Chart()
        .mark_point(filled=True, size=56, opacity=0.85)
        .encode(
            x=alt.X("x0:Q", title="", scale=alt.Scale(nice=False, padding=14)),
            y=alt.Y("y:Q", title="Gain, points"),
            color=alt.Color("model:N", legend=legend(), sort=None),
            shape=alt.Shape("model:N", legend=legend(), sort=None),
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("data:N", title="Data"),
                alt.Tooltip("benchmark:N", title="Benchmark"),
                alt.Tooltip("x0:Q", title="x", format=".3~f"),
                alt.Tooltip("y:Q", title="y (points)", format="+.1f"),
            ],
        )
    )
    zero = (
        alt.Chart(alt.InlineData(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[3, 3], opacity=0.7)
        .encode(y="zero:Q")
    )
    one = alt.layer(zero, panel).properties(width=200, height=260, data=alt.NamedData("rows"))
    return (
        alt.concat(one, columns=3)
        .resolve_scale(color="shared", shape="shared", y="shared")
        .properties(spacing=26)
    )


def predictor_intervals() -> alt.LayerChart:
    """Correlation of each property with gain, one line per way of comparing."""
    y = alt.Y(
        "predictor:N",
        title=None,
        sort=None,
        axis=alt.Axis(labelLimit=250, domain=False, ticks=False, grid=True, tickBand="extent"),
    )
    offset = alt.YOffset("variant:N", sort=None, scale=alt.Scale(paddingOuter=0.35))
    color = alt.Color("variant:N", sort=None, legend=legend())
    tooltip = [
        alt.Tooltip("predictor:N", title="Property"),
        alt.Tooltip("variant:N", title="Compared"),
        alt.Tooltip("estimate:Q", title="Correlation", format="+.2f"),
        alt.Tooltip("interval_text:N", title="95 % interval"),
        alt.Tooltip("p_text:N", title="p"),
        alt.Tooltip("n_text:N", title="Rests on"),
    ]
    domain = alt.Scale(domain=[-1, 1])
    axis = alt.Axis(values=[-1, -0.5, 0, 0.5, 1])
    base = alt.Chart().encode(y=y, yOffset=offset, color=color, tooltip=tooltip)
    zero = (
        alt.Chart(alt.InlineData(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[3, 3], opacity=0.7)
        .encode(x="zero:Q")
    )
    rule = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="Rank correlation with gain", scale=domain, axis=axis), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=62, opacity=1).encode(
        x=alt.X("estimate:Q", scale=domain)
    )
    # The page sets the height by the number of properties: with a step, Vega-Lite 6.4 cannot fit
    # the width to the page without a warning.
    return alt.layer(zero, rule, dot).properties(
        width="container", height=120, data=alt.NamedData("rows")
    )
