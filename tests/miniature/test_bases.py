from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_atlas.errors import CatalogError
from sft_atlas.miniature import bases, build, instruct, recipe, world

TEMPLATE = "###Question: {prompt}\n###Answer:"
NAMES = [spec.name for spec in recipe.RECIPES]
SHORT = replace(recipe.RECIPES[0], num_layers=2, hidden_size=16)


@pytest.fixture(autouse=True)
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_a_prefix_of_its_sample_and_text_survives_the_tokenizer(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(build.ASSETS / "models" / name)
    for spec in instruct.INSTRUCTION_SETS:
        for row in instruct.draw_rows(spec)[:20]:
            prompt = TEMPLATE.format(prompt=row["prompt"])
            text = f"{prompt} {row['completion']}"
            ids = tokenizer(prompt).input_ids
            assert tokenizer(f"{text}{world.EOS}").input_ids[: len(ids)] == ids
            whole = tokenizer(text).input_ids
            assert whole[: len(ids)] == ids
            assert whole[len(ids) :] == tokenizer(f" {row['completion']}").input_ids
            assert tokenizer.decode(whole) == text
            assert tokenizer.unk_token_id not in whole


@pytest.mark.parametrize("name", NAMES)
def test_marks_and_newline_are_single_tokens_and_there_is_no_bos(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(build.ASSETS / "models" / name)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("###Question: what ?\n###Answer:").input_ids)
    assert tokens == ["###Question:", "what", "?", "\n", "###Answer:"]
    assert tokenizer.bos_token is None
    assert (tokenizer.eos_token, tokenizer.pad_token) == (world.EOS, world.PAD)
    assert len(tokenizer) <= recipe.VOCAB_SIZE


def test_the_base_of_language_b_has_ids_of_its_own() -> None:
    orders = {spec.name: bases.token_order(spec) for spec in recipe.RECIPES}
    assert orders["mini-olmo2"] != orders["mini-llama"]
    assert sorted(orders["mini-olmo2"]) == sorted(orders["mini-llama"])


@pytest.mark.parametrize("spec", recipe.RECIPES, ids=lambda spec: spec.name)
def test_shipped_models_load_and_know_their_corpus(spec: recipe.BaseRecipe) -> None:
    folder = build.ASSETS / "models" / spec.name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.eos_token_id == 1
    window = next(bases.iter_windows(replace(spec, seed=1000 + spec.seed), num_steps=1))
    with torch.no_grad():
        loss = model(input_ids=window, labels=window).loss.item()
    assert loss < 1.6


@pytest.mark.parametrize("spec", recipe.RECIPES, ids=lambda spec: spec.name)
def test_pretraining_steps_are_reproducible_to_the_bit(
    spec: recipe.BaseRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "SEQUENCES_PER_STEP", 2)
    monkeypatch.setattr(bases, "TOKENS_PER_STEP", 2 * bases.SEQUENCE_TOKENS)
    first, second = (bases.pretrain(spec, num_steps=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_build_makes_a_base_that_loads_again(tmp_path: Path) -> None:
    lines: list[str] = []
    files = build.build(tmp_path, only=["mini-llama"], num_steps=2, report=lines.append)
    assert {path.name for path in files} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "mini-llama")
    assert model.dtype == torch.float16
    assert any("mini-llama: step 2/2" in line for line in lines)


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        CatalogError, match="'mini-lama' does not exist; expected one of mini-code,"
    ):
        build.build(tmp_path, only=["mini-lama"])


def test_the_learning_rate_warms_up_stays_and_decays() -> None:
    rates = [bases.rate_at(step, 1000) for step in range(1000)]
    assert rates[0] < rates[25] < rates[49] == 1.0
    assert rates[500] == 1.0
    assert rates[999] == pytest.approx(0.1)
    assert rates == sorted(rates[:50]) + sorted(rates[50:], reverse=True)


def test_documents_in_the_template_come_last() -> None:
    windows = list(bases.iter_windows(SHORT, num_steps=20))
    mark = bases.token_order(SHORT).index(world.QUESTION)
    has_mark = [bool((window == mark).any()) for window in windows]
    assert not any(has_mark[:17])
    assert any(has_mark[17:])
