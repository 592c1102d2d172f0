"""What do the result folders of lm-eval say?

In: a folder that `lm_eval --output_path` wrote (or one of its `results_*.json`), of lm-eval 0.4 or
later. Out: one row per model, one column per task and metric, with the standard errors and item
counts that lm-eval gives. The one decision: a task asked with other shots or in another version is
another test and gets its own column; of several runs of one test the newest counts. Item files
(`samples_*.jsonl`) are not needed and not read.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sft_atlas.errors import DataError
from sft_atlas.evidence.run_labels import RunLabels
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wide import LooseScore, digest_files, find_unit, make_column, wide_table

_STDERR: Final = "_stderr,"


@dataclass(frozen=True, kw_only=True)
class _Test:
    """What makes two results comparable; the first metric of a task is the one that counts."""

    task: str
    metric: str
    """Metric and filter, such as `exact_match,strict-match`."""
    shots: int | None
    version: str


@dataclass(frozen=True, kw_only=True)
class _Result:
    model: str
    test: _Test
    value: float
    error: float | None
    num_items: int | None
    path: Path


def read_lm_eval(path: Path, known: RunLabels) -> SourceTable:
    """Read lm-eval's results of any number of models.

    Raises:
        DataError: with the file, if there are no results, or a file is not lm-eval's.
        StudyError: if the labels do not fit the models.
    """
    paths = _result_files(path)
    loaded = sorted(
        ((_load(file), file) for file in paths), key=lambda pair: (_date(pair[0]), pair[1].name)
    )
    results: dict[tuple[str, _Test], _Result] = {}
    num_parts = num_again = 0
    for content, file in loaded:
        model = _model_name(content, file)
        if not known.is_kept(model):
            continue
        parts = _parts(content)
        num_parts += len(parts)
        for found in _results(content, file, model, parts):
            num_again += (model, found.test) in results
            results[model, found.test] = found
    names, primary = _name_tests(results, known)
    outside = {
        names[test]
        for (_, test), found in results.items()
        if not 0 <= found.value <= 1 and _unit(test, known) is None
    }
    scores = [
        _loose(found, names[test])
        for (_, test), found in results.items()
        if names[test] not in outside
    ]
    notes = []
    if num_parts:
        notes.append(f"results of subtasks left out, because their group has a score: {num_parts}")
    if num_again:
        notes.append(f"results made again later, of which the newest counts: {num_again}")
    if outside:
        shown = ", ".join(sorted(outside))
        notes.append(f"columns left out, no fraction of 1: {shown}")
    columns = [
        _column(test, name, name in primary, scores, known)
        for test, name in names.items()
        if name not in outside
    ]
    digested = [*paths, *([known.lines.path] if known.lines is not None else [])]
    return wide_table(
        scores, columns, known, origin=path, sha256=digest_files(digested, path), notes=notes
    )


def _result_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.rglob("results*.json")) if path.is_dir() else []
    if not found:
        raise DataError(
            f"{path}: has no results_*.json; expected the folder that `lm_eval --output_path` "
            f"wrote."
        )
    return found


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is no JSON ({error}); expected a results file of lm-eval."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise DataError(f"{path}: has no `results`; expected a results file of lm-eval.")
    return content


def _date(content: Mapping[str, Any]) -> float:
    date = content.get("date")
    return float(date) if isinstance(date, (int, float)) else 0.0


def _model_name(content: Mapping[str, Any], path: Path) -> str:
    """Name the model as lm-eval does: the adapter, else the model, that its arguments name."""
    name = content.get("model_name")
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{path}: has no `model_name`; expected a results file of lm-eval 0.4 or later. Write "
            f"it again with the newest version, or add the name to the file."
        )
    return name


def _parts(content: Mapping[str, Any]) -> set[str]:
    """Tasks below a group that has a score of its own."""
    children = {
        group: [str(name) for name in names]
        for group, names in dict(content.get("group_subtasks") or {}).items()
    }
    waiting = [group for group in children if children[group] and _has_metrics(content, group)]
    parts: set[str] = set()
    while waiting:
        for name in children.get(waiting.pop(), []):
            if name not in parts:
                parts.add(name)
                waiting.append(name)
    return parts & set(content["results"])


def _has_metrics(content: Mapping[str, Any], task: str) -> bool:
    return any("," in key for key in dict(content["results"].get(task) or {}))


def _results(
    content: Mapping[str, Any], path: Path, model: str, parts: set[str]
) -> Iterator[_Result]:
    for task, metrics in content["results"].items():
        if task in parts or not isinstance(metrics, dict):
            continue
        direction = dict(dict(content.get("higher_is_better") or {}).get(task) or {})
        shots = dict(content.get("n-shot") or {}).get(task)
        for key, given in metrics.items():
            metric = key.partition(",")[0]
            if "," not in key or _STDERR in key or direction.get(metric, True) is not True:
                continue
            value = _number(given)
            if value is None:
                continue
            error = _number(metrics.get(key.replace(",", _STDERR, 1)))
            yield _Result(
                model=model,
                test=_Test(
                    task=task,
                    metric=key.removesuffix(",none"),
                    shots=shots if isinstance(shots, int) else None,
                    version=str(dict(content.get("versions") or {}).get(task, "")),
                ),
                value=value,
                error=error,
                num_items=_num_items(content, task),
                path=path,
            )


def _number(value: object) -> float | None:
    """Return a finite number; lm-eval writes `N/A` and NaN where it has none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _num_items(content: Mapping[str, Any], task: str) -> int | None:
    """Items that were asked, of a group those of all its tasks; None where lm-eval does not say."""
    counts = dict(content.get("n-samples") or {})
    if task in counts:
        found = counts[task].get("effective") if isinstance(counts[task], dict) else None
        return found if isinstance(found, int) else None
    children = dict(content.get("group_subtasks") or {}).get(task) or []
    sizes = [_num_items(content, str(name)) for name in children]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _name_tests(
    results: Mapping[tuple[str, _Test], _Result], known: RunLabels
) -> tuple[dict[_Test, str], set[str]]:
    """Name each column by what tells it from its like; also which columns count in means."""
    counts = Counter(test for _, test in results)
    names: dict[_Test, str] = {}
    primary: set[str] = set()
    for task in dict.fromkeys(test.task for test in counts):
        tests = [test for test in counts if test.task == task]
        chosen = known.benchmark(task).metric
        metrics = list(dict.fromkeys(test.metric for test in tests))
        if chosen is not None and chosen.removesuffix(",none") not in metrics:
            raise DataError(
                f"{task}: has no metric {chosen!r}; lm-eval gives {', '.join(metrics)}. Change "
                f"`metric` in the file of labels."
            )
        first = metrics[0] if chosen is None else chosen.removesuffix(",none")
        for test in tests:
            name = task
            if len({other.shots for other in tests}) > 1:
                name += f"-{test.shots}shot"
            if len({other.version for other in tests}) > 1:
                name += f"-v{test.version}"
            names[test] = name if test.metric == first else f"{name}:{test.metric}"
        most = max((test for test in tests if test.metric == first), key=lambda test: counts[test])
        primary.add(names[most])
    return names, primary


def _unit(test: _Test, known: RunLabels) -> str | None:
    return known.benchmark(test.task).unit


def _loose(found: _Result, column: str) -> LooseScore:
    return LooseScore(
        model=found.model,
        column=column,
        text=repr(found.value),
        value=found.value,
        where=str(found.path),
        error=found.error,
        num_items=found.num_items,
    )


def _column(
    test: _Test, name: str, in_mean: bool, scores: list[LooseScore], known: RunLabels
) -> Column:
    entry = known.benchmark(test.task)
    sizes = {score.num_items for score in scores if score.column == name}
    # The catalog's size is that of the whole test; lm-eval knows how many items were asked.
    entry = entry.model_copy(update={"items": sizes.pop() if len(sizes) == 1 else None})
    unit = entry.unit or find_unit(name, scores)
    metric = test.metric.partition(",")[0]
    return make_column(name, entry, unit=unit, metric=metric, in_mean=in_mean)
