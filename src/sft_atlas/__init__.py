"""Run controlled studies of supervised fine-tuning: plan, train, evaluate, measure, answer.

The verbs of the command line as functions: `sft_atlas.plan("study.yaml")`, `sft_atlas.table(...)`.
They are looked up when first used, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_atlas.api import (
        DEFAULT_STORE,
        answers,
        benchmarks,
        doctor,
        drift,
        import_results,
        inspect,
        load_study,
        new,
        next_cells,
        plan,
        recommend,
        report,
        run,
        show,
        spectra,
        status,
        table,
        tables,
    )
    from sft_atlas.errors import Error

__all__ = [
    "DEFAULT_STORE",
    "Error",
    "answers",
    "benchmarks",
    "doctor",
    "drift",
    "import_results",
    "inspect",
    "load_study",
    "new",
    "next_cells",
    "plan",
    "recommend",
    "report",
    "run",
    "show",
    "spectra",
    "status",
    "table",
    "tables",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sft_atlas' has no attribute {name!r}")
    from sft_atlas import api, errors

    return getattr(errors if name == "Error" else api, name)


def __dir__() -> list[str]:
    return __all__
