"""Which of the paper's claims hold in these results?

In: an analysis. Out: one verdict per claim of Harada et al. (2025, arXiv 2506.14681), for their own
released table and for any other study alike. The one decision: a claim is judged by the same
estimates and intervals that the report shows, so that a verdict cannot say more than its evidence.
What a table cannot tell is "not testable", with what is missing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from sft_atlas.analyze import paper_verdicts as verdicts
from sft_atlas.analyze.analysis import Analysis
from sft_atlas.analyze.findings import Finding
from sft_atlas.analyze.paper_verdicts import Verdict
from sft_atlas.analyze.questions.answered import Answered

HOLDS: Final = "What of Harada et al. (2025) holds here?"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that the paper says, in our words."""

    text: str
    part: str
    """The paper's research question."""
    judge: Callable[[Analysis], Verdict]


def paper_claims(analysis: Analysis) -> Answered:
    """Judge each claim of the paper by the estimates of this analysis.

    Claims are those of Harada et al. (2025) about interactions, data, layers and training factors,
    as far as their public text states them. "Reproduced" needs an interval that leaves out the
    opposite, and where several comparisons were made the adjusted p-value; that something makes no
    difference needs an interval without noticeable ones. Counts and orders have no interval and are
    judged by the estimate, as the reason then says. "Not reproduced" means that the interval does
    not show it, which is no proof of the opposite.

    Tables: `paper_findings`: part (research question), claim, verdict (`reproduced`, `partly
    reproduced`, `not reproduced`, `not testable`), because.
    """
    judged = [(claim, claim.judge(analysis)) for claim in CLAIMS]
    table = pd.DataFrame(
        [(c.part, c.text, v.word, v.because) for c, v in judged],
        columns=["part", "claim", "verdict", "because"],
    )
    counts = table["verdict"].value_counts()
    listed = ", ".join(f"{counts[word]} {word}" for word in counts.index)
    is_silent = bool((table["verdict"] == "not testable").all())
    finding = Finding(
        question=HOLDS,
        statement=(
            "Not estimable: these results can test none of the paper's claims."
            if is_silent
            else f"Of {len(table)} claims: {listed}. The table of verdicts gives each reason."
        ),
        estimate=None if is_silent else float((table["verdict"] == "reproduced").sum()),
        interval=None,
        scale="count",
        n=len(table),
        unit="claim",
        method="Each claim is judged by this report's own estimates and intervals.",
        rows=(),
        reason="no claim can be tested" if is_silent else "",
    )
    return Answered(findings=(finding,), tables={"paper_findings": table})


CLAIMS: Final[Sequence[Claim]] = (
    Claim(
        part="model x data x task",
        text="Some synergies of dataset and task hold in all models, others vary with the model.",
        judge=verdicts.synergies,
    ),
    Claim(
        part="model x data x task", text="Models of one family behave alike.", judge=verdicts.family
    ),
    Claim(
        part="model x data x task",
        text="The pre-training language does not noticeably affect how alike models behave.",
        judge=verdicts.language,
    ),
    Claim(
        part="model x data x task",
        text="About five principal components hold more than 90 % of the variance.",
        judge=verdicts.components,
    ),
    Claim(
        part="model x data x task",
        text="Code data helps a wider range of tasks than maths data.",
        judge=verdicts.code_is_wide,
    ),
    Claim(
        part="model x data x task", text="Code data helps maths.", judge=verdicts.code_helps_maths
    ),
    Claim(
        part="data",
        text="Data that the base model finds more likely brings larger gains.",
        judge=verdicts.perplexity,
    ),
    Claim(
        part="data",
        text="Perplexity goes with gain more closely than length and similarity do.",
        judge=verdicts.rivals,
    ),
    Claim(
        part="layers",
        text="Weight change goes with gain most closely in middle layers, at about 0.6.",
        judge=verdicts.layers,
    ),
    Claim(part="layers", text="Weights change more towards the top.", judge=verdicts.change_grows),
    Claim(
        part="layers",
        text="From 0.6 of the depth on, tuned models have a higher intrinsic dimension.",
        judge=verdicts.dimension,
    ),
    Claim(
        part="training",
        text="On the map, models lie by family and not by corpus; epochs move to one region; LoRA "
        "and full fine-tuning overlap.",
        judge=verdicts.on_the_map,
    ),
    Claim(
        part="training",
        text="20,000 samples have no consistent advantage over 1,000.",
        judge=verdicts.sizes,
    ),
    Claim(
        part="training",
        text="Full fine-tuning is ahead on knowledge or maths, LoRA on open-ended answers.",
        judge=verdicts.trade,
    ),
    Claim(
        part="training",
        text="Changes on one test in English, Chinese and Japanese go closely together in each "
        "pre-training language.",
        judge=verdicts.languages,
    ),
)
"""As the paper's public text states them."""
