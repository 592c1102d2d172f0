"""What is wrong with a released table, and what was tested and found right?

In: a wide table as it was read. Out: defects, each with where, evidence, effect and treatment, and
sentences on what passed. The tests know no table: they use the numbers as they were written, and
what the publisher states about each column. What ordinary chance explains is no defect.
"""

from sft_atlas.evidence.copied_rows import copy_defects, copy_facts
from sft_atlas.evidence.counts import count_defects, count_facts
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.grades import grade_defects, grade_facts
from sft_atlas.evidence.holes import hole_defects
from sft_atlas.evidence.mixtures import mixture_defects, unmixed
from sft_atlas.evidence.prompt_forms import form_defects
from sft_atlas.evidence.scales import scale_defects
from sft_atlas.evidence.source import SourceTable
from sft_atlas.evidence.totals import total_defects, total_facts

__all__ = ["find_defects", "passed_checks", "unmixed"]


def find_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Run every test on a table; the same table always gives the same defects in the same order."""
    return (
        *mixture_defects(source),
        *copy_defects(source),
        *scale_defects(source),
        *count_defects(source),
        *grade_defects(source),
        *total_defects(source),
        *form_defects(source),
        *hole_defects(source),
    )


def passed_checks(source: SourceTable) -> tuple[str, ...]:
    """Say what was tested and found as stated, a sentence each."""
    return (*count_facts(source), *grade_facts(source), *total_facts(source), *copy_facts(source))
