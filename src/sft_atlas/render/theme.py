"""Which colours and letters do charts have, on the page and in exported files?

Out: plain values that the page embeds and `figures` uses, so that both draw alike. Colours are
those of Okabe and Ito (2008), darkened for contrast with white; fonts are the system's own, with
the usual Chinese, Japanese and Korean ones behind them, since a page must not load any.
"""

from typing import Any, Final, Literal

ThemeName = Literal["light", "dark"]

FONTS: Final = (
    'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", '
    '"DejaVu Sans", "Hiragino Sans", "Yu Gothic", "Noto Sans CJK JP", "PingFang SC", '
    '"Microsoft YaHei", "Noto Sans CJK SC", "WenQuanYi Micro Hei", sans-serif'
)

THEMES: Final[dict[ThemeName, dict[str, Any]]] = {
    "light": {
        "page": "#ffffff",
        "ink": "#1b1f24",
        "soft": "#59616b",
        "line": "#dfe1de",
        "mark": "#1f5f9e",
        "own": "#1b1f24",
        "band": "#e9ebe6",
        "darkText": "#14181c",
        "lightText": "#ffffff",
        "strongText": "#ffffff",
        "weakText": "#14181c",
        "diverging": [
            *("#0a4a8a", "#2f7fc0", "#8dbce0", "#f4f4f0", "#f3b878", "#dd7f1f", "#9c4a00"),
        ],
        "ramp": ["#f1f4f6", "#bcd4ea", "#6fa4d3", "#2f6fab", "#0a3f75"],
        "category": [
            *("#0072b2", "#d55e00", "#009e73", "#b5508f", "#6a51a3", "#8c6d1f"),
            *("#3fa7d6", "#e69f00", "#5b6770", "#a63d40", "#2b8c8c", "#7a9a01"),
        ],
    },
    "dark": {
        "page": "#1b1f23",
        "ink": "#e8eaec",
        "soft": "#a3abb3",
        "line": "#333a40",
        "mark": "#7ab4ea",
        "own": "#f2f4f5",
        "band": "#2a3036",
        "darkText": "#0e1113",
        "lightText": "#f2f4f5",
        "strongText": "#0e1113",
        "weakText": "#f2f4f5",
        "diverging": [
            *("#8cc4f5", "#3f8fd4", "#1f5688", "#23282d", "#8a5014", "#d8802a", "#ffc078"),
        ],
        "ramp": ["#23282d", "#1f4a73", "#2f74b5", "#66a9e6", "#b5dbff"],
        "category": [
            *("#56b4e9", "#f08a45", "#3ac79b", "#e08fc4", "#b3a2e8", "#d2b44c"),
            *("#9ad0f5", "#ffc14d", "#aab4bc", "#ef8a8c", "#6fd0d0", "#bfd94a"),
        ],
    },
}

SHAPES: Final = [
    *("circle", "square", "triangle-up", "diamond", "cross"),
    *("triangle-down", "triangle-right", "triangle-left"),
    # Star, hexagon, x and bar.
    "M0,-1L0.23,-0.32L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.23,-0.32Z",
    "M0,-0.9L0.78,-0.45L0.78,0.45L0,0.9L-0.78,0.45L-0.78,-0.45Z",
    "M-0.8,-0.45L-0.45,-0.8L0,-0.35L0.45,-0.8L0.8,-0.45L0.35,0L0.8,0.45L0.45,0.8L0,0.35L-0.45,0.8L-0.8,0.45L-0.35,0Z",
    "M-0.35,-0.95L0.35,-0.95L0.35,0.95L-0.35,0.95Z",
]


def chart_config(name: ThemeName) -> dict[str, Any]:
    """Vega-Lite's `config` for one theme; a page narrows the legend's columns to its width."""
    theme = THEMES[name]
    text = {
        "labelFont": FONTS,
        "titleFont": FONTS,
        "labelColor": theme["ink"],
        "titleColor": theme["soft"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 400,
    }
    axis = {
        "gridColor": theme["line"],
        "domainColor": theme["line"],
        "tickColor": theme["line"],
        "labelPadding": 6,
        "titlePadding": 10,
        "gridOpacity": 0.7,
        "labelFlush": False,
    }
    legend = {
        "labelLimit": 170,
        "symbolSize": 70,
        "rowPadding": 4,
        "columnPadding": 14,
        "symbolStrokeWidth": 2,
        "columns": 5,
    }
    return {
        "background": "transparent",
        "font": FONTS,
        "view": {"stroke": None},
        "axis": text | axis,
        "axisBand": {"grid": False},
        "legend": text | legend,
        "text": {"font": FONTS, "color": theme["ink"]},
        "rule": {"color": theme["soft"]},
        "line": {"color": theme["mark"]},
        "point": {"color": theme["mark"]},
        "area": {"color": theme["mark"]},
        "bar": {"color": theme["mark"]},
        "range": {
            "diverging": theme["diverging"],
            "category": theme["category"],
            "ramp": theme["ramp"],
            "symbol": SHAPES,
        },
    }


def themes() -> dict[str, dict[str, Any]]:
    """Return what the page embeds: by theme its colours and its chart config."""
    return {name: {**theme, "config": chart_config(name)} for name, theme in THEMES.items()}
