"""A study file of local data that tests change line by line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_atlas.study.loader import load_study
from sft_atlas.study.study import Study

STUDY = """\
study: tiny
models:
  - {name: m1, hub: org/one, revision: abc, parameters: 1000000}
  - {name: m2, hub: org/two}
datasets:
  - {name: d1, path: d1.jsonl, tokens_per_sample: 10}
  - {name: d2, path: d2.jsonl}
  - {name: d3, hub: org/three}
benchmarks:
  - {file: bench.yaml}
methods:
  full: {learning_rate: 1e-5, batch_samples: 4}
  lora: {learning_rate: 1e-4, batch_samples: 4, rank: 2, alpha: 4}
"""

BENCHMARK = """\
name: quiz
kind: generate
items: {path: quiz.jsonl}
few_shot: {path: quiz.jsonl}
prompt: "{q}"
answer: "{a}"
metric: exact_match
max_new_tokens: 8
"""

Load = Callable[..., Study]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two datasets and a benchmark."""
    for name in ("d1", "d2"):
        rows = [{"instruction": f"{name} {i}", "output": str(i)} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "quiz.jsonl").write_text('{"q": "1 + 1", "a": "2"}\n' * 5)
    (tmp_path / "bench.yaml").write_text(BENCHMARK)
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Load:
    """Load the tiny study with some blocks, after replacing some of its text."""

    def load_text(blocks: str, *changes: tuple[str, str], more: str = "") -> Study:
        text = STUDY
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = folder / "study.yaml"
        path.write_text(f"{text}blocks:\n{blocks}\n{more}")
        return load_study(path)

    return load_text
