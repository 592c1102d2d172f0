"""One file, no network, nothing executed that is not ours, and every section says what it has."""

import base64
import hashlib
import html
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from report_page import payload_of
from sft_atlas.analyze.analysis import analyze
from sft_atlas.render.html import Evidence, ReportMeta, render_report, write_report
from sft_atlas.store.estimate import estimate
from sft_atlas.store.tables import LABELS

META = ReportMeta(
    study="pocket",
    notice="Synthetic.",
    study_file="study: pocket\n",
    provenance=[("sft-atlas", "0.1.0")],
)


@pytest.fixture(scope="module")
def page(planted: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = planted.World(num_failed=1, epochs=(1, 3), num_benchmarks=4, perplexity=-0.05)
    tables = planted.make_tables(world)
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(tables, META, path, analysis=analyze(tables, num_resamples=30))


def test_the_policy_allows_our_scripts_and_no_request(page: Path) -> None:
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text).group(1)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "http" not in policy
    for script in re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert digest in policy


def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    text = re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert "@import" not in text and "url(" not in text


def test_names_are_escaped_everywhere(planted: SimpleNamespace) -> None:
    tables = planted.make_tables(
        planted.World(num_models=2, num_datasets=2, num_benchmarks=2, epochs=(1,))
    )
    evil = "<script>alert(1)</script>"
    swap = {"llama-a": evil, "knowledge-set": evil + "&", "math-test": '"><img src=x onerror=y>'}
    frames = {n: f.replace(swap) for n, f in vars(tables).items() if isinstance(f, pd.DataFrame)}
    hurt = type(tables)(**frames)
    meta = ReportMeta(study=evil, description=evil, study_file=evil, provenance=[(evil, evil)])
    text = render_report(hurt, meta, analyze(hurt, num_resamples=10))
    assert evil not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert evil in payload_of(text)["names"]["models"]


def test_the_answers_can_be_read_without_scripts(page: Path) -> None:
    text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert "Which data helps the benchmark of its own skill?" in text
    assert "loss is not finite at step 17" in text
    assert "95&nbsp;%" in text


def test_the_same_study_gives_the_same_bytes(planted: SimpleNamespace) -> None:
    small = planted.World(num_models=2, num_datasets=2, num_benchmarks=2, epochs=(1,), num_layers=2)
    tables = planted.make_tables(small)
    asked = {"questions": ("likeness", "methods"), "num_resamples": 10}
    pages = {render_report(tables, META, analyze(tables, **asked)) for _ in range(2)}
    assert len(pages) == 1


def test_a_thousand_cells_stay_below_four_megabytes(planted: SimpleNamespace) -> None:
    world = planted.World(
        num_models=12,
        num_datasets=10,
        num_benchmarks=12,
        epochs=(1, 2, 3, 5, 10),
        num_layers=8,
        num_steps=70,
    )
    tables = planted.make_tables(world)
    assert len(tables.cells) > 1000
    text = render_report(
        tables, META, analyze(tables, questions=("methods", "doses"), num_resamples=30)
    )
    assert len(text.encode()) < 4_000_000


def test_libraries_come_with_their_licences(page: Path) -> None:
    text = page.read_text()
    assert text.count("Redistribution and use in source and binary forms") >= 3


def visible(text: str) -> str:
    """The page's words without scripts, tags and line breaks."""
    text = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_a_page_without_warnings_says_so_in_a_sentence(page: Path) -> None:
    text = visible(page.read_text())
    assert "Nothing is flagged: every base model is above chance" in text
    assert "Training rows that hold test items" not in text
    assert "Tests by subject" not in text


def test_warnings_leaks_gaps_and_subjects_can_be_read_without_scripts(
    planted: SimpleNamespace,
) -> None:
    tables = planted.make_tables(planted.World(num_models=2, num_datasets=3, epochs=(1, 2)))
    scores = tables.scores.copy()
    is_code = (scores["benchmark"] == "code-test") & (scores["model"] == "qwen2-b")
    scores.loc[is_code, ["score", "gain"]] = float("nan")
    scores.loc[is_code, "reason"] = "skipped (no sandbox): bwrap is not installed"
    is_math = scores["benchmark"] == "math-test"
    scores.loc[is_math & (scores["method"] == "base"), ["flags", "num_cut"]] = ["cut off", 50]
    tables = type(tables)(**{**vars(tables), "scores": scores})
    overlaps = tables.cells[["cell"]].assign(
        benchmark="math-test",
        num_rows=200,
        num_rows_overlapping=3,
        num_items=1000,
        num_items_exact=1,
        num_items_near=1,
        overlap_fraction=0.002,
        reason=None,
    )
    subject = {"benchmark": "math-test", "test": "exam", "group": "<algebra>", "language": "en"}
    numbers = {"score": 0.5, "score_low": 0.25, "score_high": 0.75, "num_items": 9}
    groups = tables.cells[["cell", *LABELS]].assign(**subject, **numbers)
    page = render_report(
        tables,
        META,
        analyze(tables, questions=(), num_resamples=10),
        Evidence(groups=groups, overlaps=overlaps),
    )
    assert "<algebra>" not in page
    text = visible(page)
    assert "answers cut Answers that reached their limit of tokens" in text
    assert "math-test 2 cells: 25 % of 400 answers of base models" in text
    assert "general-set math-test 0.2 % of 1,000 1 1 3 of 200 8" in text
    assert "13 code-test skipped (no sandbox): bwrap is not installed qwen2-b" in text
    assert "<algebra> 50.0 [25.0, 75.0] 50.0 [25.0, 75.0] 50.0 [25.0, 75.0]" in text


def test_a_search_that_found_nothing_is_one_line(planted: SimpleNamespace) -> None:
    tables = planted.make_tables(planted.World(num_models=2, num_datasets=2, epochs=(1,)))
    none = dict.fromkeys(["num_rows_overlapping", "num_items_exact", "num_items_near"], 0)
    row = none | {"num_rows": 200, "num_items": 50, "overlap_fraction": 0.0, "reason": None}
    overlaps = tables.cells[["cell"]].assign(benchmark="math-test", **row)
    analysis = analyze(tables, questions=(), num_resamples=10)
    text = visible(render_report(tables, META, analysis, Evidence(overlaps=overlaps)))
    assert "2 pairs of training set and benchmark share no item." in text
    assert "Word for word" not in text


NUM_CHARTS = 17
"""Charts of a study that has every measure but a map, beside those of the questions: three about
data and gains, three about layers, six about dimension, two each about forgetting and directions,
one about training."""


def num_charts(page: Path, more: int = NUM_CHARTS) -> int:
    return more + len(payload_of(page.read_text())["exhibits"])


def emptied(tables: object, *names: str) -> object:
    return type(tables)(**{**vars(tables), **{name: pd.DataFrame() for name in names}})


def test_a_browser_draws_every_chart_without_errors_or_requests(
    page: Path, visit: Callable[..., object]
) -> None:
    seen = visit(page)
    assert seen.console == []
    assert seen.requests == []
    assert seen.num_drawn == num_charts(page)
    assert seen.dom.count("<svg xmlns") == num_charts(page)
    assert "Page 1 of" in seen.dom
    assert "\N{EM DASH} loss is not finite" in seen.dom


def test_a_narrow_window_draws_every_chart_without_warnings(
    page: Path, visit: Callable[..., object]
) -> None:
    seen = visit(page, width=500)
    assert seen.console == [] and seen.num_drawn == num_charts(page)


def test_a_browser_shows_no_score_as_certain(
    planted: SimpleNamespace, visit: Callable[..., object], tmp_path: Path
) -> None:
    """None of 20 items right reads as an interval, and a gain within the noise is faded."""
    tables = planted.make_tables(
        planted.World(num_models=1, num_datasets=2, num_benchmarks=2, epochs=(1,), own=0.4)
    )
    found = estimate([0.0] * 20)
    assert found.standard_error == 0.0
    scores = tables.scores.copy()
    chosen = (scores["benchmark"] == "math-test") & (scores["method"] == "lora")
    scores.loc[chosen, ["score", "standard_error", "num_scored"]] = [0.0, 0.0, 20]
    scores.loc[chosen, ["score_low", "score_high"]] = list(found.interval)
    is_full = (scores["benchmark"] == "knowledge-test") & (scores["method"] == "full")
    scores.loc[is_full, ["metric", "score", "score_low", "score_high"]] = ["rating", 7.25, 6.5, 8]
    path = tmp_path / "certain.html"
    tables = type(tables)(**{**vars(tables), "scores": scores})
    write_report(tables, META, path, analysis=analyze(tables, questions=(), num_resamples=10))
    seen = visit(path)
    assert seen.console == []
    rows = re.findall(r"<tr>.*?</tr>", seen.dom[seen.dom.index('id="result-table"') :])
    texts = [visible(row) for row in rows]
    assert not any("\N{PLUS-MINUS SIGN}" in text for text in texts)
    assert sum("0.0 [0.0, 16.1]" in text for text in texts) == chosen.sum() == 2
    assert sum("7.25 [6.50, 8.00]" in text for text in texts) == is_full.sum() == 2
    drawing = seen.dom[seen.dom.index('id="chart-gain-map"') : seen.dom.index("caption-gain-map")]
    assert 'opacity="0.3"' in drawing


@pytest.mark.parametrize("case", ["nothing-done", "no-measures", "one-model", "no-cells"])
def test_a_browser_shows_a_poor_study_with_reasons_for_its_gaps(
    planted: SimpleNamespace, visit: Callable[..., object], tmp_path: Path, case: str
) -> None:
    tables = planted.make_tables(
        planted.World(num_models=1, num_datasets=2, num_benchmarks=2, epochs=(1,))
    )
    expected = {"nothing-done": 0, "no-measures": 1, "one-model": 14, "no-cells": 0}[case]
    measures = ("drift", "datasets", "curves", "spectra", "descriptions", "similarities")
    measures += ("forgetting", "representations", "scans", "updates")
    if case == "nothing-done":
        cells = tables.cells.assign(state="missing", is_trained=False)
        nothing = {"score": float("nan"), "gain": float("nan"), "reason": "not evaluated yet"}
        scores = tables.scores.assign(state="missing", **nothing)
        tables = type(tables)(**{**vars(tables), "cells": cells, "scores": scores})
        tables = emptied(tables, *measures)
    elif case == "no-measures":
        tables = emptied(tables, *measures)
    elif case == "no-cells":
        frames = {n: f for n, f in vars(tables).items() if isinstance(f, pd.DataFrame)}
        none = {name: frame.iloc[:0] for name, frame in frames.items()}
        tables = type(tables)(**none)
    path = tmp_path / "poor.html"
    write_report(tables, META, path, analysis=analyze(tables, num_resamples=10))
    seen = visit(path)
    assert seen.console == []
    assert seen.num_drawn == num_charts(path, expected)
    assert ("There is no gain yet" in seen.dom) == (case in {"nothing-done", "no-cells"})
