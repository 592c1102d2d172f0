"""Turn one entry of a study file, a card's name or a mapping, into exactly what it means."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sft_atlas.catalog.cards import (
    FOLDER,
    BenchmarkCard,
    DatasetCard,
    find_benchmark,
    find_dataset,
    find_hub_model,
    find_model,
)
from sft_atlas.errors import CatalogError, StudyError
from sft_atlas.study.benchmark import Benchmark, build_benchmark_spec, load_benchmark
from sft_atlas.study.benchmark_entry import BenchmarkEntry, JudgeEntry
from sft_atlas.study.lm_eval import PLAIN, LmEvalEntry, resolve_lm_eval, resolve_shots
from sft_atlas.study.model_folder import card_from_folder, sized_card
from sft_atlas.study.schema import (
    DatasetEntry,
    MethodEntry,
    ModelEntry,
    ScheduleEntry,
    SourceEntry,
    StudyFile,
)
from sft_atlas.study.source import local_source, source_from_card
from sft_atlas.study.spec import (
    BenchmarkSpec,
    DatasetSpec,
    JudgeSpec,
    LoraSpec,
    MethodSpec,
    ModelSpec,
    ScheduleSpec,
    Source,
)
from sft_atlas.study.study import StudyBenchmark, StudyDataset, StudyModel

JUDGE_PROMPTS: Final = FOLDER / "judges"
"""Where the prompts are that judges are asked by where a study names none."""


def resolve_model(entry: ModelEntry, folder: Path, where: str) -> StudyModel:
    """Return a base model; raises StudyError where `where` says, for a name without a card."""
    card = None
    if entry.path is None and entry.hub is None:
        card = _card(find_model, entry.name, where)
        source = source_from_card(card.source)
    else:
        source = entry_source(entry, folder, where)
        if source.path is not None:
            card = card_from_folder(source.path, entry.name)
        elif source.hub is not None:
            card = find_hub_model(source.hub)
        if entry.parameters is not None:
            card = sized_card(entry.name, entry.parameters)
    family = entry.family if entry.family is not None else (card.family if card else "")
    languages = entry.languages
    if languages is None:
        languages = card.languages if card else ()
    spec = ModelSpec(source=source, name=entry.name, family=family, languages=languages)
    return StudyModel(spec=spec, card=card)


def resolve_dataset(entry: DatasetEntry, folder: Path, where: str) -> StudyDataset:
    """Return a dataset; keys of the entry go before those of the card."""
    card = None
    if entry.path is None and entry.hub is None:
        card = _card(find_dataset, entry.name, where)
        source = source_from_card(card.source)
        given = entry.model_fields_set & {"config", "split", "file"}
        if given:
            key = sorted(given)[0]
            raise StudyError(f"{where}: {key} belongs to a hub dataset; add hub, or remove {key}.")
    else:
        source = entry_source(entry, folder, where)
    base = card or _card_from_entry(entry)
    facts = {key: value for key, value in entry.model_dump().items() if value is not None}
    merged = base.model_copy(update={k: v for k, v in facts.items() if k in _DATASET_FACTS})
    spec = DatasetSpec(
        source=source,
        shape=merged.shape,
        fields=tuple(sorted(merged.fields.items())),
        first_turn_only=merged.first_turn_only,
        where=tuple(sorted((key, tuple(values)) for key, values in merged.where.items())),
        drop_answers=tuple(sorted(merged.drop_answers)),
        on_bad_rows=entry.on_bad_rows,
        name=entry.name,
        group=merged.group,
    )
    has_facts = card is not None or entry.rows is not None or entry.tokens_per_sample is not None
    return StudyDataset(spec=spec, card=merged if has_facts else None)


def resolve_benchmark(
    entry: BenchmarkEntry, file: StudyFile, folder: Path, where: str
) -> StudyBenchmark:
    """Return a benchmark with its shots; one that lacks a judge is planned but not scored."""
    if entry.lm_eval is not None:
        return _lm_eval_benchmark(entry, entry.lm_eval, file, folder, where)
    card: BenchmarkCard | None = None
    path = None if entry.file is None else folder / entry.file
    if path is None:
        card = _card(find_benchmark, str(entry.name), where)
        assert card.source is not None
        path = card.source.path
    assert path is not None, "every card of a benchmark names its definition"
    shots = entry.shots if entry.shots is not None else (0 if card is None else card.shots)
    benchmark = load_benchmark(
        path,
        items=_local(entry.items, folder, where),
        few_shot=_local(entry.few_shot, folder, where),
    )
    benchmark = _checked(benchmark, entry, file, shots, where)
    name = _with_shots(entry.name or benchmark.name, shots)
    asked = StudyBenchmark(name=name, spec=None, card=card, shots=shots, limit=entry.limit)
    is_judged = benchmark.definition.kind == "judge"
    if is_judged and file.judge is None:
        reason = "asks a judge; add `judge: {model: ..., url: ...}` to the study"
        return replace(asked, reason=reason)
    judge = _judge(benchmark, entry, file.judge, folder, where) if is_judged else None
    spec = build_benchmark_spec(
        benchmark,
        template=file.template,
        max_tokens=file.max_tokens,
        shots=shots,
        limit=entry.limit,
        name=name,
        precision=file.precision,
    )
    spec = replace(spec, judge=judge, order_seed=entry.order_seed)
    return replace(asked, spec=spec)


def _checked(
    benchmark: Benchmark, entry: BenchmarkEntry, file: StudyFile, shots: int, where: str
) -> Benchmark:
    """Return the benchmark with the entry's limit of decoding; refuse what can have no effect."""
    definition = benchmark.definition
    decodes = definition.kind != "choice" and definition.metric != "greedy_match"
    if entry.few_shot is not None and not shots:
        raise StudyError(f"{where}: few_shot is given and no example is shown; add shots.")
    for key in ("judge_prompts", "references", "difficulty"):
        if getattr(entry, key) is not None and definition.kind != "judge":
            raise StudyError(f"{where}: {key} belongs to a judged benchmark; remove it.")
    if entry.max_new_tokens is not None:
        if not decodes:
            raise StudyError(
                f"{where}: max_new_tokens belongs to a benchmark that decodes; remove it."
            )
        definition = replace(definition, max_new_tokens=entry.max_new_tokens)
    if decodes and definition.max_new_tokens >= file.max_tokens:
        raise StudyError(
            f"{where}: {entry.name or benchmark.name} decodes up to {definition.max_new_tokens} "
            f"tokens, which leaves no room for a prompt in max_tokens {file.max_tokens}. Raise "
            f"max_tokens, or give the benchmark a lower max_new_tokens."
        )
    return replace(benchmark, definition=definition)


def _lm_eval_benchmark(
    entry: BenchmarkEntry, task: LmEvalEntry, file: StudyFile, folder: Path, where: str
) -> StudyBenchmark:
    definition = resolve_lm_eval(task, folder, where)
    shots = resolve_shots(definition, entry.shots, where)
    name = _with_shots(entry.name or definition.task, shots)
    spec = BenchmarkSpec(
        definition=definition,
        shots=shots,
        limit=entry.limit,
        order_seed=entry.order_seed,
        template=file.template if task.template == "study" else PLAIN,
        max_tokens=file.max_tokens,
        precision=file.precision,
        name=name,
    )
    return StudyBenchmark(name=name, spec=spec, card=None, shots=shots, limit=entry.limit)


def _judge(
    benchmark: Benchmark,
    entry: BenchmarkEntry,
    judge: JudgeEntry | None,
    folder: Path,
    where: str,
) -> JudgeSpec:
    """Return who judges, by which prompts and beside which references."""
    assert judge is not None
    is_rating = benchmark.definition.metric == "rating"
    prompts = _local(entry.judge_prompts, folder, where)
    references = _local(entry.references, folder, where)
    difficulty = _local(entry.difficulty, folder, where)
    if references is None and not is_rating:
        # AlpacaEval's items hold the baseline's answers.
        reference_source: Source | None = benchmark.items
    else:
        reference_source = None if references is None else local_source(references)
    shipped = JUDGE_PROMPTS / ("rating.jsonl" if is_rating else "pairwise.jsonl")
    return JudgeSpec(
        model=judge.model,
        prompts=local_source(shipped if prompts is None else prompts),
        references=reference_source,
        difficulty=None if difficulty is None else local_source(difficulty),
        style="rating" if is_rating else "pairwise",
        temperature=float(judge.temperature),
        max_new_tokens=judge.max_new_tokens,
    )


def _local(name: str | None, folder: Path, where: str) -> Path | None:
    if name is None:
        return None
    path = (folder / Path(name).expanduser()).resolve()
    if not path.exists():
        raise StudyError(
            f"{where}: {path} does not exist; expected a file or folder. Correct the path."
        )
    return path


def method_from_entry(name: str, entry: MethodEntry) -> MethodSpec:
    """Return a method; `rank` makes it LoRA."""
    lora = None
    if entry.rank is not None and entry.alpha is not None:
        targets = entry.targets or "all-linear"
        lora = LoraSpec(
            rank=entry.rank,
            alpha=float(entry.alpha),
            dropout=float(entry.dropout),
            targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
            layers=tuple(sorted(set(entry.layers or ()))),
            rslora=entry.rslora,
            dora=entry.dora,
            bias=entry.bias,
            train_embeddings=entry.train_embeddings,
        )
    return MethodSpec(
        learning_rate=float(entry.learning_rate),
        batch_samples=entry.batch_samples,
        weight_decay=float(entry.weight_decay),
        beta1=float(entry.beta1),
        beta2=float(entry.beta2),
        epsilon=float(entry.epsilon),
        clip_norm=None if entry.clip_norm is None else float(entry.clip_norm),
        lora=lora,
        name=name,
    )


def schedule_from_entry(entry: str | ScheduleEntry) -> ScheduleSpec:
    """Return a schedule from its name alone, or with warm-up and cooldown."""
    if isinstance(entry, str):
        return ScheduleSpec(kind="cosine" if entry == "cosine" else "constant")
    return ScheduleSpec(**entry.model_dump())


_DATASET_FACTS = frozenset(
    {
        "shape",
        "fields",
        "first_turn_only",
        "where",
        "drop_answers",
        "group",
        "rows",
        "tokens_per_sample",
    }
)


def _card(find: Any, name: str, where: str) -> Any:
    try:
        return find(name)
    except CatalogError as error:
        raise StudyError(f"{where}: {error}") from error


def entry_source(entry: SourceEntry, folder: Path, where: str) -> Source:
    """Return where an entry's files are; raises StudyError for a path that does not exist."""
    if entry.path is not None:
        path = (folder / Path(entry.path).expanduser()).resolve()
        if not path.exists():
            raise StudyError(
                f"{where}: {path} does not exist; expected a file or folder. Correct the path."
            )
        return local_source(path)
    facts = entry.model_dump(include={"hub", "revision", "config", "split", "file"})
    return Source(**facts)


def _with_shots(name: str, shots: int) -> str:
    return f"{name}-{shots}shot" if shots else name


def _card_from_entry(entry: DatasetEntry) -> DatasetCard:
    return DatasetCard.model_construct(
        name=entry.name, group="", language="", rows=0, tokens_per_sample=0.0
    )
