"""A local model's shape is read from its files, and a guess has the wanted size."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sft_atlas.study.model_folder import card_from_folder, sized_card
from sft_atlas.study.shape import matmul_weights

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def test_weights_are_counted_without_reading_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": np.zeros((3, 5), np.float16)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.zeros(7, np.float32)}, tmp_path / "model-2.safetensors", {"format": "pt"})
    card = card_from_folder(tmp_path, "m")
    assert card is not None
    assert (card.parameters, card.layers, card.num_kv_heads, card.family) == (22, 2, 2, "llama")


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"num_attention_heads": "x"}'])
def test_another_layout_has_no_shape(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert card_from_folder(tmp_path, "m") is None


def test_a_file_that_claims_a_giant_head_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 8)
    assert card_from_folder(tmp_path, "m") is None


@pytest.mark.parametrize("parameters", [10**6, 10**9, 7 * 10**9])
def test_a_guessed_shape_has_about_its_size(parameters: int) -> None:
    card = sized_card("m", parameters)
    assert matmul_weights(card) == parameters
    layers = card.layers * 12 * card.hidden_size**2
    assert 0.3 < layers / parameters < 3
