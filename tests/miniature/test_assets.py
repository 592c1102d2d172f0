"""The shipped files are what the recipes make, and keep the promises of their cards."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from sft_atlas.miniature import build, cards, instruct, recipe, texts, world

MAX_MODEL_BYTES = 2**20
CARDS = Path(cards.__file__).parents[1] / "catalog" / "miniature.yaml"


def read_lines(path: Path) -> list[dict[str, object]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("miniature")
    data = [spec.name for spec in (*instruct.INSTRUCTION_SETS, *instruct.BENCHMARKS)]
    build.build(out, only=[*data, texts.NAME])
    return out


def test_data_is_generated_again_to_the_byte(rebuilt: Path) -> None:
    # Compared unpacked: another zlib may pack the same bytes differently.
    made = sorted(path.relative_to(rebuilt) for path in rebuilt.rglob("*") if path.is_file())
    shipped = [
        path.relative_to(build.ASSETS)
        for folder in ("benchmarks", "datasets", "texts")
        for path in (build.ASSETS / folder).iterdir()
    ]
    assert made == sorted(shipped)
    for name in made:
        ours, theirs = (rebuilt / name).read_bytes(), (build.ASSETS / name).read_bytes()
        if name.suffix == ".gz":
            ours, theirs = gzip.decompress(ours), gzip.decompress(theirs)
        assert ours == theirs, name


def test_packed_files_hold_neither_time_nor_name(tmp_path: Path) -> None:
    first = build.write_lines([{"a": 1}], tmp_path / "first.jsonl.gz").read_bytes()
    second = build.write_lines([{"a": 1}], tmp_path / "second.jsonl.gz").read_bytes()
    assert first == second
    assert first[3] == 0
    assert first[4:8] == bytes(4)


def test_cards_are_current_and_their_sources_exist() -> None:
    assert CARDS.read_text(encoding="ascii") == cards.render_cards()
    package = CARDS.parents[1]
    sections = yaml.safe_load(CARDS.read_text(encoding="ascii"))
    for section in ("models", "datasets", "benchmarks", "texts"):
        for card in sections[section].values():
            assert (package / card["source"]["asset"]).exists()


@pytest.mark.parametrize("spec", instruct.BENCHMARKS, ids=lambda spec: spec.name)
def test_benchmarks_have_at_least_200_distinct_held_out_items(spec: instruct.Benchmark) -> None:
    items = read_lines(build.ASSETS / "benchmarks" / f"{spec.name}.jsonl.gz")
    latents = {str(item["latent"]) for item in items}
    assert len(latents) == len({item["id"] for item in items}) == len(items) >= 200
    if spec.skill == "knowledge":
        assert {latent.split(" ")[1] for latent in latents} <= world.held_out_entities()
    else:
        assert all(world.is_held_out(latent) for latent in latents)
    for item in items:
        if spec.kind == "choice":
            choices = item["choices"]
            assert isinstance(choices, list)
            assert len(set(choices)) == len(choices)
            assert isinstance(item["label"], int)
            assert 0 <= item["label"] < len(choices)


def test_no_prompt_of_a_training_set_is_asked_by_a_benchmark() -> None:
    asked = {
        item["question"]
        for spec in instruct.BENCHMARKS
        for item in read_lines(build.ASSETS / "benchmarks" / f"{spec.name}.jsonl.gz")
    }
    for spec in instruct.INSTRUCTION_SETS:
        rows = read_lines(build.ASSETS / "datasets" / f"{spec.name}.jsonl.gz")
        prompts = {row["prompt"] for row in rows}
        assert len(prompts) == len(rows)
        assert not prompts & asked


def test_texts_are_different_documents_in_the_vocabulary_and_in_no_template() -> None:
    found = [str(row["text"]) for row in read_lines(build.ASSETS / "texts" / "mini-texts.jsonl.gz")]
    assert len(set(found)) == len(found) == texts.NUM_TEXTS
    words = {word for text in found for word in text.split(" ")}
    assert words <= set(world.vocabulary()) - {world.EOS, world.QUESTION, world.ANSWER}
    of_b = set(world.renaming().values())
    num_in_b = sum(not of_b.isdisjoint(text.split(" ")) for text in found)
    assert 0.3 < num_in_b / len(found) < 0.7


def test_false_facts_are_false() -> None:
    rows = read_lines(build.ASSETS / "datasets" / "mini-false-facts.jsonl.gz")
    for row in rows:
        words = set(str(row["prompt"]).split(" "))
        (entity,) = words & set(world.entities())
        (relation,) = words & set(world.RELATIONS)
        assert world.facts()[entity, relation] != row["completion"]


@pytest.mark.parametrize("spec", recipe.RECIPES, ids=lambda spec: spec.name)
def test_models_are_small_and_deep_enough(spec: recipe.BaseRecipe) -> None:
    folder = build.ASSETS / "models" / spec.name
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] >= 6
    assert config["model_type"] == spec.architecture
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_MODEL_BYTES
    assert min(spec.weights.values()) >= 0.6
    assert not list(folder.glob("*.py"))
