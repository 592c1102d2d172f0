"""What is there to answer from: an own study, or results that somebody else measured?

In: a study file, or the name of imported results. Out: the same tables either way, and the answers
of every stage put together. The one decision: what exists as a file, or is named like one, is a
study file; all else is a name in the store.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sft_atlas.machine import one_thread
from sft_atlas.store.store import Store
from sft_atlas.study.study import Study

if TYPE_CHECKING:
    from sft_atlas.analyze.analysis import Analysis
    from sft_atlas.evidence.imported import Imported
    from sft_atlas.store.tables import Grid, Tables


@dataclass(frozen=True, kw_only=True)
class Results:
    """Tables, and where they are from: a study with its grid, or imported results."""

    name: str
    tables: "Tables"
    study: Study | None = None
    grid: "Grid | None" = None
    imported: "Imported | None" = None


def is_study_file(named: Path) -> bool:
    """Tell a study file from the name of imported results."""
    return named.suffix in (".yaml", ".yml") or len(named.parts) > 1 or named.exists()


def results_of_study(study: Study, store: Store) -> Results:
    """Read the tables of an own study."""
    from sft_atlas.store.tables import grid_of, load_tables

    grid = grid_of(study)
    return Results(name=study.name, tables=load_tables(store, grid), study=study, grid=grid)


def results_of_others(name: str, store: Store) -> Results:
    """Read imported results.

    Raises:
        StoreError: if the store holds none of this name.
    """
    from sft_atlas.evidence.stored import load_evidence

    imported = load_evidence(store, name)
    return Results(name=name, tables=imported.tables, imported=imported)


def answer(results: Results, *, num_resamples: int = 1000, seed: int = 0) -> "Analysis":
    """Answer the questions of the grid, the forecast and the decision; judge the paper's claims."""
    from sft_atlas.analyze.analysis import analyze
    from sft_atlas.analyze.paper_claims import paper_claims
    from sft_atlas.decide.answers import decision_answered
    from sft_atlas.forecast.answers import forecastability

    with one_thread():
        found = analyze(results.tables, num_resamples=num_resamples, seed=seed)
        more = {
            "forecast": forecastability(results.tables, seed=seed),
            "decision": decision_answered(results.tables),
            "paper": paper_claims(found),
        }
    return replace(found, answered={**found.answered, **more})
