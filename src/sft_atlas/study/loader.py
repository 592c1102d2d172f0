"""Turn a study file into a `Study`: names looked up, files digested, the grid's size checked.

Every fault is reported as `file:line`, with the nearest name that exists.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, TypeVar

from sft_atlas.errors import StudyError
from sft_atlas.strict_yaml import Key, Lines, did_you_mean, load, validate
from sft_atlas.study.benchmark_entry import BenchmarkEntry
from sft_atlas.study.entries import (
    method_from_entry,
    resolve_benchmark,
    resolve_dataset,
    resolve_model,
    schedule_from_entry,
)
from sft_atlas.study.grid import MAX_CELLS, check_size, data_choices, is_excluded
from sft_atlas.study.measured import resolve_measures
from sft_atlas.study.schema import (
    BlockEntry,
    DatasetEntry,
    ModelEntry,
    StudyFile,
)
from sft_atlas.study.spec import DatasetSpec, ScheduleSpec, distinct_items
from sft_atlas.study.study import (
    Block,
    Exclusion,
    Mixture,
    Published,
    Study,
    StudyBenchmark,
    StudyDataset,
    count_bad_rows,
)

T = TypeVar("T")

_DATA_KINDS = ("each", "all", "leave-one-out")
_BASE = "base"


def load_study(
    path: Path,
    *,
    count_quarantined: Callable[[DatasetSpec], int] | None = None,
    max_cells: int = MAX_CELLS,
) -> Study:
    """Read a study file and everything that it names; paths in it are relative to its folder.

    Args:
        path: the study file.
        count_quarantined: counts the malformed rows of a dataset with `on_bad_rows: quarantine`.
            The count is part of the dataset's identity: whatever looks up results must give it.
        max_cells: refuses a grid whose product is larger, before it is expanded.

    Raises:
        StudyError: with file and line, for anything that is wrong.
    """
    content, lines = load(path)
    file = validate(StudyFile, content, lines)
    study = _resolve(file, lines)
    _check_rows(study, lines)
    check_size(study, max_cells)
    return study if count_quarantined is None else count_bad_rows(study, count_quarantined)


def _resolve(file: StudyFile, lines: Lines) -> Study:
    folder = lines.path.absolute().parent
    models = tuple(
        resolve_model(
            ModelEntry(name=item) if isinstance(item, str) else item,
            folder,
            lines.where("models", i),
        )
        for i, item in enumerate(file.models)
    )
    datasets = tuple(
        resolve_dataset(
            DatasetEntry(name=item) if isinstance(item, str) else item,
            folder,
            lines.where("datasets", i),
        )
        for i, item in enumerate(file.datasets)
    )
    benchmarks = tuple(
        resolve_benchmark(
            BenchmarkEntry(name=item) if isinstance(item, str) else item,
            file,
            folder,
            lines.where("benchmarks", i),
        )
        for i, item in enumerate(file.benchmarks)
    )
    datasets = tuple(
        _without_overlap(dataset, item, benchmarks, lines.where("datasets", i))
        for i, (dataset, item) in enumerate(zip(datasets, file.datasets, strict=True))
    )
    names = _Names(
        lines=lines,
        models=_unique([model.spec.name for model in models], lines, "models"),
        datasets=_unique([dataset.spec.name for dataset in datasets], lines, "datasets"),
        methods=list(file.methods),
        mixtures=list(file.mixtures),
        seeds=file.seeds,
    )
    _unique([benchmark.name for benchmark in benchmarks], lines, "benchmarks")
    _refuse_equal(benchmarks, lines)
    if _BASE in names.methods:
        names.fail(
            "method 'base' has the name that base models stand under; rename it", "methods", _BASE
        )
    mixtures = tuple(_mixture(name, weights, names) for name, weights in file.mixtures.items())
    specs = [benchmark.spec for benchmark in benchmarks if benchmark.spec is not None]
    measured = resolve_measures(file, models=models, benchmarks=specs, lines=lines)
    return Study(
        name=file.study,
        path=lines.path.absolute(),
        about=file.about,
        template=file.template,
        max_tokens=file.max_tokens,
        precision=file.precision,
        master_precision=file.master_precision,
        subset_seed=file.subset_seed,
        models=models,
        datasets=datasets,
        benchmarks=benchmarks,
        methods=tuple(method_from_entry(name, entry) for name, entry in file.methods.items()),
        mixtures=mixtures,
        blocks=tuple(_block(name, entry, names, mixtures) for name, entry in file.blocks.items()),
        measures=measured.measures,
        texts=measured.texts,
        keep_checkpoints=file.keep_checkpoints,
        judge=file.judge,
        published=tuple(Published(**entry.model_dump()) for entry in file.published),
    )


def _without_overlap(
    dataset: StudyDataset,
    entry: str | DatasetEntry,
    benchmarks: Sequence[StudyBenchmark],
    where: str,
) -> StudyDataset:
    """Add the benchmarks whose items its rows must not hold to a dataset's identity."""
    if isinstance(entry, str) or not entry.drop_overlap:
        return dataset
    by_name = {b.name: b.spec for b in benchmarks if b.spec is not None}
    for name in entry.drop_overlap:
        if name not in by_name:
            hint = did_you_mean(name, list(by_name))
            raise StudyError(f"{where}: drop_overlap: {name!r} is no benchmark here; {hint}")
    items = distinct_items(by_name[name] for name in entry.drop_overlap)
    return replace(dataset, spec=replace(dataset.spec, drop_overlap=tuple(items)))


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What a block may refer to, and where its file is."""

    lines: Lines
    models: list[str]
    datasets: list[str]
    methods: list[str]
    mixtures: list[str]
    seeds: tuple[int, ...]

    def fail(self, what: str, *at: Key) -> NoReturn:
        end = "" if what.endswith(".") else "."
        raise StudyError(f"{self.lines.where(*at)}: {what}{end}")

    def check(self, values: Sequence[str], known: Sequence[str], kind: str, *at: Key) -> None:
        """Refuse a value that is not one of the known names."""
        for i, value in enumerate(values):
            if value not in known:
                hint = did_you_mean(value, known)
                self.fail(f"{kind} {value!r} is not known here; {hint}", *at, i)

    def distinct(self, values: tuple[T, ...], *at: Key) -> tuple[T, ...]:
        """Refuse a value that is listed twice: its cells would be asked for twice."""
        for value, count in Counter(values).items():
            if count > 1:
                self.fail(f"{value!r} is listed {count} times; list it once", *at)
        return values

    def chosen(
        self, values: tuple[str, ...] | None, known: list[str], kind: str, *at: Key
    ) -> tuple[str, ...]:
        """Return the named subset of an axis, or all of it."""
        if values is None:
            return tuple(known)
        self.check(values, known, kind, *at)
        return self.distinct(values, *at)


def _mixture(name: str, weights: dict[str, float], names: _Names) -> Mixture:
    at = ("mixtures", name)
    if name in (*_DATA_KINDS, *names.datasets) or name.startswith("all-"):
        names.fail(f"mixture {name!r} has the name of other data; rename it", *at)
    if not weights:
        names.fail(f"mixture {name!r} is empty; give weights by dataset", *at)
    for dataset in weights:
        names.check([dataset], names.datasets, "dataset", *at, dataset)
    total = sum(weights.values())
    shares = tuple((dataset, weight / total) for dataset, weight in weights.items())
    return Mixture(name=name, weights=shares)


def _block(name: str, entry: BlockEntry, names: _Names, mixtures: tuple[Mixture, ...]) -> Block:
    at = ("blocks", name)
    if name == _BASE:
        names.fail("block 'base' has the name that base models stand under; rename it", *at)
    data = _as_tuple(entry.data)
    names.check(data, [*_DATA_KINDS, *names.mixtures], "data", *at, "data")
    block = Block(
        name=name,
        models=names.chosen(entry.models, names.models, "model", *at, "models"),
        datasets=names.chosen(entry.datasets, names.datasets, "dataset", *at, "datasets"),
        data=names.distinct(data, *at, "data"),
        samples=names.distinct(_as_tuple(entry.samples), *at, "samples"),
        methods=names.chosen(entry.methods, names.methods, "method", *at, "methods"),
        schedules=names.distinct(_schedules(entry), *at, "schedule"),
        epochs=names.distinct(_as_tuple(entry.epochs), *at, "epochs"),
        keep=entry.keep if isinstance(entry.keep, str) else tuple(sorted(set(entry.keep))),
        seeds=names.distinct(entry.seeds or names.seeds, *at, "seeds"),
        exclude=tuple(Exclusion(**item.model_dump()) for item in entry.exclude),
    )
    _check_block(block, names, mixtures)
    return block


def _check_block(block: Block, names: _Names, mixtures: tuple[Mixture, ...]) -> None:
    at = ("blocks", block.name)
    if "leave-one-out" in block.data and len(block.datasets) < 2:
        names.fail("leave-one-out needs at least two datasets; add one", *at, "data")
    if isinstance(block.keep, tuple):
        if len(block.epochs) > 1:
            names.fail("a list of kept epochs needs one run length; write epochs: N", *at, "keep")
        if block.keep[-1] > block.epochs[0]:
            names.fail(
                f"epoch {block.keep[-1]} is to be kept of a run of {block.epochs[0]} epochs; "
                f"keep none above {block.epochs[0]}",
                *at,
                "keep",
            )
    axes = {
        "models": block.models,
        "data": [choice.name for choice in data_choices(block, tuple(names.datasets), mixtures)],
        "samples": block.samples,
        "methods": block.methods,
        "schedules": [schedule.kind for schedule in block.schedules],
        "seeds": block.seeds,
    }
    for i, exclusion in enumerate(block.exclude):
        for axis, known in axes.items():
            values = vars(exclusion)[axis] or ()
            texts = [str(value) for value in values]
            names.check(texts, [str(value) for value in known], axis, *at, "exclude", i, axis)


def _check_rows(study: Study, lines: Lines) -> None:
    """Refuse more samples than a card counts rows: that subset does not exist."""
    for block in study.blocks:
        for choice in data_choices(block, tuple(study.dataset_by_name), study.mixtures):
            for samples in block.samples:
                axes = {"data": choice.name, "samples": samples}
                if any(is_excluded(exclusion, **axes) for exclusion in block.exclude):
                    continue
                sizes = zip(choice.datasets, choice.part_sizes(samples), strict=True)
                for dataset, size in sizes:
                    _check_size_of(
                        dataset, size, study, lines.where("blocks", block.name, "samples")
                    )


def _check_size_of(dataset: str, size: int, study: Study, where: str) -> None:
    card = study.dataset_by_name[dataset].card
    if size == 0:
        raise StudyError(
            f"{where}: the mixture leaves no sample for {dataset}; use more samples, or drop it."
        )
    if card is not None and 0 < card.rows < size and "rows" not in card.inferred:
        raise StudyError(
            f"{where}: {size} samples of {dataset} are wanted, which has {card.rows} rows; "
            f"exclude it here, or use fewer samples."
        )


def _unique(names: list[str], lines: Lines, section: str) -> list[str]:
    for i, name in enumerate(names):
        if name in names[:i]:
            where = lines.where(section, i)
            raise StudyError(f"{where}: {name!r} is listed twice in {section}; keep or rename one.")
    return names


def _refuse_equal(benchmarks: Sequence[StudyBenchmark], lines: Lines) -> None:
    """Refuse two entries that ask the same questions: their results would be one."""
    first: dict[str, str] = {}
    for i, benchmark in enumerate(benchmarks):
        if benchmark.spec is None:
            continue
        other = first.setdefault(benchmark.spec.unlimited_fingerprint, benchmark.name)
        if other != benchmark.name:
            raise StudyError(
                f"{lines.where('benchmarks', i)}: {benchmark.name} asks what {other} "
                f"asks; expected another file, number of shots or order_seed. Keep one of them."
            )


def _schedules(entry: BlockEntry) -> tuple[ScheduleSpec, ...]:
    items = entry.schedule if isinstance(entry.schedule, tuple) else (entry.schedule,)
    return tuple(schedule_from_entry(item) for item in items)


def _as_tuple(value: T | tuple[T, ...]) -> tuple[T, ...]:
    return value if isinstance(value, tuple) else (value,)
