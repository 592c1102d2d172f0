"""Which section of the page holds the evidence of which question?

In: an analysis. Out: one `Section` per answered question, in the order in which a reader decides:
what works, for whom, how to train, then how far it can be told in advance. A question without a
Finding and without rows has no section; one that could not be estimated says why.
"""

from sft_atlas.analyze.analysis import Analysis
from sft_atlas.analyze.findings import Finding
from sft_atlas.render.exhibits import Section


def all_findings(analysis: Analysis) -> list[Finding]:
    """Return every Finding once: those of the whole study, then those of each question."""
    found = list(analysis.findings)
    seen = {id(finding) for finding in found}
    for answered in analysis.answered.values():
        found += [finding for finding in answered.findings if id(finding) not in seen]
    return found


def question_sections(analysis: Analysis) -> list[Section]:
    """Return the sections that have anything to say."""
    return []
