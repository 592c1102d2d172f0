"""The page says what speaks against a score, how sharp a benchmark is, and where items leaked."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sft_atlas.identity import fingerprint
from sft_atlas.render.coverage import ungained
from sft_atlas.render.sentinels import find_sentinels
from sft_atlas.render.trust import find_leaks, sharpness
from sft_atlas.store.estimate import estimate, paired_difference

MATH = "math-test"


@pytest.fixture
def tables(planted: SimpleNamespace) -> Any:
    return planted.make_tables(planted.World(num_models=2, num_datasets=3, epochs=(1, 2)))


def flag(scores: pd.DataFrame, rows: "pd.Series[bool]", text: str, **columns: Any) -> pd.DataFrame:
    """Raise a flag on the rows of one benchmark, and set columns there."""
    flagged = scores.copy()
    chosen = rows & (flagged["benchmark"] == MATH)
    assert chosen.any()
    flagged.loc[chosen, "flags"] = text
    for name, value in columns.items():
        flagged.loc[chosen, name] = value
    return flagged


def only_case(scores: pd.DataFrame) -> tuple[str, bool, str]:
    (found,) = find_sentinels(scores)
    (case,) = found.cases
    assert case.benchmark == MATH
    return found.kind, found.is_grave, case.text


def test_a_study_without_flags_has_no_warnings(tables: Any) -> None:
    assert find_sentinels(tables.scores) == []
    assert find_sentinels(tables.scores.iloc[:0]) == []


def test_a_base_at_chance_is_named_once_with_its_interval(tables: Any) -> None:
    scores = tables.scores
    scores = flag(scores, scores["model"] == "llama-a", "base at chance", chance=0.25)
    is_base = (scores["benchmark"] == MATH) & (scores["data"] == "base")
    here = is_base & (scores["model"] == "llama-a")
    scores.loc[here, ["score", "score_low", "score_high"]] = [0.26, 0.2, 0.33]
    assert only_case(scores) == (
        "base at chance",
        True,
        "1 of 2 base models, guessing gives 25.0 %: llama-a 26.0 [20.0, 33.0]",
    )


def test_copies_are_named_as_pairs_each_once(tables: Any) -> None:
    scores = tables.scores.assign(cell=tables.scores["cell"].map(fingerprint))
    chosen = (scores["data"] == "math-set") & (scores["model"] == "qwen2-b")
    pair = scores[chosen & (scores["benchmark"] == MATH)]["cell"].to_list()[:2]
    first, second = scores["cell"] == pair[0], scores["cell"] == pair[1]
    scores = flag(scores, first, f"truncated;identical to {pair[1][:12]}")
    scores = flag(scores, second, f"identical to {pair[0][:12]}")
    copies, cut = find_sentinels(scores)
    assert (copies.kind, copies.is_grave, cut.kind) == ("same answers", True, "prompts cut")
    names = [f"qwen2-b math-set full epoch {epoch}" for epoch in (1, 2)]
    assert copies.cases[0].text == f"2 cells: {names[0]} = {names[1]}"


def test_many_cells_are_counted_and_few_are_named(tables: Any) -> None:
    scores = flag(tables.scores, tables.scores["method"] == "lora", "format never followed")
    kind, is_grave, text = only_case(scores)
    assert (kind, is_grave) == ("form never followed", True)
    assert text.startswith("12 cells: llama-a knowledge-set lora epoch 1, ")
    assert text.endswith(", and 8 more")


@pytest.mark.parametrize(
    ("flags", "column", "kind", "what"),
    [
        ("truncated", "num_truncated", "prompts cut", "prompts"),
        ("cut off", "num_cut", "answers cut", "answers"),
        ("", "num_unfollowed", "form often missed", "answers"),
    ],
)
def test_shares_of_bases_and_of_tuned_models_stand_apart(
    tables: Any, flags: str, column: str, kind: str, what: str
) -> None:
    is_base = tables.scores["method"] == "base"
    scores = flag(tables.scores, is_base, flags, **{column: 150})
    scores = flag(scores, scores["cell"] == scores.loc[~is_base, "cell"].iloc[0], flags)
    scores.loc[scores["benchmark"] == MATH, column] = scores[column].mask(~is_base, 1)
    # 2 bases of 200 items each, 24 tuned cells, of which one is flagged for its few.
    num_cells = 3 if flags else 2
    shares = f"75 % of 400 {what} of base models, 0.5 % of 4,800 {what} of tuned models"
    assert only_case(scores) == (kind, False, f"{num_cells} cells: {shares}")


def test_a_rare_slip_of_form_is_no_warning(tables: Any) -> None:
    scores = flag(tables.scores, tables.scores["method"] != "none", "", num_unfollowed=19)
    assert find_sentinels(scores) == []


def test_agreement_over_items_is_never_an_error_of_nothing(tables: Any) -> None:
    none_right, no_change = estimate([0.0] * 20), paired_difference([0.0] * 20, [0.0] * 20)
    assert none_right.standard_error == no_change.standard_error == 0.0
    scores = tables.scores[tables.scores["benchmark"] == MATH].copy()
    scores["score_low"], scores["score_high"] = none_right.interval
    scores["gain_low"], scores["gain_high"] = no_change.interval
    scores = scores.assign(standard_error=0.0, gain_se=0.0, num_scored=20)
    (row,) = sharpness(scores)
    wide = (no_change.interval[1] - no_change.interval[0]) / (2 * 1.959964)
    assert (row.num_items, row.score_error) == ("20", f"{100 * 0.16113 / (2 * 1.96):.1f}")
    assert row.gain_error == f"{100 * wide:.1f}"
    assert row.noticed == f"{100 * wide * (1.959964 + 0.841621):.1f}"


def test_ratings_keep_their_scale_and_unknown_errors_are_no_number(tables: Any) -> None:
    scores = tables.scores[tables.scores["benchmark"] == MATH].assign(
        metric="rating", score_low=6.0, score_high=7.0, gain_low=np.nan, num_scored=[80, 79] * 13
    )
    (row,) = sharpness(scores)
    assert (row.num_items, row.score_error) == ("79 to 80", "0.26 of 10")
    assert (row.gain_error, row.noticed) == ("\N{EM DASH}", "\N{EM DASH}")
    (row,) = sharpness(scores.assign(num_scored=pd.array([None] * len(scores), dtype="Int64")))
    assert row.num_items == "\N{EM DASH}"
    assert sharpness(tables.scores.iloc[:0]) == []


def leaking(cells: pd.DataFrame) -> pd.DataFrame:
    """Overlaps of all cells: math-set holds 3 of 20 items of one test, and 1 of another."""
    rows = []
    for cell, data in cells[["cell", "data"]].to_numpy():
        for benchmark, exact, near in ((MATH, 2, 1), ("code-test", 0, 1), ("other", 0, 0)):
            hits = (exact, near) if data == "math-set" else (0, 0)
            row = {"cell": cell, "benchmark": benchmark, "reason": None, "num_rows": 200}
            row |= {"num_rows_overlapping": sum(hits) + 1 if any(hits) else 0, "num_items": 20}
            row |= {"num_items_exact": hits[0], "num_items_near": hits[1]}
            row |= {"overlap_fraction": sum(hits) / 20}
            rows.append(row if data != "base" else row | {"reason": "not known"})
    return pd.DataFrame(rows)


def test_leaks_are_one_row_per_data_and_benchmark_the_largest_first(tables: Any) -> None:
    found = find_leaks(leaking(tables.cells), tables.cells)
    assert [(leak.data, leak.benchmark, leak.percent) for leak in found.found] == [
        ("math-set", MATH, 15.0),
        ("math-set", "code-test", 5.0),
    ]
    first = found.found[0]
    assert (first.num_items_exact, first.num_items_near, first.num_rows_overlapping) == (2, 1, 4)
    # 2 models, 2 methods, 2 epochs.
    assert (first.num_cells, first.num_rows, first.num_items) == (8, 200, 20)
    assert (found.num_clean, found.unknown) == (7, ())


def test_what_was_not_searched_keeps_its_reason(tables: Any) -> None:
    overlaps = leaking(tables.cells)
    overlaps["reason"] = overlaps["reason"].mask(overlaps["benchmark"] == "other", "not searched")
    found = find_leaks(overlaps, tables.cells)
    assert found.unknown == (("not searched", 3),)
    assert found.num_clean == 4


def test_scores_without_a_gain_are_grouped_by_reason(tables: Any) -> None:
    scores = tables.scores.copy()
    scores["gain_reason"] = scores["gain_reason"].mask(scores["model"] == "qwen2-b", "other items")
    (reason, *others) = ungained(scores)
    assert (reason.message, reason.count) == ("other items", 12)
    assert len(others) == scores["benchmark"].nunique() - 1
    assert ungained(tables.scores) == []
