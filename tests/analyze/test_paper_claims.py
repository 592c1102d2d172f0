"""A claim is judged by what was planted, and what a table cannot tell is not testable."""

import numpy as np
import pandas as pd
import pytest

from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.analyze.analysis import Analysis, analyze
from sft_atlas.analyze.paper_claims import CLAIMS, paper_claims
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.store.tables import Tables

SHAPE = (9, 8, 6)
FAMILIES = tuple("xxxyyyzzz")
GROUPS = ("code", "code", "math", "math", "general", "general", "general", "general")
SKILLS = ("math", "math", "code", "knowledge", "knowledge", "open-ended")


def verdicts(tables: Tables, *questions: str) -> dict[str, tuple[str, str]]:
    analysis = analyze(tables, questions=questions, num_resamples=200)
    table = paper_claims(analysis).tables["paper_findings"]
    return {row["claim"]: (row["verdict"], row["because"]) for row in table.to_dict("records")}


def grid(own: float, *, taste: float = 0.05, code: float = 0.0) -> Tables:
    """Datasets' effects by family (`taste`) and model (`own`); code data raises everything."""
    rng = np.random.default_rng(3)
    base = rng.uniform(0.3, 0.5, size=(SHAPE[0], SHAPE[2]))
    family = np.repeat(rng.normal(size=(3, *SHAPE[1:])), 3, axis=0)
    effect = taste * family + own * rng.normal(size=SHAPE)
    effect[:, :2] += code
    labels = Labels(families=FAMILIES, data_groups=GROUPS, skills=SKILLS)
    return grid_tables(base[:, None] + effect, base, labels)


def test_a_planted_family_is_found_and_an_absent_one_is_not() -> None:
    claim = "Models of one family behave alike."
    assert verdicts(grid(0.01), "likeness")[claim][0] == "reproduced"
    assert verdicts(grid(0.05, taste=0.0), "likeness")[claim][0] == "not reproduced"


def test_code_data_that_helps_everything_helps_maths_and_is_wide() -> None:
    found = verdicts(grid(0.01, taste=0.01, code=0.2), "likeness")
    assert found["Code data helps maths."][0] == "reproduced"
    wide = found["Code data helps a wider range of tasks than maths data."]
    assert wide[0] == "reproduced" and "benchmarks of 6" in wide[1]
    other = verdicts(grid(0.01, taste=0.01, code=-0.2), "likeness")
    assert other["Code data helps maths."][0] == "not reproduced"
    assert other["Code data helps a wider range of tasks than maths data."][0] == "not reproduced"


@pytest.mark.parametrize(("rise", "word"), [(0.1, "not reproduced"), (0.0, "reproduced")])
def test_an_advantage_of_more_samples_speaks_against_the_paper(rise: float, word: str) -> None:
    rng = np.random.default_rng(5)
    base = rng.uniform(0.3, 0.5, size=(5, 4))
    score = base[:, None] + 0.005 * rng.normal(size=(5, 6, 4))
    rows = [
        grid_rows(score + step, base, Labels(samples=samples, schedule="constant"))
        for samples, step in ((1000, 0.0), (20000, rise))
    ]
    second = rows[1][rows[1]["method"] != "base"]
    joined = tidy_tables(pd.concat([rows[0], second], ignore_index=True))
    claim = "20,000 samples have no consistent advantage over 1,000."
    found = verdicts(joined, "doses")[claim]
    assert found[0] == word and "20,000 instead of 1,000 samples" in found[1]


def test_open_ended_skills_of_a_single_run_are_not_testable() -> None:
    labels = Labels(methods=("full", "lora"), skills=("open-ended", "math"))
    tables = grid_tables(np.full((1, 1, 2, 2), 0.5), np.full((1, 2), 0.4), labels)
    claim = "Full fine-tuning is ahead on knowledge or maths, LoRA on open-ended answers."
    word, because = verdicts(tables, "methods")[claim]
    assert word == "not testable" and because.endswith("Nothing could be resampled.")


def test_few_models_cannot_exclude_that_their_language_matters() -> None:
    rng = np.random.default_rng(8)
    languages = ("en", "en", "ja", "ja", "zh")
    labels = Labels(languages=languages, families=("f",) * 5)
    tables = grid_tables(0.5 + 0.05 * rng.normal(size=(5, 4, 3)), np.full((5, 3), 0.4), labels)
    claim = "The pre-training language does not noticeably affect how alike models behave."
    assert verdicts(tables, "likeness")[claim][0] in ("partly reproduced", "not testable")


def test_a_bare_table_says_of_each_claim_what_is_missing() -> None:
    base = np.full((1, 1), 0.4)
    found = verdicts(grid_tables(np.full((1, 1, 1), 0.5), base), "likeness", "doses", "methods")
    assert len(found) == len(CLAIMS)
    for word, because in found.values():
        assert word == "not testable" and because.endswith(".") and "nan" not in because


def test_the_count_of_verdicts_is_the_finding() -> None:
    tables = grid(0.01)
    analysis: Analysis = analyze(tables, questions=("likeness",), num_resamples=100)
    answered = paper_claims(analysis)
    (finding,) = answered.findings
    verdict = answered.tables["paper_findings"]["verdict"]
    assert finding.n == len(CLAIMS)
    assert finding.estimate == (verdict == "reproduced").sum()
    assert finding.statement.startswith(f"Of {len(CLAIMS)} claims: ")
