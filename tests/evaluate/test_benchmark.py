"""Questions: the exact text that a model is shown, and what counts as their answer."""

import bz2
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from sft_atlas.errors import DataError
from sft_atlas.evaluate.benchmark import Question, fill_text, load_questions
from sft_atlas.study.benchmark import Benchmark, build_benchmark_spec, load_benchmark

WriteBenchmark = Callable[..., Benchmark]
REAL = Path(__file__).parents[2] / "../shared/data/benchmarks"

CHOICE = {
    "kind": "choice",
    "prompt": "{q}",
    "choices": "options",
    "label": "gold",
    "metric": "accuracy",
}
GENERATE = {"kind": "generate", "prompt": "{q}", "answer": "{a}", "metric": "exact_match"}
SHOTS = [{"q": "q1", "a": "a1"}, {"q": "q2", "a": ["a2", "also"]}, {"q": "q3", "a": "a3"}]


def questions(
    benchmark: Benchmark,
    tokenizer: PreTrainedTokenizerFast,
    *,
    template: str = "question-answer",
    **fields: Any,
) -> tuple[Question, ...]:
    spec = build_benchmark_spec(benchmark, template=template, max_tokens=128, **fields)
    return load_questions(spec, tokenizer)


def test_a_prompt_is_put_into_the_studys_template(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmark = write_benchmark([{"q": "2+2?", "a": "4"}], **GENERATE)
    (question,) = questions(benchmark, tokenizer)
    assert question.prompt == "###Question: 2+2?\n###Answer:"
    assert question.accepted == ("4",)
    assert question.reference == "4"


def test_examples_come_first_in_the_same_template(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmark = write_benchmark([{"q": "q", "a": "a"}], few_shot=SHOTS, **GENERATE)
    (question,) = questions(benchmark, tokenizer, shots=2)
    assert question.prompt == (
        "###Question: q1\n###Answer: a1\n\n"
        "###Question: q2\n###Answer: a2\n\n"
        "###Question: q\n###Answer:"
    )


def test_unwrapped_examples_are_plain_text(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    shots = [{"q": "The sky is", "options": ["red", "blue"], "gold": "B"}]
    items = [{"q": "Grass is", "options": ["green", "loud"], "gold": 0}]
    benchmark = write_benchmark(items, few_shot=shots, wrap=False, **CHOICE)
    (question,) = questions(benchmark, tokenizer, shots=1)
    assert question.prompt == "The sky is blue\n\nGrass is"
    assert question.answers == (" green", " loud")
    (chat,) = questions(benchmark, tokenizer, shots=1, template="chat")
    assert (chat.prompt, chat.answers) == (question.prompt, question.answers)


def test_in_a_chat_template_examples_are_earlier_turns(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmark = write_benchmark([{"q": "q", "a": "a"}], few_shot=SHOTS, **GENERATE)
    (question,) = questions(benchmark, tokenizer, shots=1, template="chat")
    assert question.prompt == (
        "<|user|>\nq1<end>\n<|assistant|>\na1<end>\n<|user|>\nq<end>\n<|assistant|>\n"
    )


@pytest.mark.parametrize(
    ("gold", "label"),
    [(1, 1), ("1", 1), ("B", 1), (" b ", 1), (True, 1), (False, 0), ("A", 0)],
)
def test_a_label_is_an_index_or_a_letter(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast, gold: Any, label: int
) -> None:
    benchmark = write_benchmark([{"q": "q", "options": ["x", "y"], "gold": gold}], **CHOICE)
    (question,) = questions(benchmark, tokenizer)
    assert (question.label, question.unscored) == (label, None)
    assert question.reference == ("x", "y")[label]


@pytest.mark.parametrize("gold", [2, -1, "C", "", None, "yes", 0.5])
def test_an_item_whose_label_names_no_option_is_unscored(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast, gold: Any
) -> None:
    benchmark = write_benchmark([{"q": "q", "options": ["x", "y"], "gold": gold}], **CHOICE)
    (question,) = questions(benchmark, tokenizer)
    assert question.unscored == f"label {gold!r} names none of its 2 options"
    assert question.reference is None


@pytest.mark.parametrize("answer", [[], None, ""])
def test_an_item_without_accepted_answers_is_unscored(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast, answer: Any
) -> None:
    benchmark = write_benchmark([{"q": "q", "a": answer}], **GENERATE)
    assert questions(benchmark, tokenizer)[0].unscored == "no accepted answer"


def test_options_can_be_texts_with_places(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    fields = CHOICE | {"choices": ["{A}", "not {A}"], "label": "meta.gold"}
    items = [{"q": "q", "A": "so", "meta": {"gold": 1}}]
    (question,) = questions(write_benchmark(items, **fields), tokenizer)
    assert question.options == ("so", "not so")
    assert question.label == 1


def test_items_are_named_by_id_only_where_all_ids_differ(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    def names(ids: list[Any]) -> list[str]:
        items = [{"q": "q", "a": "a"} | ({} if i is None else {"id": i}) for i in ids]
        return [q.id for q in questions(write_benchmark(items, **GENERATE), tokenizer)]

    assert names(["x", 7]) == ["x", "7"]
    assert names(["x", "x"]) == ["0", "1"]
    assert names(["x", None]) == ["0", "1"]


def test_a_limit_takes_the_first_items(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    items = [{"id": f"i{n}", "q": "q", "a": "a"} for n in range(5)]
    loaded = questions(write_benchmark(items, **GENERATE), tokenizer, limit=2)
    assert [question.id for question in loaded] == ["i0", "i1"]


def test_a_missing_field_names_the_row_and_its_fields(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmark = write_benchmark([{"q": "q", "a": "a"}, {"question": "q", "a": "a"}], **GENERATE)
    with pytest.raises(DataError) as caught:
        questions(benchmark, tokenizer)
    assert str(caught.value) == (
        "items.jsonl.gz:2: has no {q}; the item has a, question. Correct the benchmark file or "
        "the item."
    )


def test_too_few_examples_are_refused(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmark = write_benchmark([{"q": "q", "a": "a"}], few_shot=SHOTS[:1], **GENERATE)
    with pytest.raises(DataError, match="2 shots are wanted and its examples are 1"):
        questions(benchmark, tokenizer, shots=2)


def test_values_that_are_no_text_are_refused() -> None:
    row = {"x": [1, {"y": "deep"}], "n": None}
    assert fill_text("{x.0} {x.1.y} {{x}}", row, "f:1") == "1 deep {x}"
    with pytest.raises(DataError, match=r"^f:1: \{x\} is a list; expected text or a number\."):
        fill_text("{x}", row, "f:1")
    with pytest.raises(DataError, match=r"\{n\} is null"):
        fill_text("{n}", row, "f:1")
    with pytest.raises(DataError, match=r"has no \{x\.2\}; its x has no such part"):
        fill_text("{x.2}", row, "f:1")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real items are not here")
class TestRealItems:
    """Items of public benchmarks, as their authors published them."""

    def test_gsm8k(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        benchmark = load(
            tmp_path,
            {
                "items": {"path": str((REAL / "gsm8k_test.jsonl").resolve())},
                "kind": "generate",
                "prompt": "{question}",
                "answer": "{answer}",
                "metric": "numeric_match",
            },
        )
        loaded = questions(benchmark, tokenizer)
        assert len(loaded) == 1319
        assert all(question.unscored is None for question in loaded)
        assert loaded[0].accepted[0].endswith("#### 18")

    def test_mmlu(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        fields = {
            "few_shot": {"path": str((REAL / "mmlu/dev/anatomy_dev.csv").resolve())},
            "items": {"path": str((REAL / "mmlu/test/anatomy_test.csv").resolve())},
            "kind": "choice",
            "prompt": "{question}\nA. {choice0}\nB. {choice1}\nC. {choice2}\nD. {choice3}",
            "choices": ["A", "B", "C", "D"],
            "label": "answer",
            "metric": "accuracy",
        }
        loaded = questions(load(tmp_path, fields), tokenizer, shots=5)
        with (REAL / "mmlu/test/anatomy_test.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [question.label for question in loaded] == [int(row["answer"]) for row in rows]
        assert loaded[0].prompt.count("###Question: ") == 6
        assert loaded[0].answers == (" A", " B", " C", " D")

    def test_hellaswag(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        with bz2.open(REAL / "hellaswag_val_full.txt.bz2", "rt") as stream:
            lines = stream.read().split("\n")
        tasks = [lines[i : i + 6] for i in range(0, 600, 6)]
        rows = [{"ctx": t[0], "label": t[1].strip(), "endings": t[2:]} for t in tasks]
        (tmp_path / "items.json").write_text(json.dumps(rows))
        fields = {
            "items": {"path": "items.json"},
            "kind": "choice",
            "prompt": "{ctx}",
            "wrap": False,
            "choices": "endings",
            "label": "label",
            "metric": "accuracy_bytes",
        }
        loaded = questions(load(tmp_path, fields), tokenizer)
        assert len(loaded) == 100
        assert loaded[0].label == 3
        assert loaded[0].prompt == "Roof shingle removal: A man is sitting on a roof. he"
        assert loaded[0].answers[3] == " starts pulling up roofing on a roof."


def load(folder: Path, fields: dict[str, Any]) -> Benchmark:
    path = folder / "real.yaml"
    path.write_text(json.dumps({"name": "real"} | fields))
    return load_benchmark(path)
