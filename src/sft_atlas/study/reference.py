"""Write the reference of the study file, and its JSON Schema for editors, from the schema itself.

`python -m sft_atlas.study.reference docs` writes both files; a test compares them with what stands
in docs/, so that neither can fall behind.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from sft_atlas.study import benchmark_entry, lm_eval, schema
from sft_atlas.study.schema import StudyFile

SECTIONS: Final[tuple[tuple[str, type[BaseModel]], ...]] = (
    ("The file", StudyFile),
    ("A block", schema.BlockEntry),
    ("A schedule", schema.ScheduleEntry),
    ("An exclusion", schema.ExcludeEntry),
    ("A method", schema.MethodEntry),
    ("A model", schema.ModelEntry),
    ("A dataset", schema.DatasetEntry),
    ("A benchmark", benchmark_entry.BenchmarkEntry),
    ("A task of lm-eval", lm_eval.LmEvalEntry),
    ("The judge", benchmark_entry.JudgeEntry),
    ("Measures", schema.MeasuresEntry),
    ("Texts", schema.TextsEntry),
    ("An embedder", schema.EmbedderEntry),
    ("A published figure", schema.PublishedEntry),
)
"""Headings of the reference, in order."""

EXAMPLE: Final = """\
study: which-data
models: [qwen2.5-0.5b, {name: mine, path: ../models/mine}]
datasets: [alpaca, code-alpaca, {name: notes, path: notes.jsonl}]
benchmarks: [gsm8k, {name: gsm8k, shots: 4}, {name: mmlu, limit: 1000}]
methods:
  full: {learning_rate: 1e-5, batch_samples: 32}
  lora: {learning_rate: 2e-4, batch_samples: 32, rank: 16, alpha: 32}
mixtures:
  mostly-code: {code-alpaca: 3, alpaca: 1}
blocks:
  single: {data: each, samples: 1000, epochs: 3, keep: every, schedule: constant}
  merged: {data: [all, mostly-code], samples: 1000, methods: [lora], epochs: 3}
seeds: [0, 1]
"""
"""The example of the reference; a test loads it."""

_INTRODUCTION = f"""\
# The study file

One YAML file says what is trained on what, how, and what is asked of the results. It is read
strictly: an unknown key, a wrong type, a repeated key, an alias or an impossible value is refused
with file, line and the nearest name that exists. `1e-5` is a number, `no` is text, and a path is
relative to the file.

```yaml
{EXAMPLE}```

What a block asks for is a product: every model with every value of `data`, `samples`, `methods`,
`schedule`, `epochs` and `seeds`, less its exclusions. One training run is a *trajectory*, and each
of its kept epochs is a *cell*, a model of the study.

* **`data`.** `each`: one dataset at a time. `all`: all of them merged, `samples` of each.
  `leave-one-out`: all but one, once for each. A mixture's name: `samples` in total, shared out by
  its weights.
* **Subsets.** The rows of a dataset are put into one order by `subset_seed`, the same for all
  models, and a subset is the beginning of it: 1,000 samples are part of 20,000.
* **What is shared.** Cells that two blocks ask for, or that the store holds from an earlier study,
  are trained once. A `constant` schedule without cooldown does not know its end: runs of different
  lengths are then one trajectory, trained to the longest. A `cosine` depends on its length, so each
  length is a trajectory of its own.
* **What decides a result.** Weights and tokenizer, the rows and their order, template,
  `max_tokens`, method, schedule, seed and `precision`. Names, paths, labels, the order of lists and
  where a job runs decide nothing: changing them keeps every result.
* **Size.** The product is checked before it is expanded; the cap is 1,000,000 cells.

An editor completes and checks the file by [study-file.schema.json](study-file.schema.json). With
the YAML language server, begin the file with
`# yaml-language-server: $schema=path/to/study-file.schema.json`.

This page is written from the schema: `python -m sft_atlas.study.reference docs`.
"""


def render_reference() -> str:
    """Return docs/study-file.md."""
    pages = [_INTRODUCTION]
    for heading, model in SECTIONS:
        pages.append(_render_section(heading, model))
    return "\n".join(pages)


def render_schema() -> str:
    """Return docs/study-file.schema.json, JSON Schema 2020-12."""
    content = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **StudyFile.model_json_schema(),
        "title": "SFT Atlas study",
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write_reference(folder: Path) -> None:
    """Write both files into a folder."""
    (folder / "study-file.md").write_text(render_reference(), encoding="utf-8")
    (folder / "study-file.schema.json").write_text(render_schema(), encoding="utf-8")


def _render_section(heading: str, model: type[BaseModel]) -> str:
    content = model.model_json_schema()
    required = set(content.get("required", ()))
    lines = [f"## {heading}", "", model.__doc__ or "", "", "| key | value | default | meaning |"]
    lines.append("|---|---|---|---|")
    for key, facts in content["properties"].items():
        default = "required" if key in required else _default(facts)
        # A reference to a section that says the same carries no description of its own.
        meaning = facts.get("description") or content["$defs"][_target(facts)]["description"]
        lines.append(f"| `{key}` | {_type(facts)} | {default} | {_one_line(meaning)} |")
    return "\n".join(lines) + "\n"


def _default(facts: dict[str, Any]) -> str:
    value = facts.get("default")
    return "" if value is None or value in ("", [], {}) else f"`{json.dumps(value)}`"


def _type(facts: dict[str, Any]) -> str:
    """Say in words what a property takes."""
    if "$ref" in facts:
        return _link(_target(facts))
    if "const" in facts:
        return f"`{facts['const']}`"
    if "enum" in facts:
        return " or ".join(f"`{_plain(value)}`" for value in facts["enum"])
    members = facts.get("anyOf") or facts.get("oneOf")
    if members:
        names = [_type(member) for member in members if member.get("type") != "null"]
        return " or ".join(dict.fromkeys(names))
    kind = facts.get("type")
    if kind == "array":
        return f"list of {_type(facts['items'])}"
    if kind == "object":
        values = facts.get("additionalProperties") or next(
            iter(facts["patternProperties"].values())
        )
        return f"mapping to {_type(values)}"
    words = {"integer": "whole number", "number": "number", "string": "text"}
    return words.get(str(kind), "true or false") + _bounds(facts)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _bounds(facts: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {facts[key]:,}" for key, sign in signs.items() if key in facts]
    return f" {', '.join(found)}" if found else ""


def _target(facts: dict[str, Any]) -> str:
    return str(facts["$ref"]).rsplit("/", 1)[-1]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _link(name: str) -> str:
    for heading, model in SECTIONS:
        if model.__name__ == name:
            return f"[{heading.lower()}](#{heading.lower().replace(' ', '-')})"
    raise KeyError(name)


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
