"""Lay out how far a tuned model moved from its base: a table by layer, one by kind, the whole.

In: what `measure_pair` returns. Out: something that Rich can print, or JSON with stable keys.
Relative changes are shown as percent, because most lie below one.
"""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from sft_atlas.measure.drift import DriftRow
    from sft_atlas.measure.spectrum import SpectrumRow
    from sft_atlas.measure.weight_pair import PairDrift

_TOTAL = "total"


def drift_json(result: "PairDrift", spectra: Sequence["SpectrumRow"] = ()) -> dict[str, Any]:
    """Return all rows and what it took, with stable keys."""
    return {
        "rows": [row._asdict() for row in result.rows],
        "spectra": [row._asdict() for row in spectra],
        "num_layers": result.num_layers,
        "from_adapter": result.from_adapter,
        "seconds": result.seconds,
        "bytes_read": result.bytes_read,
        "notes": list(result.notes),
    }


def drift_frame(result: "PairDrift", spectra: Sequence["SpectrumRow"] = ()) -> "pd.DataFrame":
    """Return one row per weight and total; columns of the spectrum are empty where it has none."""
    import pandas as pd

    rows = pd.DataFrame([row._asdict() for row in result.rows])
    if not spectra:
        return rows
    found = pd.DataFrame([row._asdict() for row in spectra])
    known = [name for name in found.columns if name in rows.columns and name != "tensor"]
    return rows.merge(found.drop(columns=known), on="tensor", how="outer")


def drift_page(result: "PairDrift", spectra: Sequence["SpectrumRow"] = ()) -> RenderableType:
    """Show layers, kinds, spectra by kind, the weights outside the layers, the whole, and notes."""
    whole = result.rows[-1]
    layers = [row for row in result.rows if row.kind == _TOTAL and row.layer is not None]
    kinds = [row for row in result.rows if row.tensor.startswith("kind.")]
    outside = [
        row for row in result.rows if row.layer is None and row.kind != _TOTAL and row not in kinds
    ]
    parts: list[RenderableType] = []
    if layers:
        parts.append(_table("layer", ((str(row.layer), row) for row in layers)))
        parts.append(Text())
        parts.append(_table("kind, all layers", ((row.kind, row) for row in kinds)))
        parts.append(Text())
    if spectra:
        parts.append(_spectra_table(spectra))
        parts.append(Text())
    parts.append(
        _table("outside the layers", [*((r.tensor, r) for r in outside), ("whole model", whole)])
    )
    source = "an adapter's factors" if result.from_adapter else "both models' weights"
    speed = result.bytes_read / max(result.seconds, 1e-9)
    parts.append(
        Text(
            f"\nFrom {source}: {result.bytes_read / 1e6:,.1f} MB read in {result.seconds:,.1f} s "
            f"({speed / 1e6:,.0f} MB/s). Relative is |dW| / |W|; unchanged weights have the same "
            f"bfloat16 value.",
            "dim",
        )
    )
    if spectra:
        parts.append(
            Text(
                "Ranks are medians over matrices; intruders are counted among the ten leading left "
                "vectors of each tuned matrix, at a cosine below 0.3, 0.5, 0.6 and 0.8.",
                "dim",
            )
        )
    parts += [Text(f"Note: {note}") for note in result.notes]
    return Group(*parts)


def _table(title: str, rows: Iterable[tuple[str, "DriftRow"]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title)
    for name in ("relative", "frobenius", "rms", "unchanged", "weights"):
        table.add_column(name, justify="right")
    for name, row in rows:
        table.add_row(
            escape(name),
            "" if row.relative is None else f"{row.relative:.4%}",
            f"{row.frobenius:.4g}",
            f"{row.rms:.3g}",
            f"{row.unchanged_fraction:.2%}",
            f"{row.num_weights:,}",
        )
    return table


def _spectra_table(spectra: Sequence["SpectrumRow"]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("spectrum", no_wrap=True)
    names = ("matrices", "stable rank", "effective rank", "largest value", "intruders")
    for name in names:
        table.add_column(name, justify="right")
    for kind in sorted({row.kind for row in spectra}):
        rows = [row for row in spectra if row.kind == kind]
        counts = [
            sum(getattr(row, f"intruders_{level}") or 0 for row in rows)
            for level in ("03", "05", "06", "08")
        ]
        table.add_row(
            kind,
            str(len(rows)),
            _median([row.stable_rank for row in rows]),
            _median([row.effective_rank for row in rows]),
            _median([row.spectral_norm for row in rows]),
            " ".join(map(str, counts)),
        )
    return table


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.4g}" if known else ""
