"""A reader opens a report in a real browser: with a keyboard, on a phone, on paper."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chromium import BROWSER, Tab, open_tab
from planted_grid import Labels, grid_rows
from sft_atlas.analyze.analysis import analyze
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.render.html import Evidence, ReportMeta, write_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")

EVIL = "<script>alert(1)</script>"
NAMES = {
    **{"m0": "日本語モデル", "m1": "中文模型", "m2": EVIL},
    **{"d0": "中文数据", "d1": "=cmd|' /C calc'!A1", "d2": "a|b_c&d%"},
    **{"b0": "知識テスト", "b1": "<b>bold</b>"},
}
QUESTIONS = ("likeness", "methods", "doses", "languages", "noise")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    shape = (4, 4, 4, 2, 3)
    scores = np.clip(0.4 + 0.1 * rng.normal(size=shape[:3])[..., None, None], 0.05, 0.9)
    scores = np.clip(scores + 0.05 * rng.normal(size=shape), 0.01, 0.99)
    scores[0, 0, 0] = np.nan
    labels = Labels(
        methods=("full", "lora"),
        epochs=(1, 2, 3),
        families=("a", "a", "b", "b"),
        languages=("ja", "zh", "en", "en"),
        skills=("knowledge", "math", "code", "knowledge"),
    )
    rows = grid_rows(scores, np.full((4, 4), 0.35), labels)
    rows = rows.assign(**{k: rows[k].replace(NAMES) for k in ("model", "data", "benchmark")})
    tables = tidy_tables(rows)
    defect = Defect(
        kind="copied rows",
        columns=("知識テスト",),
        rows=(1,),
        where=f"the base of {EVIL}",
        evidence="4 of 4 scores agree.",
        effect="Gains are wrong.",
        treatment="exclude gain",
        what_is_done="No gain is formed.",
    )
    meta = ReportMeta(study=f"研究 {EVIL}", made="2026-11-21 12:00 UTC", notice="Planted.")
    return write_report(
        tables,
        meta,
        tmp_path_factory.mktemp("page") / "report.html",
        analysis=analyze(tables, questions=QUESTIONS, num_resamples=30),
        evidence=Evidence(defects=(defect,), checks=("b2: all values are k/1000",)),
    )


@pytest.fixture(scope="module")
def tab(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(page)
        yield opened


@pytest.fixture
def saved(tab: Tab) -> Iterator[None]:
    """Keep what the page saves, in place of writing files."""
    tab.run("""(() => {
      window.saved = [];
      URL.createObjectURL = (blob) => { window.saved.push({ blob }); return "#"; };
      HTMLAnchorElement.prototype.click = function () { window.saved.at(-1).name = this.download; };
    })()""")
    yield
    tab.run("delete HTMLAnchorElement.prototype.click; document.activeElement?.blur()")


def last_file(tab: Tab, count: int) -> tuple[str, bytes]:
    found = tab.run(f"""(async () => {{
      for (let i = 0; i < 200 && window.saved.filter((file) => file.name).length < {count}; i += 1)
        await new Promise((next) => setTimeout(next, 25));
      const {{ name, blob }} = window.saved.at(-1);
      const bytes = new Uint8Array(await blob.arrayBuffer());
      let text = "";
      bytes.forEach((byte) => {{ text += String.fromCharCode(byte); }});
      return [name, btoa(text)];
    }})()""")
    return found[0], base64.b64decode(found[1])


def choose(tab: Tab, button: str, entry: str) -> None:
    """Open a menu by Enter, go to an entry by arrows, and choose it."""
    tab.run(f"document.querySelector({json.dumps(button)}).focus()")
    tab.press("Enter")
    for _ in range(6):
        if tab.run("document.activeElement.textContent") == entry:
            break
        tab.press("ArrowDown")
    assert tab.run("document.activeElement.textContent") == entry
    tab.press("Enter")


def test_the_page_opens_without_errors_or_requests(tab: Tab, page: Path) -> None:
    assert tab.console == []
    others = [url for url in tab.requests if not url.startswith(("data:", "blob:"))]
    assert set(others) <= {page.as_uri(), "about:blank"}
    usable = tab.run("performance.getEntriesByName('usable')[0].startTime")
    assert 0 < usable < 5000


def test_every_section_is_there_and_every_answer_leads_to_its_evidence(tab: Tab) -> None:
    sections = tab.run("[...document.querySelectorAll('main > section')].map((s) => s.id)")
    assert sections[:2] == ["short", "defects"]
    assert {"q-methods", "q-doses", "q-likeness", "results", "methods"} <= set(sections)
    hidden = tab.run(
        "[...document.querySelectorAll('main > section')].filter((s) => s.offsetHeight < 60).length"
    )
    assert hidden == 0
    dead = "[...document.querySelectorAll('a[href^=\"#\"]')].filter((a) => a.hash && "
    assert tab.run(f"{dead} !document.getElementById(a.hash.slice(1))).length") == 0
    lines = tab.run("[...document.querySelectorAll('.short > li')].map((li) => li.innerText)")
    assert len(lines) >= 6
    assert all(re.match(r"(clear|open|note|not estimable)\n", line) for line in lines)
    folded = "[...document.querySelectorAll('.short a')].map((a) => a.hash).find((hash) => "
    place = tab.run(f"{folded} document.querySelector(hash).closest('details'))")
    if place:
        tab.run(f"location.hash = {json.dumps(place)}")
        assert tab.run(f"document.querySelector({json.dumps(place)}).offsetHeight > 0")


def test_names_are_shown_as_they_are_and_no_number_is_missing_in_words(tab: Tab) -> None:
    text = tab.run("document.querySelector('main').innerText")
    for name in NAMES.values():
        assert name in text
    outside = "main > section:not(#methods)"
    shown = tab.run(
        f"[...document.querySelectorAll('{outside}')].map((s) => s.textContent).join(' ')"
    )
    assert not re.findall(r"\b(?:NaN|undefined|null|Infinity|inf)\b", shown)
    assert tab.run("document.documentElement.lang") == "en"


def test_the_table_is_filtered_by_keyboard(tab: Tab) -> None:
    tab.run("document.getElementById('results').focus()")
    tab.press("Tab")
    assert tab.run("document.activeElement.type") == "search"
    every = tab.run("document.getElementById('result-count').textContent")
    tab.type("日本語 lora 知識")
    found = tab.run("document.getElementById('result-count').textContent")
    assert found.startswith("12 rows of ") and found != every
    names = tab.run(
        "[...document.querySelectorAll('#result-table tbody th')].map((th) => th.textContent)"
    )
    assert set(names) == {"日本語モデル"}
    tab.run(
        "(() => { const box = document.activeElement; box.value = ''; "
        "box.dispatchEvent(new Event('input')); })()"
    )


def test_a_menu_is_left_by_escape_and_gives_the_focus_back(tab: Tab) -> None:
    button = '[data-save="method-differences"]'
    tab.run(f"document.querySelector('{button}').focus()")
    tab.press("ArrowDown")
    assert tab.run(f"document.querySelector('{button}').ariaExpanded") == "true"
    assert tab.run("document.activeElement.getAttribute('role')") == "menuitem"
    tab.press("End")
    assert tab.run("document.activeElement.textContent") == "Data as CSV"
    tab.press("Escape")
    assert tab.run(f"document.activeElement === document.querySelector('{button}')")
    assert tab.run(f"document.querySelector('{button}').ariaExpanded") == "false"


def test_a_chart_is_saved_in_every_format(tab: Tab, saved: None) -> None:
    button = '[data-save="method-differences"]'
    files = {}
    for i, entry in enumerate(["PNG", "SVG", "Vega-Lite with its data", "Data as CSV"]):
        choose(tab, button, entry)
        name, content = last_file(tab, i + 1)
        files[name.partition(".")[2]] = content
    assert files["png"].startswith(b"\x89PNG") and len(files["png"]) > 5000
    assert b"<svg" in files["svg"] and "知識テスト".encode() in files["svg"]
    spec = json.loads(files["vl.json"])
    assert spec["datasets"]["rows"] and spec["$schema"].startswith("https://vega")
    assert spec["width"] > 300 and "usermeta" not in spec
    head = files["csv"].decode().splitlines()[0].split(",")
    assert {"label", "estimate", "low", "high"} <= set(head)


def test_a_chart_is_printed_on_a_page_of_its_size(tab: Tab) -> None:
    tab.run("window.print = () => { window.printed = true; }")
    choose(tab, '[data-save="method-differences"]', "PDF (print this figure)")
    waited = "(async () => { while (!window.printed) await new Promise((n) => setTimeout(n, 20)); "
    tab.run(f"{waited} }})()")
    content = tab.pdf()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) == 1
    tab.run("dispatchEvent(new Event('afterprint'))")
    assert tab.run("document.querySelector('.print-sheet')") is None


def test_a_table_is_saved_for_a_spreadsheet_a_paper_and_notes(tab: Tab, saved: None) -> None:
    tab.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    texts = {}
    for i, entry in enumerate(["CSV", "LaTeX (booktabs)", "Markdown"]):
        choose(tab, '[data-save-table="mean-effects"]', entry)
        name, content = last_file(tab, i + 1)
        texts[name.partition(".")[2]] = content.decode()
    assert "'=cmd|' /C calc'!A1" in texts["csv"] and ",=cmd" not in texts["csv"]
    assert "\N{MINUS SIGN}" not in texts["csv"] and re.search(r",-0\.\d+", texts["csv"])
    assert r"a\textbar{}b\_c\&d\%" in texts["tex"] and r"\toprule" in texts["tex"]
    assert r"a\|b\_c&d%" in texts["md"]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in texts["md"].splitlines()} == {
        len(texts["tex"].split("\\toprule")[1].split("\\\\")[0].split("&")) + 1
    }


def test_dark_colours_reach_the_charts(tab: Tab) -> None:
    ink = "getComputedStyle(document.querySelector('#chart-method-differences svg text')).fill"
    before = tab.run(ink)
    tab.run("document.getElementById('theme').focus()")
    tab.press("Enter")
    assert tab.run("document.documentElement.dataset.theme") == "dark"
    changed = f"(async () => {{ for (let i = 0; i < 400 && {ink} === '{before}'; i += 1) "
    tab.run(f"{changed} await new Promise((n) => setTimeout(n, 25)); }})()")
    assert tab.run(ink) != before
    tab.press("Enter")


def test_a_narrow_window_never_scrolls_sideways(tab: Tab) -> None:
    tab.resize(390)
    tab.run("new Promise((next) => setTimeout(next, 400))")
    offenders = tab.run("""[...document.querySelectorAll("main *")]
      .filter((part) => !part.closest(".scroll, .hidden, svg"))
      .filter((part) => part.getBoundingClientRect().right > 391)
      .map((part) => part.outerHTML.slice(0, 90))""")
    assert offenders == []
    assert tab.run("document.documentElement.scrollWidth") <= 390
    tab.resize(1280)


def test_everything_has_a_name_for_who_cannot_see_it(tab: Tab) -> None:
    lost = tab.run("""(() => {
      const found = [];
      const named = (part) => (part.getAttribute("aria-label") ?? part.textContent).trim();
      const acted = document.querySelectorAll("button:not([hidden]), a, summary, [role=menuitem]");
      acted.forEach((part) => { if (!named(part)) found.push(part.outerHTML.slice(0, 120)); });
      document.querySelectorAll("input, select").forEach((part) => {
        if (!part.labels.length && !part.getAttribute("aria-label")) found.push(part.outerHTML); });
      document.querySelectorAll(".chart svg").forEach((part) => {
        if (part.getAttribute("role") !== "img" || !part.getAttribute("aria-label"))
          found.push(part.parentElement.parentElement.id); });
      document.querySelectorAll("section").forEach((part) => {
        if (!document.getElementById(part.getAttribute("aria-labelledby"))) found.push(part.id); });
      document.querySelectorAll(".scroll").forEach((part) => {
        if (!part.getAttribute("aria-label")) found.push(part.outerHTML.slice(0, 120)); });
      const ids = [...document.querySelectorAll("[id]")].map((part) => part.id)
        .filter((id) => !/^(clip|gradient)/.test(id));
      ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => found.push(`twice: ${id}`));
      const heads = [...document.querySelectorAll("h1, h2, h3")].map((head) => head.tagName);
      heads.forEach((tag, i) => { if (tag === "H3" && heads[i - 1] === "H1") found.push(tag); });
      return found;
    })()""")
    assert lost == []


def test_nothing_went_wrong_while_the_page_was_used(tab: Tab) -> None:
    assert tab.console == []
