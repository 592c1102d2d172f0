"""How do the sections' charts and tables reach the page's scripts?

Out: plain JSON. A column of texts is a list of distinct names and a list of places in it; numbers
keep five significant digits, which is more than any of them is known to; absent values are null.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from sft_atlas.render.coding import significant
from sft_atlas.render.exhibits import Section, is_absent


def exhibit_payload(sections: Iterable[Section]) -> dict[str, Any]:
    """Return `exhibits`, a list of charts, and `tables`, full rows by name."""
    listed = list(sections)
    return {
        "exhibits": [
            {
                "name": chart.name,
                "caption": chart.caption,
                "form": chart.form,
                "rows": packed(chart.rows),
                "choices": [
                    {"column": choice.column, "label": choice.label, "first": choice.first}
                    for choice in chart.choices
                ],
            }
            for section in listed
            for chart in section.charts
        ],
        "tables": {
            table.name: packed(table.rows) for section in listed for table in section.tables
        },
    }


def packed(rows: pd.DataFrame) -> dict[str, Any]:
    """Return columns as arrays; texts as names and places, -1 where absent."""
    return {str(name): _column(rows[name]) for name in rows.columns}


def _column(column: "pd.Series[Any]") -> Any:
    values = [None if is_absent(value) else value for value in column.tolist()]
    if any(isinstance(value, str) for value in values):
        names = list(dict.fromkeys(str(value) for value in values if value is not None))
        places = {name: i for i, name in enumerate(names)}
        codes = [-1 if value is None else places[str(value)] for value in values]
        return {"names": names, "codes": codes}
    return [value if isinstance(value, bool) else significant(value, 5) for value in values]
