"""How was every answer computed, in the words of the code that computed it?

In: the short names of the answered questions. Out: the docstrings of their modules, of the public
functions in them, and of the estimators that they use, as blocks of a page. What is described is
what runs: a text that is kept beside the code goes stale. Sources are read, not imported.
"""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as package_files
from typing import Final, Literal

_ROOT: Final = "sft_atlas"
_DESCRIBED: Final = ("analyze", "statistics", "forecast", "decide", "evidence")
_UNDESCRIBED: Final = ("analyze.findings", "analyze.questions.answered", "analyze.analysis")
_ELSEWHERE: Final = {"forecast": "forecast.answers", "decision": "decide.answers"}
"""Questions that are not a module of `analyze.questions`."""
_CODE: Final = re.compile(r"``?([^`]+)``?")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A paragraph, or an item of a list: runs of text, of which some are code."""

    kind: Literal["paragraph", "item"]
    runs: tuple[tuple[str, bool], ...]
    """(text, whether it is code)"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one module or function says of itself."""

    name: str
    title: str
    """Of a module: the question that it answers; of a function: its signature."""
    blocks: tuple[Block, ...]
    functions: tuple["Entry", ...] = ()


def appendix(questions: Iterable[str]) -> list[Entry]:
    """Return entries of the questions' modules, then of the estimators below them."""
    first = [
        name
        for name in (_ELSEWHERE.get(key, f"analyze.questions.{key}") for key in questions)
        if _tree(name) is not None
    ]
    found = list(dict.fromkeys(first))
    for name in found:
        # The list grows while it is walked: what a described module imports is described too.
        found += [other for other in _imported(name) if other not in found]
    return [_entry(name) for name in found]


@cache
def _tree(module: str) -> ast.Module | None:
    *folders, name = module.split(".")
    path = package_files(_ROOT).joinpath(*folders, f"{name}.py")
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def _imported(module: str) -> Iterator[str]:
    tree = _tree(module)
    for node in ast.walk(tree) if tree else ():
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(f"{_ROOT}."):
            continue
        name = str(node.module).removeprefix(f"{_ROOT}.")
        for other in (name, *(f"{name}.{alias.name}" for alias in node.names)):
            described = other.split(".")[0] in _DESCRIBED and other not in _UNDESCRIBED
            if described and _tree(other) is not None:
                yield other


@cache
def _entry(module: str) -> Entry:
    tree = _tree(module)
    if tree is None:
        raise AssertionError(f"{module} has no source")
    title, blocks = _parted(ast.get_docstring(tree) or "")
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node)
    ]
    functions = tuple(
        Entry(
            name=f"{module}.{node.name}",
            title=f"{node.name}({', '.join(_arguments(node))})",
            blocks=_blocks(ast.get_docstring(node) or ""),
        )
        for node in public
    )
    return Entry(name=module, title=title, blocks=blocks, functions=functions)


def _arguments(node: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]


def _parted(docstring: str) -> tuple[str, tuple[Block, ...]]:
    """Split a module's docstring into its question and the rest."""
    first, _, rest = inspect.cleandoc(docstring).partition("\n\n")
    return " ".join(first.split()), _blocks(rest)


def _blocks(docstring: str) -> tuple[Block, ...]:
    """Return paragraphs and list items; examples for the interpreter are left out."""
    blocks: list[Block] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if paragraph.strip().startswith(">>>") or not paragraph.strip():
            continue
        lines = paragraph.split("\n")
        text: list[str] = []
        kind: Literal["paragraph", "item"] = "paragraph"
        for line in lines:
            item = re.match(r"\s*[-*] +(.*)|(?:Raises|Args|Returns):\s*$", line)
            if item:
                blocks += _block(kind, text)
                text, kind = [item.group(1) or f"{line.strip()}"], "item" if item.group(1) else kind
            else:
                text.append(line.strip())
        blocks += _block(kind, text)
    return tuple(blocks)


def _block(kind: Literal["paragraph", "item"], lines: Sequence[str]) -> list[Block]:
    text = " ".join(line for line in lines if line)
    return [Block(kind=kind, runs=_runs(text))] if text else []


def _runs(text: str) -> tuple[tuple[str, bool], ...]:
    parts = _CODE.split(text)
    return tuple((part, i % 2 == 1) for i, part in enumerate(parts) if part)
