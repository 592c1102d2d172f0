"""What is the answer to one question of a study?

A question's module has one public function from tidy tables to an `Answered`; what its tables hold
is in that function's docstring, from which the report's appendix is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from sft_atlas.analyze.findings import Finding


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Findings of one question, and the tables that they and the charts rest on."""

    findings: tuple[Finding, ...]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """By name, unique over all questions: it names the exported file and the chart's data."""
