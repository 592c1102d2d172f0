"""What goes on the page of a report beside the answers?

In: results, and the store that they are from. Out: one HTML file. A study's page shows its file and
where models and data are from; that of imported results, who released them and what is wrong with
them.
"""

import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sft_atlas.errors import StudyError
from sft_atlas.results import Results, answer
from sft_atlas.store.store import Store
from sft_atlas.study.spec import Source
from sft_atlas.study.study import Study

if TYPE_CHECKING:
    from sft_atlas.analyze.likelihood_map import MapTables
    from sft_atlas.evidence.imported import Imported
    from sft_atlas.render.html import Evidence, ReportMeta
    from sft_atlas.store.tables import Tables

_IMPORTED_NOTICE: Final = (
    "These results were measured by others. Items and seeds are not published with them: errors of "
    "single gains are those of independent samples, and no interval covers another training run."
)
_MINIATURE_NOTICE: Final = (
    "Models and tasks of this study are synthetic and very small: the miniature world. Learning in "
    "it is real, but its figures say nothing about large models."
)


def write_results_report(
    results: Results,
    store: Store,
    *,
    study_file: Path,
    output: Path | None = None,
    figures: Path | None = None,
) -> Path:
    """Write the page and return its path; with `figures` also a folder of charts and tables.

    Raises:
        StudyError: if the folder of `output` does not exist, or figures cannot be drawn.
    """
    from sft_atlas.render.figures import converter
    from sft_atlas.render.html import write_report

    path = output or Path(f"report-{results.name}.html")
    if not path.absolute().parent.is_dir():
        raise StudyError(f"{path}: its folder does not exist; make it, or use --output.")
    if figures is not None:
        # What is missing is said before minutes of analysis, not after.
        converter()
    meta, evidence = _about(results, store, study_file)
    return write_report(
        results.tables, meta, path, analysis=answer(results), evidence=evidence, figures=figures
    )


def _about(results: Results, store: Store, study_file: Path) -> "tuple[ReportMeta, Evidence]":
    """What the page says of the results beside their analysis."""
    from sft_atlas.render.html import Evidence, ReportMeta
    from sft_atlas.store.overlaps import overlap_table
    from sft_atlas.store.tables import groups_table

    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if results.imported is not None:
        found = results.imported
        return _about_imported(found, made), Evidence(defects=found.defects, checks=found.checks)
    study, grid = results.study, results.grid
    assert study is not None and grid is not None
    is_miniature = any(_is_bundled(model.spec.source) for model in study.models)
    meta = ReportMeta(
        study=study.name,
        description=study.about,
        notice=_MINIATURE_NOTICE if is_miniature else "",
        study_file=study_file.read_text(encoding="utf-8"),
        made=made,
        provenance=_provenance(study, store.layout.root),
    )
    cells = [wish.cell for wish in grid.cells]
    evidence = Evidence(
        groups=groups_table(store, grid, results.tables.cells),
        overlaps=overlap_table(store, grid.overlaps, cells=cells, benchmarks=grid.benchmarks),
        map=_draw_map(store, results.tables),
    )
    return meta, evidence


def _about_imported(imported: "Imported", made: str) -> "ReportMeta":
    from sft_atlas.render.html import ReportMeta

    return ReportMeta(
        study=imported.name,
        description=f"Results that others released, read from {imported.origin}.",
        notice=_IMPORTED_NOTICE,
        made=made,
        provenance=[
            *_versions("sft-atlas", "numpy"),
            ("source", imported.origin),
            ("kind", imported.kind),
            ("SHA-256", imported.sha256),
        ],
    )


def _draw_map(store: Store, tables: "Tables") -> "MapTables":
    """Place the cells on the map that earlier reports of any study made; keep what is new."""
    from sft_atlas.analyze.likelihood_map import MapTables, default_steps, map_tables
    from sft_atlas.store.maps import load_mapped, publish_map

    if tables.vectors is None:
        return MapTables()
    vectors, known = load_mapped(store, tables.vectors, default_steps())
    drawn = map_tables(vectors, tables.cells, known=known)
    for made in drawn.fresh:
        publish_map(store, made)
    return drawn


def _provenance(study: Study, store: Path) -> list[tuple[str, str]]:
    models = [(f"model {m.spec.name}", _source_text(m.spec.source)) for m in study.models]
    datasets = [(f"dataset {d.spec.name}", _source_text(d.spec.source)) for d in study.datasets]
    versions = _versions("sft-atlas", "torch", "transformers", "numpy")
    return [*versions, ("store", str(store)), *models, *datasets]


def _is_bundled(source: Source) -> bool:
    return source.path is not None and Path(__file__).parent in source.path.parents


def _source_text(source: Source) -> str:
    if source.hub:
        return f"{source.hub} at {source.revision or 'its main branch'}"
    return f"SHA-256 {source.sha256}"


def _versions(*names: str) -> list[tuple[str, str]]:
    return [(name, metadata.version(name)) for name in names]
