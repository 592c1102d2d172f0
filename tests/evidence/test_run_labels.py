"""A file of labels says what was trained on what; nothing is guessed from a name."""

from pathlib import Path

import pandas as pd
import pytest

from sft_atlas.errors import StudyError
from sft_atlas.evidence.run_labels import NOT_STATED, RunLabels, label_runs, read_run_labels
from sft_atlas.evidence.source import LABELS

FILE = """\
runs:
  org/base: {model: base-8b}
  org/tuned: {model: base-8b, data: alpaca, method: lora-r16, samples: 1000, epoch: 3}
  org/mixed:
    {model: base-8b, data: mine, kind: all, method: full, samples: 5000, epoch: 1, epochs: 3,
     schedule: cosine, seed: 7}
models:
  base-8b: {family: llama3, languages: [en, ja]}
datasets:
  mine: {group: code}
benchmarks:
  gsm8k: {unit: percent}
  quiz: {skill: math, language: ja, items: 40, in_mean: false}
ignore: [org/draft]
"""


def read(folder: Path, text: str) -> RunLabels:
    path = folder / "labels.yaml"
    path.write_text(text, encoding="utf-8")
    return read_run_labels(path)


def refused(folder: Path, text: str, names: tuple[str, ...] = ("org/base",)) -> str:
    with pytest.raises(StudyError) as error:
        label_runs(names, read(folder, text))
    return str(error.value).replace(str(folder / "labels.yaml"), "labels.yaml")


def test_labels_are_those_of_the_file(tmp_path: Path) -> None:
    labels = label_runs(["org/base", "org/tuned", "org/mixed"], read(tmp_path, FILE))
    assert list(labels.columns) == ["line", *LABELS]
    rows = [[None if pd.isna(value) else value for value in row] for row in labels.to_numpy()]
    facts = ["base-8b", "llama3", "en;ja"]
    alpaca, mine = ["alpaca", "each", "general", 1000], ["mine", "all", "mixed", 5000]
    assert rows == [
        [1, *facts, "base", "base", None, None, "base", "base", None, None, 0, None, ""],
        [2, *facts, *alpaca, "lora-r16", "lora", NOT_STATED, 3, 3, 0, f"each-1k-{NOT_STATED}"],
        [3, *facts, *mine, "full", "full", "cosine", 3, 1, 7, "all-5k-cosine"],
    ]


def test_the_documented_file_is_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "evidence.md"
    text = page.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    known = read(tmp_path, text)
    labels = label_runs(list(known.content.runs), known)
    assert labels["data_kind"].tolist() == ["base", "each", "all"]
    assert labels["schedule"].tolist()[1] == NOT_STATED
    assert known.benchmark("gsm8k").metric == "exact_match,flexible-extract"


def test_without_a_file_every_model_is_a_base_model() -> None:
    labels = label_runs(["me/llama-lora-alpaca", "gemma-2-9b"], read_run_labels(None))
    assert set(labels["method"]) == {"base"}
    assert labels["model"].tolist() == ["me/llama-lora-alpaca", "gemma-2-9b"]
    assert labels["family"].tolist() == ["", "gemma2"]


def test_the_catalog_knows_models_by_their_address() -> None:
    labels = label_runs(["Qwen/Qwen2.5-7B"], read_run_labels(None))
    assert labels["languages"].tolist() == ["zh;en"]


def test_the_file_goes_before_the_catalog(tmp_path: Path) -> None:
    known = read(tmp_path, FILE)
    gsm8k, quiz = known.benchmark("gsm8k"), known.benchmark("quiz")
    assert (gsm8k.unit, gsm8k.skill, gsm8k.items) == ("percent", "math", 1319)
    assert (quiz.skill, quiz.language, quiz.items, quiz.in_mean) == ("math", "ja", 40, False)
    assert known.benchmark("unheard-of").skill is None
    assert not known.is_kept("org/draft")
    assert known.is_kept("org/base")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "runs:\n  org/base: {model: b, data: alpaca, method: full, epoch: 1}\n",
            "labels.yaml:2: 'org/base' has data and no samples; expected data, method, samples and "
            "epoch for a tuned model. Add what is absent.",
        ),
        (
            "runs:\n  org/base: {model: b, epoch: 1}\n",
            "labels.yaml:2: 'org/base' has training and no data; expected data, method, samples "
            "and epoch, or only `model` for a base model.",
        ),
        (
            "runs:\n  org/bse: {model: b}\n",
            "labels.yaml: says nothing of 'org/base'; expected every model of the source under "
            "`runs`, or under `ignore`. did you mean org/bse? Names: org/bse.",
        ),
    ],
    ids=["no-samples", "no-data", "not-named"],
)
def test_what_is_incomplete_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text) == message


def test_unknown_keys_are_refused_with_their_line(tmp_path: Path) -> None:
    text = "runs:\n  org/base:\n    model: b\n    dta: x\n"
    assert refused(tmp_path, text) == (
        "labels.yaml:4: runs.org/base.dta is not a field; did you mean data? Fields: data, epoch, "
        "epochs, kind, method, model, samples, schedule, seed."
    )
    assert refused(tmp_path, "runs:\n  org/base: {data: x}\n") == (
        "labels.yaml:2: runs.org/base.model is missing; expected the name of a base model."
    )


def test_two_models_of_the_same_labels_are_refused(tmp_path: Path) -> None:
    text = "runs:\n  a: {model: b}\n  c: {model: b}\n"
    assert refused(tmp_path, text, ("a", "c")) == (
        "labels.yaml:3: 'c' has the same labels as 'a'; expected one model for each run. Give "
        "them other seeds, or put one under `ignore`."
    )
