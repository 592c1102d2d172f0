"""Keep the structure that docs/concepts.md draws: layers, no cycles, torch-free planning, small
parts.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sft_atlas

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sft_atlas"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"errors", "identity", "files", "strict_yaml", "machine"},
    {"catalog"},
    {"study"},
    {"store"},
    {"data", "statistics"},
    {"weights", "sandbox", "judge"},
    {"model"},
    {
        *("train", "evaluate", "grade", "measure"),
        *("evidence", "analyze", "forecast", "decide", "render"),
    },
    {"execute", "miniature", "results"},
    {"reporting", "deciding"},
    {"api"},
    {"cli", "__init__", "api_reference"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
STAGES = {
    *("train", "evaluate", "grade", "measure"),
    *("evidence", "analyze", "forecast", "decide", "render"),
}
# The page shows what was found: render reads the frozen results of the others. A forecast is made
# from the gains that analyze defines, a decision from a forecast.
ALLOWED_SIBLINGS = {
    *(("render", name) for name in ("analyze", "forecast", "decide", "evidence")),
    *(("forecast", "analyze"), ("decide", "analyze"), ("decide", "forecast")),
}

KNOW_STAGES = {
    "execute/worker.py",
    "execute/session.py",
    "execute/measuring.py",
    "execute/modelless.py",
    "execute/timing.py",
}

# One records what ended a job, one tells each of the runs that train together, and one tells the
# first of several processes what ended another.
CATCH_EVERYTHING = {"execute/worker.py", "train/loop.py", "train/sharded_team.py"}

FORBIDDEN_NAMES = {"utils", "common", "misc", "helpers", "core", "manager", "base", "types"}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 80


def unit_of(path: Path) -> str:
    """First part of a module's name below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_units(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "sft_atlas":
                names = [f"sft_atlas.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "sft_atlas" and len(parts) > 1:
                yield parts[1]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_down_only(path: Path) -> None:
    unit = unit_of(path)
    for other in imported_units(path):
        if other == unit or (unit, other) in ALLOWED_SIBLINGS:
            continue
        assert RANK[other] < RANK[unit] or (RANK[other] == RANK[unit] == 0), (
            f"{module_name(path)} imports {other}, which is not below {unit}"
        )


def test_every_unit_has_a_layer() -> None:
    units = {unit_of(path) for path in MODULES}
    assert units <= RANK.keys(), f"no layer for {sorted(units - RANK.keys())}"


def test_only_the_worker_and_the_api_know_the_stages() -> None:
    for path in MODULES:
        if module_name(path) in KNOW_STAGES or unit_of(path) in STAGES | {
            "results",
            "reporting",
            "deciding",
            "api",
            "cli",
        }:
            continue
        known = STAGES & set(imported_units(path))
        assert not known, f"{module_name(path)} imports {known}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_MODULE_LINES
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{function.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_are_named_after_a_thing_and_say_their_question(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    assert ast.get_docstring(ast.parse(path.read_text())), "a module docstring is missing"


def test_only_the_worker_and_the_training_loop_catch_everything() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or ast.unparse(node.type) == "Exception"
            assert not broad or module_name(path) in CATCH_EVERYTHING, (
                f"{module_name(path)}:{node.lineno} swallows every error"
            )


@pytest.mark.parametrize(
    "module",
    [
        "sft_atlas",
        "sft_atlas.cli",
        "sft_atlas.study.plan",
        "sft_atlas.store.tables",
        "sft_atlas.analyze.findings",
        "sft_atlas.evidence.stored",
        "sft_atlas.results",
        "sft_atlas.reporting",
        "sft_atlas.forecast.forecast",
        "sft_atlas.decide.recommend",
        "sft_atlas.render.html",
        "sft_atlas.execute.local",
        "sft_atlas.execute.examination",
        "sft_atlas.data.sources",
        "sft_atlas.data.overlap",
        "sft_atlas.execute.rounds",
        "sft_atlas.grade.grade",
        "sft_atlas.sandbox.sandbox",
    ],
)
def test_import_needs_neither_torch_nor_transformers(module: str) -> None:
    code = (
        f"import {module}, sys;"
        "heavy = {'torch', 'transformers', 'datasets'} & sys.modules.keys();"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_and_names_wait_for_no_pandas() -> None:
    code = "import sft_atlas.cli, sys; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_submodule_hides_a_verb() -> None:
    units = {unit_of(path) for path in MODULES}
    assert not units & set(sft_atlas.__all__)
    code = (
        "import pkgutil, importlib, sft_atlas;"
        "[importlib.import_module(m.name) for m in"
        " pkgutil.walk_packages(sft_atlas.__path__, 'sft_atlas.')"
        " if not m.name.endswith(('__main__', 'chat_child'))];"
        "assert all(callable(getattr(sft_atlas, n)) for n in sft_atlas.__all__ if n.islower())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_these() -> None:
    verbs = [
        "answers",
        "doctor",
        "drift",
        "import_results",
        "inspect",
        "new",
        "next_cells",
        "plan",
        "recommend",
        "report",
        "run",
        "show",
        "spectra",
    ]
    assert sorted(sft_atlas.__all__) == sorted(
        ["DEFAULT_STORE", "Error", "benchmarks", "load_study", "status", "table", "tables", *verbs]
    )
