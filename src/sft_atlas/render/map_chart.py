"""How is the map of all models drawn?

Out: a Vega-Lite specification without data. `assets/map.js` gives it the points in the colours that
the reader chose, and a domain on which one unit is as wide as it is high: a map that is stretched
in one direction would show distances that are not there.
"""

import altair as alt


def model_map() -> alt.LayerChart:
    """One mark per model, a star per base model, and paths through the epochs of training runs."""
    x = alt.X("x:Q", axis=None, scale=alt.Scale(nice=False, zero=False))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(nice=False, zero=False))
    tooltip = [
        alt.Tooltip("model:N", title="Base model"),
        alt.Tooltip("data:N", title="Data"),
        alt.Tooltip("method:N", title="Method"),
        alt.Tooltip("samples:N", title="Samples"),
        alt.Tooltip("epoch:N", title="Epoch"),
        alt.Tooltip("away:N", title="From the base"),
        alt.Tooltip("gain_text:N", title="Mean gain"),
        alt.Tooltip("placed:N", title="Place"),
    ]
    ink = alt.Color("ink:N", scale=None)
    brush = alt.selection_interval(name="brush", encodings=["x", "y"])
    paths = (
        alt.Chart(alt.NamedData("paths"))
        .mark_line(strokeWidth=1.1, opacity=0.4, strokeJoin="round")
        .encode(x=x, y=y, detail="path:N", order="order:Q", color=ink)
    )
    points = (
        alt.Chart(alt.NamedData("rows"))
        .mark_point(filled=True, size=52, strokeWidth=1.4)
        .encode(
            x=x,
            y=y,
            fill=alt.Fill("group:N", sort=None),
            stroke=alt.Stroke("group:N", sort=None),
            fillOpacity=alt.FillOpacity("fill:Q", scale=None, legend=None),
            opacity=alt.condition(brush, alt.value(0.88), alt.value(0.14)),
            tooltip=tooltip,
        )
        .add_params(brush)
    )
    base = alt.Chart(alt.NamedData("bases")).encode(x=x, y=y)
    stars = base.mark_point(filled=True, size=230, strokeWidth=1.2, opacity=1).encode(
        color=ink, tooltip=tooltip
    )
    name = {"fontSize": 11.5, "fontWeight": "bold", "baseline": "middle"}
    label = alt.Chart(alt.NamedData("bases")).encode(
        x=alt.X("label_x:Q", axis=None), y=alt.Y("label_y:Q", axis=None), text="label:N"
    )
    halo = label.mark_text(**name, strokeWidth=3.5, opacity=0.85)
    names = label.mark_text(**name)
    return (
        alt.layer(paths, points, stars, halo, names)
        .resolve_scale(color="independent", fill="independent", stroke="independent")
        .properties(width="container", height=420)
    )
