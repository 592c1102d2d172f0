"""A study file means exactly what it says, or is refused with the line that is wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from sft_atlas.errors import StudyError
from sft_atlas.study.grid import iter_cells
from sft_atlas.study.loader import load_study
from sft_atlas.study.spec import BenchmarkDefinition, LoraSpec, ScheduleSpec

from .conftest import Load

BLOCK = "  b: {data: each, samples: 5, epochs: 2}"


def refusal(load: Load, blocks: str, *changes: tuple[str, str], more: str = "") -> str:
    with pytest.raises(StudyError) as caught:
        load(blocks, *changes, more=more)
    message = str(caught.value)
    return message.rsplit("/", 1)[-1] if "\n" not in message else message


def test_defaults_are_filled_in(load: Load) -> None:
    study = load(BLOCK)
    assert (study.name, study.template, study.max_tokens) == ("tiny", "question-answer", 2048)
    assert (study.precision, study.subset_seed, study.keep_checkpoints) == ("bfloat16", 0, False)
    (block,) = study.blocks
    assert (block.models, block.datasets) == (("m1", "m2"), ("d1", "d2", "d3"))
    assert (block.methods, block.seeds, block.keep) == (("full", "lora"), (0,), "last")
    assert block.schedules == (ScheduleSpec(kind="cosine"),)


def test_a_rank_makes_a_method_lora(load: Load) -> None:
    full, lora = load(BLOCK).methods
    assert full.lora is None
    assert lora.lora == LoraSpec(rank=2, alpha=4.0)
    assert (full.learning_rate, full.clip_norm, full.beta2) == (1e-5, 1.0, 0.999)


def test_every_form_of_lora_is_a_wish_of_its_own(load: Load) -> None:
    forms = ("rslora: true", "dora: true", "bias: lora_only", "train_embeddings: true")
    (_, plain), *others = (
        load(BLOCK, ("alpha: 4", f"alpha: 4{more}")).methods
        for more in ("", *(f", {form}" for form in forms), ", layers: [2, 0, 2]")
    )
    assert plain.lora is not None and plain.lora.is_plain and plain.lora.scale == 2.0
    rslora, dora, bias, embeddings, layers = (lora.lora for _, lora in others)
    assert rslora == replace(plain.lora, rslora=True) and rslora.scale == 4 / 2**0.5
    assert dora == replace(plain.lora, dora=True)
    assert bias == replace(plain.lora, bias="lora_only")
    assert embeddings == replace(plain.lora, train_embeddings=True)
    assert layers == replace(plain.lora, layers=(0, 2))
    assert [lora.is_plain for lora in (rslora, dora, bias, embeddings, layers)] == [
        *(True, False, False, False, True)
    ]


def test_the_type_of_masters_reaches_every_trajectory(load: Load) -> None:
    change = ("study: tiny", "study: tiny\nmaster_precision: bfloat16")
    kept, pure = load(BLOCK), load(BLOCK, change)
    assert {c.cell.trajectory.master_precision for c in iter_cells(kept) if c.cell.trajectory} == {
        "float32"
    }
    assert {c.cell.trajectory.master_precision for c in iter_cells(pure) if c.cell.trajectory} == {
        "bfloat16"
    }


def test_paths_are_relative_to_the_file_and_digested(load: Load, folder: Path) -> None:
    study = load(BLOCK)
    source = study.dataset_by_name["d1"].spec.source
    assert source.path == folder / "d1.jsonl"
    assert source.sha256 is not None
    assert source.hub is None


def test_hub_ids_carry_their_revision(load: Load) -> None:
    source = load(BLOCK).model_by_name["m1"].spec.source
    assert (source.hub, source.revision, source.path) == ("org/one", "abc", None)


def test_a_cards_facts_can_be_overruled(load: Load) -> None:
    card = (
        "  - {name: d3, hub: org/three}",
        "  - {name: alpaca, on_bad_rows: quarantine, group: g}",
    )
    dataset = load(BLOCK, card).dataset_by_name["alpaca"]
    assert dataset.spec.source.hub == "yahma/alpaca-cleaned"
    assert (dataset.spec.shape, dataset.spec.group) == ("instruction", "g")
    assert dataset.spec.on_bad_rows == "quarantine"
    assert dataset.card is not None
    assert dataset.card.tokens_per_sample == 160


def test_a_cards_filters_become_part_of_the_wish(load: Load) -> None:
    card = ("  - {name: d3, hub: org/three}", "  - flan-knowledge")
    spec = load(BLOCK, card).dataset_by_name["flan-knowledge"].spec
    assert spec.fields == (("answer", "targets"), ("prompt", "inputs"))
    assert spec.where[0][0] == "_task_name"
    assert spec.drop_answers == ("none",)
    assert spec.source.file == "flan2021_zsnoopt_submix_data.json"


def test_malformed_rows_enter_the_identity_once_they_are_counted(folder: Path, load: Load) -> None:
    bad = ("path: d1.jsonl,", "path: d1.jsonl, on_bad_rows: quarantine,")
    path = load(BLOCK, bad).path
    counted = load_study(path, count_quarantined=lambda d: 3 if d.name == "d1" else 99)
    by_name = counted.dataset_by_name
    assert (by_name["d1"].spec.num_quarantined, by_name["d2"].spec.num_quarantined) == (3, None)


def test_shots_are_part_of_a_benchmarks_name(load: Load) -> None:
    both = ("  - {file: bench.yaml}", "  - {file: bench.yaml}\n  - {file: bench.yaml, shots: 2}")
    study = load(BLOCK, both)
    assert [b.name for b in study.benchmarks] == ["quiz", "quiz-2shot"]
    first, second = study.benchmark_specs
    assert (first.few_shot, second.shots) == (None, 2)
    assert first.fingerprint != second.fingerprint


def test_benchmarks_are_scored_in_the_studys_precision(load: Load) -> None:
    specs = [
        load(BLOCK, more=f"precision: {precision}").benchmarks[0].spec
        for precision in ("bfloat16", "float32")
    ]
    assert [spec and spec.precision for spec in specs] == ["bfloat16", "float32"]


def test_a_benchmark_that_cannot_be_scored_is_planned_with_its_reason(load: Load) -> None:
    study = load(BLOCK, ("  - {file: bench.yaml}", "  - mt-bench\n  - {file: bench.yaml}"))
    assert [b.name for b in study.benchmarks] == ["mt-bench", "quiz"]
    assert study.benchmarks[0].spec is None
    assert "judge" in study.benchmarks[0].reason
    assert [spec.name for spec in study.benchmark_specs] == ["quiz"]


MESSAGES = [
    (
        "  b: {data: each, samples: 5, epochs: 2, modles: [m1]}",
        "study.yaml:15: blocks.b.modles is not a field; did you mean models? Fields: models, ",
    ),
    (
        "  b: {data: each, samples: 5, epochs: 2, models: [m3]}",
        "study.yaml:15: model 'm3' is not known here; Names: m1, m2.",
    ),
    (
        "  b: {data: eech, samples: 5, epochs: 2}",
        "study.yaml:15: data 'eech' is not known here; did you mean each? "
        "Names: each, all, leave-one-out.",
    ),
    (
        "  b: {data: each, samples: '5', epochs: 2}",
        "study.yaml:15: blocks.b.samples: input should be a valid integer, got '5'; expected "
        "samples per dataset, of a mixture in total; one number or a list.",
    ),
    (
        "  b: {data: each, samples: 5}",
        "study.yaml:15: blocks.b.epochs is missing; expected passes over the data; a list asks for "
        "runs of each length.",
    ),
    (
        "  b: {data: each, samples: 0, epochs: 2}",
        "study.yaml:15: blocks.b.samples: input should be greater than or equal to 1, got 0; "
        "expected samples per dataset, of a mixture in total; one number or a list.",
    ),
    (
        "  b: {data: each, samples: [5, 5], epochs: 2}",
        "study.yaml:15: 5 is listed 2 times; list it once.",
    ),
    (
        "  b: {data: each, samples: 5, epochs: 2, keep: [3]}",
        "study.yaml:15: epoch 3 is to be kept of a run of 2 epochs; keep none above 2.",
    ),
    (
        "  b: {data: each, samples: 5, epochs: [2, 3], keep: [1]}",
        "study.yaml:15: a list of kept epochs needs one run length; write epochs: N.",
    ),
    (
        "  b: {data: leave-one-out, datasets: [d1], samples: 5, epochs: 2}",
        "study.yaml:15: leave-one-out needs at least two datasets; add one.",
    ),
    (
        "  b:\n    data: each\n    samples: 5\n    epochs: 2\n    exclude:\n    - {data: [d9]}",
        "study.yaml:20: data 'd9' is not known here; Names: d1, d2, d3.",
    ),
    (
        "  b: {data: each, samples: 5, epochs: 2, exclude: [{}]}",
        "study.yaml:15: blocks.b.exclude[0]: an empty exclusion would leave out every cell; "
        "give an axis.",
    ),
    (
        "  b: {data: each, samples: 5, epochs: 2, schedule: {kind: cosine, cooldown_steps: 3}}",
        "study.yaml:15: blocks.b.schedule: a cosine ends at 0 by itself; remove cooldown_steps.",
    ),
    (
        "  b: {data: each, samples: 5, epochs: 2, schedule: linear}",
        "study.yaml:15: blocks.b.schedule: input should be 'constant' or 'cosine', got 'linear'; "
        "expected `constant`, `cosine`, a mapping with warm-up and cooldown, or a list of these.",
    ),
    ("  b: {data: each, samples: 5, samples: 6, epochs: 2}", "study.yaml:15: key 'samples' is "),
    (
        "  b: {data: each, samples: 5, epochs: 2}\n  base: {data: all, samples: 5, epochs: 2}",
        "study.yaml:16: block 'base' has the name that base models stand under; rename it.",
    ),
]


@pytest.mark.parametrize(("blocks", "message"), MESSAGES)
def test_a_wrong_block_is_refused_with_its_line(load: Load, blocks: str, message: str) -> None:
    assert refusal(load, blocks).startswith(message)


CHANGES = [
    (
        ("  - {name: m2, hub: org/two}", "  - m2"),
        "study.yaml:4: model 'm2' has no card; ",
    ),
    (
        ("  - {name: m2, hub: org/two}", "  - olmo-7B"),
        "study.yaml:4: model 'olmo-7B' has no card; did you mean olmo-7b? Names: olmo-7b, ",
    ),
    (
        ("  - {name: m2, hub: org/two}", "  - {name: m1, hub: org/two}"),
        "study.yaml:4: 'm1' is listed twice in models; keep or rename one.",
    ),
    (
        ("hub: org/two", "hub: org/two, path: x"),
        "study.yaml:4: models[1]: path and hub are both given; keep one of them.",
    ),
    (
        ("hub: org/one, revision: abc", "revision: abc"),
        "study.yaml:3: models[0]: revision belongs to a hub repository; add hub, or remove "
        "revision.",
    ),
    (
        ("path: d1.jsonl", "path: d1.jsonl, fields: {prompt: q}"),
        "study.yaml:6: datasets[0]: fields maps only one role; give a column for prompt and for "
        "answer.",
    ),
    (
        ("path: d1.jsonl", "path: none.jsonl"),
        "none.jsonl does not exist; expected a file or folder. Correct the path.",
    ),
    (
        ("rank: 2, alpha: 4", "rank: 2"),
        "study.yaml:13: methods.lora: rank is given without alpha; add alpha (often twice the "
        "rank).",
    ),
    (
        ("batch_samples: 4}\n  lora", "batch_samples: 4, alpha: 3}\n  lora"),
        "study.yaml:12: methods.full: alpha belongs to LoRA; add rank, or remove it.",
    ),
    (
        ("batch_samples: 4}\n  lora", "batch_samples: 4, dropout: 0.1, dora: true}\n  lora"),
        "study.yaml:12: methods.full: dropout and dora belong to LoRA; add rank, or remove them.",
    ),
    (
        ("batch_samples: 4}\n  lora", "batch_samples: 4, bias: all}\n  lora"),
        "study.yaml:12: methods.full: bias belongs to LoRA; add rank, or remove it.",
    ),
    (
        ("alpha: 4", "alpha: 4, bias: some"),
        "methods.lora.bias: input should be 'none', 'lora_only' or 'all', got 'some'; ",
    ),
    (
        ("study: tiny", "study: tiny\nprecision: float32\nmaster_precision: bfloat16"),
        "master_precision is bfloat16, but precision is float32: what is computed in float32 would "
        "be rounded at every step; use precision: bfloat16, or remove master_precision.",
    ),
    (
        ("  full:", "  base:"),
        "study.yaml:12: method 'base' has the name that base models stand under; rename it.",
    ),
    (
        ("learning_rate: 1e-5", "learning_rate: fast"),
        "study.yaml:12: methods.full.learning_rate: input should be a valid number, got 'fast'; "
        "expected peak learning rate.",
    ),
    (
        ("study: tiny", "study: tiny\ntemplate: alpaca"),
        "study.yaml:2: template: input should be 'question-answer' or 'chat', got 'alpaca'; ",
    ),
    (
        ("  - {file: bench.yaml}", "  - {shots: 3}"),
        "study.yaml:10: benchmarks[0]: neither name nor file is given; ",
    ),
    (
        ("  - {file: bench.yaml}", "  - {file: bench.yaml}\n  - {file: bench.yaml, limit: 2}"),
        "study.yaml:11: 'quiz' is listed twice in benchmarks; keep or rename one.",
    ),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_wrong_entry_is_refused_with_its_line(
    load: Load, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(StudyError) as caught:
        load(BLOCK, change)
    assert message in str(caught.value)


def test_a_mixture_must_be_of_datasets_of_the_study(load: Load) -> None:
    block = "  b: {data: mix, samples: 5, epochs: 1}"
    assert refusal(load, block, more="mixtures: {mix: {d1: 1, d9: 1}}") == (
        "study.yaml:16: dataset 'd9' is not known here; Names: d1, d2, d3."
    )
    assert "input should be greater than 0" in refusal(load, block, more="mixtures: {mix: {d1: 0}}")
    assert refusal(load, block, more="mixtures: {d1: {d1: 1}, mix: {d1: 1}}").endswith(
        "mixture 'd1' has the name of other data; rename it."
    )


def test_a_mixture_that_leaves_a_dataset_without_a_sample_is_refused(load: Load) -> None:
    block = "  b: {data: mix, samples: 5, epochs: 1}"
    assert refusal(load, block, more="mixtures: {mix: {d1: 1, d2: 1000}}") == (
        "study.yaml:15: the mixture leaves no sample for d1; use more samples, or drop it."
    )


def test_more_samples_than_a_card_has_rows_are_refused(load: Load) -> None:
    lima = ("  - {name: d3, hub: org/three}", "  - lima")
    block = "  b: {data: each, samples: 20000, epochs: 1%s}"
    assert refusal(load, block % "", lima) == (
        "study.yaml:15: 20000 samples of lima are wanted, which has 1000 rows; exclude it here, or "
        "use fewer samples."
    )
    assert load(block % ", exclude: [{data: [lima]}]", lima)
    assert load(block % ", datasets: [d1, d2]", lima)


def test_an_empty_study_names_everything_that_is_missing(folder: Path) -> None:
    path = folder / "empty.yaml"
    path.write_text("study: x\n")
    with pytest.raises(StudyError) as caught:
        load_study(path)
    missing = [line.split(": ")[1].split(" ")[0] for line in str(caught.value).split("\n")]
    assert sorted(missing) == ["blocks", "datasets", "methods", "models"]


def test_two_entries_that_ask_the_same_are_refused(load: Load) -> None:
    quiz = "  - {file: bench.yaml}"
    with pytest.raises(StudyError) as caught:
        load(BLOCK, (quiz, f"{quiz}\n  - {{file: bench.yaml, name: second, limit: 2}}"))
    assert str(caught.value).endswith(
        ": second asks what quiz asks; expected another file, number of shots or order_seed. "
        "Keep one of them."
    )
    again = f"{quiz}\n  - {{file: bench.yaml, name: second, order_seed: 1, limit: 2}}"
    assert len(load(BLOCK, (quiz, again)).benchmarks) == 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{file: bench.yaml, few_shot: quiz.jsonl}", "few_shot is given and no example is shown"),
        ("{file: bench.yaml, references: quiz.jsonl}", "references belongs to a judged benchmark"),
        ("{file: bench.yaml, max_new_tokens: 64}", "decodes up to 64 tokens, which leaves no room"),
        ("{name: mmlu, max_new_tokens: 8}", "max_new_tokens belongs to a benchmark that decodes"),
    ],
)
def test_a_key_without_effect_or_room_is_refused(load: Load, entry: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load(
            BLOCK,
            ("  - {file: bench.yaml}", f"  - {entry}"),
            ("study: tiny", "study: tiny\nmax_tokens: 64"),
        )


def test_a_study_sets_how_much_a_benchmark_may_decode(load: Load) -> None:
    changed = ("  - {file: bench.yaml}", "  - {file: bench.yaml, max_new_tokens: 5}")
    (benchmark,) = load(BLOCK, changed).benchmark_specs
    assert isinstance(benchmark.definition, BenchmarkDefinition)
    assert benchmark.definition.max_new_tokens == 5
