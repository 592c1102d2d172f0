"""The map is drawn from what was measured, in few bytes, and left out where nothing was."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from planted_vectors import vectors_of
from report_page import payload_of
from sft_atlas.analyze.analysis import Analysis, analyze
from sft_atlas.analyze.likelihood_map import MapTables, default_steps, map_tables
from sft_atlas.render.html import Evidence, ReportMeta, render_report, write_report
from sft_atlas.render.map_payload import STEPS, map_payload
from sft_atlas.render.map_words import map_words

META = ReportMeta(study="pocket")


def drawn_map(cells: pd.DataFrame, *, num_late: int = 3, seed: int = 0) -> MapTables:
    """The map of planted cells, of which the last ones came after the fit."""
    rng = np.random.default_rng(seed)
    model = pd.factorize(cells["model"])[0]
    data = pd.factorize(cells["data"])[0]
    moved = np.log1p(cells["epoch"].astype(float).to_numpy())[:, None]
    prompt = -50 + 6 * rng.normal(size=(model.max() + 1, 80))[model]
    prompt += moved * rng.normal(size=(data.max() + 1, 80))[data]
    prompt += 0.1 * rng.normal(size=prompt.shape)
    vectors = vectors_of(prompt, prompt / 10, cells=list(cells["cell"]))
    steps = default_steps()[:2]
    early = map_tables(vectors.take(range(len(cells) - num_late)), cells, steps=steps)
    return map_tables(vectors, cells, known=early.fresh, steps=steps)


@pytest.fixture(scope="module")
def world(planted: SimpleNamespace) -> tuple[Any, MapTables]:
    tables = planted.make_tables(
        planted.World(num_models=3, num_datasets=4, num_benchmarks=4, epochs=(1, 3))
    )
    return tables, drawn_map(tables.cells)


@pytest.fixture(scope="module")
def analysis(world: tuple[Any, MapTables]) -> Analysis:
    return analyze(world[0], questions=(), num_resamples=10)


def index_of(cells: pd.DataFrame) -> dict[str, int]:
    return {cell: place for place, cell in enumerate(cells["cell"])}


def test_places_come_back_from_their_grid(world: tuple[Any, MapTables]) -> None:
    tables, drawn = world
    found = map_payload(drawn, tables.cells, index_of(tables.cells))
    assert found is not None
    assert found["cell"] == list(range(len(tables.cells)))
    assert [(item["variant"], item["method"]) for item in found["maps"]] == [
        (variant, method) for variant in ("whole", "prompt") for method in ("tsne", "pca", "mds")
    ]
    for item in found["maps"]:
        points = drawn.points
        rows = points[(points["variant"] == item["variant"]) & (points["method"] == item["method"])]
        truth = rows.set_index("cell").loc[list(tables.cells["cell"]), ["x", "y"]].to_numpy()
        shown = np.array([item["x"], item["y"]]).T
        scale = np.ptp(truth, axis=0).max() / STEPS
        back = shown * scale + truth.min(axis=0)
        np.testing.assert_allclose(back, truth, atol=0.51 * scale)
        assert max(shown.max(axis=0)) == STEPS
        assert item["added"] == [len(truth) - 3, len(truth) - 2, len(truth) - 1]
        assert item["num_texts"] == 80


def test_a_thousand_cells_take_little_room() -> None:
    rng = np.random.default_rng(0)
    size = 1001
    cells = pd.DataFrame(
        {
            "cell": [f"{i:032x}" for i in range(size)],
            "family": [f"family-{i % 6}" for i in range(size)],
            "trajectory": [f"run-{i // 5}" for i in range(size)],
        }
    )
    maps = [(v, m) for v in ("whole", "prompt", "answer") for m in ("tsne", "pca", "mds")]
    points = pd.concat(
        [
            cells[["cell"]].assign(
                variant=variant,
                method=method,
                x=rng.normal(size=size),
                y=rng.normal(size=size),
                is_added=False,
                kl_base=rng.random(size),
            )
            for variant, method in maps
        ],
        ignore_index=True,
    )
    quality = pd.DataFrame(maps, columns=["variant", "method"]).assign(reason=None)
    drawn = MapTables(points=points, quality=quality)
    found = map_payload(drawn, cells, index_of(cells))
    assert len(json.dumps(found, separators=(",", ":"))) < 150_000


def test_a_study_without_a_map_has_no_section(
    world: tuple[Any, MapTables], analysis: Analysis
) -> None:
    tables, _ = world
    text = render_report(tables, META, analysis)
    assert 'id="map"' not in text
    assert payload_of(text)["model_map"] is None
    assert map_payload(None, tables.cells, {}) is None
    assert map_words(MapTables()) is None


def test_a_map_that_cannot_be_made_says_why(
    world: tuple[Any, MapTables], analysis: Analysis
) -> None:
    tables, _ = world
    none = MapTables(reason="2 cells have likelihoods; it takes 3", missing=(("not measured", 4),))
    text = render_report(tables, META, analysis, Evidence(map=none))
    assert "There is no map: 2 cells have likelihoods; it takes 3." in text
    assert "4 cells have no place: not measured." in text
    assert 'id="chart-map"' not in text


def test_the_map_says_in_words_what_it_shows(
    world: tuple[Any, MapTables], analysis: Analysis
) -> None:
    tables, drawn = world
    missing = MapTables(**{**vars(drawn), "missing": (("its likelihoods were not measured", 2),)})
    text = render_report(tables, META, analysis, Evidence(map=missing))
    text = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
    assert "2 cells have no place: its likelihoods were not measured." in text
    words = map_words(drawn)
    assert words is not None
    assert words.share_names[:2] == ("Family", "Model")
    share = float(words.shares[0].values[1].removesuffix(" %"))
    expected = drawn.shares.query("variant == 'whole' and grouping == 'model'")["share"].item()
    assert share == pytest.approx(100 * expected, abs=0.05)
    assert f"question and answer {words.shares[0].values[0]}" in text
    assert [row.method for row in words.quality[:3]] == [
        "t-SNE",
        "principal components",
        "metric scaling (MDS)",
    ]


def test_a_layout_that_is_refused_says_why(planted: SimpleNamespace) -> None:
    tables = planted.make_tables(
        planted.World(
            num_models=2, num_datasets=3, num_benchmarks=2, methods=("full",), epochs=(1,)
        )
    )
    drawn = drawn_map(tables.cells, num_late=1)
    found = map_payload(drawn, tables.cells, index_of(tables.cells))
    assert found is not None
    reason = "t-SNE needs 10 cells that are not all the same"
    assert found["maps"][0] == {"variant": "whole", "method": "tsne", "reason": reason}
    words = map_words(drawn)
    assert words is not None
    assert words.quality[0].reason == reason


CHOOSE = """
addEventListener("load", () => setTimeout(() => {
  const map = document.getElementById("chart-map");
  const drag = () => {
    map.scrollIntoView({ behavior: "instant" });
    const box = map.querySelector("svg").getBoundingClientRect();
    const at = (x, y) => ({ clientX: box.left + x * box.width, clientY: box.top + y * box.height });
    const fire = (type, target, x, y) => target.dispatchEvent(new PointerEvent(type,
      { bubbles: true, cancelable: true, view: window, buttons: 1, pointerId: 1, ...at(x, y) }));
    const from = at(0.01, 0.01);
    fire("pointerdown", document.elementFromPoint(from.clientX, from.clientY), 0.01, 0.01);
    fire("pointermove", window, 0.5, 0.4);
    fire("pointermove", window, 0.99, 0.9);
    fire("pointerup", window, 0.99, 0.9);
  };
  const pick = (label, value) => {
    const select = [...document.querySelectorAll("#controls-map label")]
      .find((item) => item.textContent.startsWith(label)).querySelector("select");
    select.value = String(value);
    select.dispatchEvent(new Event("change"));
  };
  drag();
  setTimeout(() => {
    const rows = document.getElementById("map-list").querySelectorAll("tr").length - 1;
    document.body.dataset.boxed = document.getElementById("map-summary").textContent;
    document.body.dataset.listed = `${rows} listed`;
    pick("Layout", 1);
    pick("Choose", 0);
    setTimeout(() => document.getElementById("map-rows").click(), 3000);
  }, 3000);
}, 3000));
"""


def test_a_browser_draws_the_map_and_the_gains_of_what_is_chosen_on_it(
    world: tuple[Any, MapTables], analysis: Analysis, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    tables, drawn = world
    evidence = Evidence(map=drawn)
    path = write_report(tables, META, tmp_path / "r.html", analysis=analysis, evidence=evidence)
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", path.read_text())
    end = text.rindex("</body>")
    path.write_text(f"{text[:end]}<script>{CHOOSE}</script>{text[end:]}")
    seen = visit(path)
    assert seen.console == []
    chart = seen.dom.split('id="chart-map"')[1].split("</figure>")[0]
    assert chart.count('aria-roledescription="point"') >= len(tables.cells) - 3
    for name in tables.cells["model"].unique():
        assert f">{name}</text>" in chart
    assert f"{len(tables.cells)} models on 80 texts" in seen.dom
    assert "This plane holds" in seen.dom
    num_bases = int((tables.cells["epoch"] == 0).sum())
    num_tuned = len(tables.cells) - num_bases
    boxed = f"Chosen: {num_tuned} fine-tuned models and {num_bases} base models."
    assert f'data-boxed="{boxed}' in seen.dom
    assert f'data-listed="{len(tables.cells)} listed"' in seen.dom
    model = tables.cells["model"].iloc[0]
    tuned = tables.cells[(tables.cells["model"] == model) & (tables.cells["epoch"] > 0)]
    summary = seen.dom.split('id="map-summary"')[1].split("</p>")[0]
    assert (
        f"Chosen: {len(tuned)} fine-tuned models. Base models: {model} ({len(tuned)})." in summary
    )
    gains = seen.dom.split('id="chart-map-gains"')[1].split("</figure>")[0]
    rows = tables.scores[tables.scores["cell"].isin(tuned["cell"])]
    for (data, benchmark), part in rows.groupby(["data", "benchmark"]):
        mean = 100 * part["gain"].mean()
        digits = 1 if abs(mean) < 9.95 else 0
        is_nothing = round(mean, digits) == 0
        shown = "0.0" if is_nothing else f"{mean:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
        assert f">{data}</text>" in gains
        assert f">{benchmark}</text>" in gains
        assert f">{shown}</text>" in gains
    listed = seen.dom.split('id="map-list"')[1].split("</table>")[0]
    assert listed.count("<tr>") == len(tuned) + 1
    assert f"{len(rows)} rows of" in seen.dom.split('id="result-count"')[1].split("</p>")[0]
