"""Say what each saving is worth: a study's evaluation hours with none, one, and all of them.

In: a plan. Out: device hours of its whole evaluation in each way. All ways are costed by one model
on one device, so the factors compare ways, not machines; where others published what their
evaluation took, their hours divided by the factor say what it would have taken on their devices.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from sft_atlas.study.asking import HERE, PLAIN, Way
from sft_atlas.study.assumption import NOTHING, Range
from sft_atlas.study.budget import BASE
from sft_atlas.study.cost import CostModel
from sft_atlas.study.plan import Plan
from sft_atlas.study.spec import CellSpec, MethodSpec, ModelSpec

_MEANING: Final = {
    "merges_adapters": (
        "adapters merged before scoring",
        "time of unmerged scoring from the released hours per cell, LoRA to full: 2.2 (0.8 to 4.5)",
    ),
    "reuses_prefix": (
        "solved examples read once",
        "exact; counted from the lengths on the cards",
    ),
    "shares_context": (
        "prompt read once for all options",
        "exact; counted from the lengths on the cards (lm-eval, PR 631: 4 x measured on MMLU)",
    ),
    "forces_targets": (
        "exact matches decided without decoding",
        "exact; only benchmarks whose metric is greedy_match",
    ),
    "uses_limit": (
        "frozen subsets of the items",
        "the study's limits; each benchmark's standard error is in the plan",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """One saving: without any other, and as the only one that is missing."""

    name: str
    hours_alone: Range
    """Device hours with this saving alone."""
    factor_alone: float
    """Times fewer hours than with none, likely."""
    factor_last: float
    """Times more hours if this one were missing from all, likely."""
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Savings:
    """What evaluating a whole study costs in an empty store, with no saving and with all."""

    plain_hours: Range
    """Every option of every item a text of its own, adapters not merged, no limit."""
    hours: Range
    """With all savings: how evaluation works here."""
    plain_cell_hours: dict[str, float]
    """Likely hours of a mean cell by method with no saving, `base` for base models."""
    parts: tuple[Saving, ...]

    @property
    def factor(self) -> float:
        """Times fewer hours with all savings, likely."""
        return _ratio(self.plain_hours, self.hours)


def evaluation_savings(plan: Plan) -> Savings:
    """Cost the evaluation of a whole study in every way; stored scores save nothing here.

    Benchmarks that cannot be scored yet count too.
    """
    cells = Counter((cell.cell.model.name, _method(cell.cell)) for cell in plan.bases + plan.cells)
    bill = _Bill(plan.cost_model(), cells)
    plain, ours = bill.hours(PLAIN), bill.hours(HERE)
    parts = []
    for field in fields(Way):
        alone = bill.hours(replace(PLAIN, **{field.name: True}))
        missing = bill.hours(replace(HERE, **{field.name: False}))
        name, source = _MEANING[field.name]
        parts.append(
            Saving(
                name=name,
                hours_alone=alone,
                factor_alone=_ratio(plain, alone),
                factor_last=_ratio(missing, ours),
                source=source,
            )
        )
    return Savings(
        plain_hours=plain,
        hours=ours,
        plain_cell_hours=bill.cell_hours(PLAIN),
        parts=tuple(parts),
    )


@dataclass(frozen=True)
class _Bill:
    model: CostModel
    cells: Mapping[tuple[str, str], int]
    """Number of cells by names of base model and method."""

    def hours(self, way: Way) -> Range:
        total = NOTHING
        for (model, method), num_cells in self.cells.items():
            total = total.plus(self._cell(model, method, way).times(num_cells))
        return total.times(1 / 3600)

    def cell_hours(self, way: Way) -> dict[str, float]:
        """Return the likely hours of a mean cell by method."""
        found = {}
        for method in dict.fromkeys(method for _, method in self.cells):
            chosen = {model: n for (model, other), n in self.cells.items() if other == method}
            seconds = sum(n * self._cell(m, method, way).likely for m, n in chosen.items())
            found[method] = seconds / sum(chosen.values()) / 3600
        return found

    def _cell(self, model: str, method: str, way: Way) -> Range:
        study = self.model.study
        spec: ModelSpec = study.model_by_name[model].spec
        known: MethodSpec | None = study.method_by_name.get(method)
        is_adapter = known is not None and known.lora is not None
        # A base model is loaded to be scored; a tuned one is there when its training ends.
        total = self.model.loading(spec) if method == BASE else NOTHING
        for benchmark in study.benchmarks:
            answers = self.model.answers(spec, benchmark, way=way, is_adapter=is_adapter)
            total = total.plus(answers)
        return total


def _method(cell: CellSpec) -> str:
    return BASE if cell.trajectory is None else cell.trajectory.method.name


def _ratio(more: Range, fewer: Range) -> float:
    return more.likely / fewer.likely if fewer.likely else 1.0
