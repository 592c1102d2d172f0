"""What do charts share? Legends, the axis of depth, the line at zero."""

from typing import Any

import altair as alt


def legend(**more: Any) -> alt.Legend:
    """A legend below the chart."""
    return alt.Legend(title=None, orient="bottom", symbolOpacity=1, **more)


def series_color() -> alt.Color:
    """Colour of lines by their field `series`, in the order of the rows."""
    strokes = legend(symbolType="stroke", symbolStrokeWidth=3, symbolSize=180)
    return alt.Color("series:N", legend=strokes, sort=None)


def depth() -> alt.X:
    """The axis of position along a model's depth."""
    return alt.X(
        "position:Q",
        title="Position along the depth (0 = input, 1 = output)",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
    )


def zero_rule() -> alt.Chart:
    """A dashed line where y is 0."""
    return (
        alt.Chart(alt.InlineData(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[3, 3], opacity=0.7)
        .encode(y="zero:Q")
    )
