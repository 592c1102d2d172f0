"""Pages say in words what a score rests on, and never show nothing as certainty."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from sft_atlas.cli.pages import cell_page, score_notes, status_page, table_bytes
from sft_atlas.store.cell_view import CellView
from sft_atlas.store.status import Failure, Status

PLAIN: dict[str, Any] = {
    "benchmark": "quiz",
    "score": 0.0,
    "interval": (0.0, 0.1611),
    "gain": None,
    "gain_interval": None,
    "gain_reason": None,
    "num_items": 20,
    "num_scored": 20,
    "reason": None,
    "chance": None,
    "flags": [],
    "unscored": {},
    "groups": [],
}
JUDGED: dict[str, Any] = PLAIN | {
    "benchmark": "chat",
    "score": 7.25,
    "interval": (6.5, 8.0),
    "judge": "gpt-x",
    "answered_by": {"gpt-x-2026": 39},
    "num_judgments": 40,
    "num_unparsed": 2,
    "num_failed": 1,
    "input_tokens": 9_000,
    "output_tokens": 900,
    "lost_tokens": 100,
    "usd": 0.125,
    "turn_scores": [7.5, 7.0],
}


def page(*scores: dict[str, Any]) -> str:
    nothing: dict[str, Any] = {"spec": {}, "result": {}, "files": {}, "provenance": {}}
    view = CellView(
        cell="c" * 32, folder=Path("x"), training={}, curve=[], scores=list(scores), drift=[],
        measures={"forgetting": {"kl_per_token": 0.0123456, "is_exact": True, "prefix": "bos"}},
        **nothing,
    )  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=200).print(cell_page(view))
    return out.getvalue()


def test_nothing_right_of_twenty_is_no_certainty() -> None:
    assert "0.000  0.000 to 0.161" in page(PLAIN)


def test_measures_are_named_with_their_numbers() -> None:
    assert "forgetting: kl_per_token 0.01235\n" in page(PLAIN)


def test_notes_say_what_speaks_against_a_score() -> None:
    row = PLAIN | {
        "num_truncated": 3,
        "num_cut": 20,
        "num_unfollowed": 0,
        "chance": 0.25,
        "num_scored": 18,
        "unscored": {"the answer is no number": 2},
        "flags": ["base at chance", "truncated", "cut off", "identical to 0123456789ab"],
        "gain_reason": "the base model is not scored yet",
    }
    assert score_notes(row) == [
        "base not above chance (0.250)",
        "all answers are identical to 0123456789ab",
        "3 of 20 prompts without their start",
        "20 of 20 answers cut off at the limit",
        "2 items not scored: the answer is no number",
        "gain: the base model is not scored yet",
    ]
    assert score_notes(PLAIN) == []


def test_a_missing_score_gives_its_reason_once() -> None:
    reason = "none of the items could be scored: no gold"
    gain = f"this model has no score: {reason}"
    row = PLAIN | {"score": None, "interval": None, "num_scored": 0, "reason": reason}
    assert score_notes(row | {"unscored": {"no gold": 20}, "gain_reason": gain}) == [reason]


def test_a_judged_score_names_its_judge_its_losses_and_its_cost() -> None:
    text = " ".join(page(JUDGED).split())
    assert "7.250 6.500 to 8.000" in text
    assert (
        "chat: judged by gpt-x (answered by gpt-x-2026): 40 judgments, 2 without a readable "
        "verdict, 1 failed; 10,000 tokens, $0.12; mean rating by turn 7.50, 7.00"
    ) in text
    free = JUDGED | {"usd": None, "num_flipped": 3, "length_controlled": 0.31}
    text = " ".join(page(free | {"length_controlled_error": 0.02, "turn_scores": None}).split())
    assert "no price is known; 3 verdicts changed with the order; at equal length 0.310" in text


def test_groups_are_listed_with_their_intervals() -> None:
    group = {"group": "law", "score": 1.0, "score_low": 0.34, "score_high": 1.0}
    text = page(PLAIN | {"groups": [group | {"num_items": 2, "num_scored": 2}]})
    assert "groups of quiz" in text
    assert "law             1.000  0.340 to 1.000  2/2" in text


def test_tables_for_people_show_intervals_and_leave_gaps_empty() -> None:
    labels = dict.fromkeys(["model", "data", "method", "samples", "epoch", "seed"], "x")
    row = labels | {"benchmark": "quiz", "score": 0.0, "score_low": 0.0, "score_high": 0.16114}
    frame = pd.DataFrame([row | {"gain": None, "gain_low": None, "gain_high": float("nan")}])
    markdown = table_bytes(frame, "markdown").decode().splitlines()
    assert markdown[-1].endswith("| quiz | 0.0000 | 0.0000 | 0.1611 |  |  |  |")
    assert "lllllllrrrrrr" in table_bytes(frame, "latex").decode()


def test_one_reason_is_said_once_however_many_cells_it_stopped() -> None:
    lost = [
        Failure(cell=f"{i}" * 32, description=f"cell {i}", kind="no-sandbox", message="no bwrap")
        for i in range(5)
    ]
    other = Failure(cell="f" * 32, description="cell f", kind="oom", message="too little memory")
    status = Status(study="words", store=Path("s"), blocks=(), failures=(*lost, other), running=())
    out = io.StringIO()
    Console(file=out, width=200).print(status_page(status, Path("words.yaml")))
    text = out.getvalue()
    assert text.count("no bwrap") == 1
    assert "cell 0, 111111111111 cell 1, 222222222222 cell 2, and 2 more: no-sandbox" in text
    assert "try again: sft-atlas run words.yaml --store s --only failed" in text
    assert "try again: sft-atlas run words.yaml --store s --only ffffffffffff" in text


def test_names_in_a_table_are_text_for_spreadsheets_papers_and_pages() -> None:
    frame = pd.DataFrame({"model": ["=1+1", "<b>|a_b & 5 %"], "gain": [-0.5, None]})
    csv = table_bytes(frame, "csv").decode().splitlines()
    assert csv == ["model,gain", "'=1+1,-0.5", "<b>|a_b & 5 %,"]
    assert (
        r"\textless{}b\textgreater{}\textbar{}a\_b \& 5 \%" in table_bytes(frame, "latex").decode()
    )
    assert r"| \<b\>\|a\_b & 5 % |  |" in table_bytes(frame, "markdown").decode()
