"""What does the released table of Harada et al. 2025 say?

In: `evaluation_result.csv` of their release (github.com/llm-jp/massive-sft, arXiv 2506.14681), or a
table of the same columns. Out: its scores with labels in this project's vocabulary. What is known
here is only what the paper and the release state: which benchmark a column is, its items and its
unit. Whether the numbers agree with that is for `evidence.defects` to find out. Columns of other
names are read as percent and count in no mean.
"""

import re
from pathlib import Path
from typing import Final

import pandas as pd

from sft_atlas import files
from sft_atlas.errors import DataError
from sft_atlas.evidence.csv_table import BLANKS, TextTable, read_numbers, read_text_table
from sft_atlas.evidence.source import LABELS, Column, SourceTable

_KEYS: Final = ("model_name", "data_name", "lora", "epoch", "data_size", "lr_strategy")
_BASE: Final = "pretrain"
_WITHOUT: Final = "w/o-"

_MODELS: Final = {
    "OLMo-7B-hf": ("olmo", "en"),
    "Meta-Llama-3-8B": ("llama3", "en"),
    "Mistral-7B-v0.1": ("mistral", "en"),
    "Gemma2-9B": ("gemma2", "en"),
    "Qwen2.5-7B": ("qwen2.5", "zh;en"),
    "llama-3-chinese-8b": ("llama3", "zh"),
    "Chinese-Mistral-7B-v0.1": ("mistral", "zh"),
    "Yi-1.5-9B": ("yi", "zh;en"),
    "LLM-jp-3-7B": ("llm-jp", "ja"),
    "Llama-3-Swallow-8B-v0.1": ("llama3", "ja"),
    "Sarashina2-7B": ("sarashina2", "ja"),
}
"""Family by lineage: a model that was trained further belongs to what it began from. The first
language is the group that the paper puts it in."""

_GROUPS: Final = {
    **dict.fromkeys(("alpaca_cleaned", "lima", "ultrachat"), "general"),
    **dict.fromkeys(("code_alpaca", "magicoder"), "code"),
    **dict.fromkeys(("openmath", "math"), "math"),
    "flan_knowledge": "knowledge",
    "flan_reasoning": "reasoning",
    "flan_comprehension": "comprehension",
}

_BENCHMARKS: Final = {
    "math": ("math", "math_match", 5000, None),
    "gsm8k": ("math", "numeric_match", 1319, None),
    "humaneval": ("code", "pass_at_1", 164, None),
    "mbpp": ("code", "pass_at_1", 257, None),
    "BoolQ": ("knowledge", "accuracy", 3270, None),
    "nq": ("knowledge", "contains", 3610, None),
    "Truthful_QA": ("knowledge", "bleu_accuracy", 817, None),
    "mmlu": ("knowledge", "accuracy", 14042, 57),
    "cmmlu": ("knowledge", "accuracy", 11582, 67),
    "jmmlu": ("knowledge", "accuracy", 14042, 57),
    "hellaswag": ("reasoning", "accuracy", 10042, None),
    "LongBench-v2": ("comprehension", "accuracy", 503, None),
    "alpaca_eval_v2": ("open-ended", "win_rate", 805, None),
}
"""Skill, metric, items and groups by the part of a column's name before its shots: the paper's
Table 3, and the benchmarks' own sizes for the two that it leaves out."""

_LANGUAGES: Final = {"cmmlu": "zh", "jmmlu": "ja"}
_IN_MEAN: Final = (
    *("math-0shot", "gsm8k-0shot", "humaneval-0shot", "mbpp-0shot", "BoolQ-0shot", "nq-0shot"),
    *("Truthful_QA-0shot", "mmlu-0shot", "cmmlu-0shot", "jmmlu-0shot", "mtbench-total"),
    "alpaca_eval_v2-total",
)
"""The twelve of Table 3, without examples in the prompt."""

_FRACTIONS: Final = frozenset({"Truthful_QA-0shot"})
_RATING: Final = "mtbench-total"
_RATING_ITEMS: Final = 160
_RATING_PARTS: Final = 8
_MAX_COUNT: Final = 10**12
_SHOTS = re.compile(r"[-_](\d+shot|total)$")


def read_massive_sft(path: Path) -> SourceTable:
    """Read the released table, or one of its form.

    Raises:
        DataError: with file and line, where it has other columns, a label that cannot be read, a
            score that is no number, or the same run twice.
    """
    table = read_text_table(path)
    fields = table.fields
    absent = [name for name in _KEYS if name not in fields]
    if absent:
        raise DataError(
            f"{path}:1: has no column {absent[0]!r}; expected the released table's columns "
            f"{', '.join(_KEYS)} and one for each score. Is it a table of another kind?"
        )
    names = [name for name in map(str, fields) if name not in _KEYS and not _is_index(name)]
    if not names:
        raise DataError(f"{path}:1: has no column of scores; expected at least one.")
    texts, values = read_numbers(table, names)
    labels = _labels(table)
    refuse_repeated_runs(table, labels)
    return SourceTable(
        name="massive-sft",
        sha256=files.sha256_file(path),
        origin=str(path),
        labels=labels,
        texts=texts,
        values=values,
        columns=tuple(_column(name, names) for name in names),
    )


def refuse_repeated_runs(table: TextTable, labels: pd.DataFrame) -> None:
    """Raise DataError where two rows have the same labels."""
    is_again = labels.duplicated(list(LABELS))
    if is_again.any():
        row = int(is_again.to_numpy().argmax())
        same = labels[list(LABELS)].astype("string").fillna("")
        first = int((same == same.iloc[row]).all(axis=1).to_numpy().argmax())
        found = labels.iloc[row]
        raise DataError(
            f"{table.where(row)}: is the same run as line {int(table.lines.iloc[first])} "
            f"({found['model']}, {found['data']}, {found['method']}, epoch {found['epoch']}); "
            f"expected one row per run. Remove one of them."
        )


def _labels(table: TextTable) -> pd.DataFrame:
    fields = table.fields
    is_base = fields["data_name"] == _BASE
    for name in ("model_name", "data_name"):
        _refuse(table, fields[name] == "", name, "expected a name")
    is_lora = fields["lora"].str.lower()
    _refuse(table, ~is_base & ~is_lora.isin(("true", "false")), "lora", "expected true or false")
    schedule = fields["lr_strategy"]
    _refuse(
        table,
        ~is_base & schedule.str.lower().isin(BLANKS),
        "lr_strategy",
        "expected a schedule such as cosine",
    )
    epoch = _counts(table, "epoch", is_base)
    samples = _counts(table, "data_size", is_base)
    is_without = fields["data_name"].str.startswith(_WITHOUT)
    is_all = fields["data_name"] == "all"
    kind = pd.Series("each", index=fields.index).mask(is_all, "all")
    kind = kind.mask(is_without, "leave-one-out").mask(is_base, "base")
    data = fields["data_name"].str.removeprefix(_WITHOUT)
    group = data.map(_GROUPS).fillna("").mask(kind.isin(("all", "leave-one-out")), "mixed")
    known = fields["model_name"].map(_MODELS)
    method = is_lora.map({"true": "lora", "false": "full"}).mask(is_base, "base")
    labels = pd.DataFrame(
        {
            "line": table.lines,
            "model": fields["model_name"],
            "family": [found[0] if isinstance(found, tuple) else "" for found in known],
            "languages": [found[1] if isinstance(found, tuple) else "" for found in known],
            "data": data.mask(is_without, "without-" + data).mask(is_base, "base"),
            "data_kind": kind,
            "data_group": group.mask(is_base, None),
            "samples": samples,
            "method": method,
            "method_kind": method,
            "schedule": schedule.str.lower().mask(is_base, None),
            "epoch": epoch.mask(is_base, 0),
            "seed": pd.Series(0, index=fields.index, dtype="Int64").mask(is_base),
        }
    )
    labels["block"] = block_names(labels)
    last = labels.groupby("block")["epoch"].transform("max")
    return labels.assign(horizon_epochs=last.mask(is_base))[["line", *LABELS]]


def block_names(labels: pd.DataFrame) -> "pd.Series[str]":
    """Name the factorial product that each run belongs to; empty for a base model.

    Runs of one kind of data, number of samples and schedule are one block, such as
    `each-1k-cosine`.
    """
    sizes = ["" if pd.isna(size) else _size_text(int(size)) for size in labels["samples"]]
    parts = zip(labels["data_kind"], sizes, labels["schedule"], strict=True)
    names = pd.Series([f"{kind}-{size}-{rate}" for kind, size, rate in parts], index=labels.index)
    return names.mask(labels["method"] == "base", "")


def _size_text(samples: int) -> str:
    """Write a number of samples as people say it.

    >>> _size_text(20000), _size_text(1500)
    ('20k', '1500')
    """
    if samples == 0 or samples % 1000:
        return str(samples)
    return f"{samples // 1000}k"


def _counts(table: TextTable, name: str, is_base: "pd.Series[bool]") -> "pd.Series[int]":
    """Read whole numbers that may be written as 1000.0; null for base models."""
    _, numbers = read_numbers(table, [name])
    found = numbers[name]
    is_wrong = ~is_base & (found.isna() | (found < 1) | (found % 1 != 0) | (found > _MAX_COUNT))
    _refuse(table, is_wrong, name, f"expected a whole number from 1 to {_MAX_COUNT:,}")
    return found.mask(is_base).astype("Int64")


def _refuse(table: TextTable, is_wrong: "pd.Series[bool]", name: str, expected: str) -> None:
    if is_wrong.any():
        row = int(is_wrong.to_numpy().argmax())
        shown = table.fields[name].iloc[row]
        raise DataError(f"{table.where(row)}: column {name!r} holds {shown!r}; {expected}.")


def _is_index(name: str) -> bool:
    """Tell whether a column is the row number that a program wrote without being asked."""
    return name == "" or name.startswith("Unnamed:")


def _column(name: str, names: list[str]) -> Column:
    test = _SHOTS.sub("", name)
    if name.startswith("mtbench-"):
        is_total = name == _RATING
        return Column(
            name=name,
            benchmark=name,
            skill="open-ended",
            language="en",
            metric="rating",
            scale=1.0,
            num_items=_RATING_ITEMS if is_total else _RATING_ITEMS // _RATING_PARTS,
            in_mean=name in _IN_MEAN,
            part_of=_RATING if not is_total and _RATING in names else None,
        )
    skill, metric, num_items, num_groups = _BENCHMARKS.get(test, ("", "accuracy", None, None))
    return Column(
        name=name,
        benchmark=name,
        skill=skill,
        language=_LANGUAGES.get(test, "en" if test in _BENCHMARKS else ""),
        metric=metric,
        scale=1.0 if name in _FRACTIONS else 0.01,
        num_items=num_items,
        num_groups=num_groups,
        in_mean=name in _IN_MEAN,
    )
