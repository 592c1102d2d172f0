"""An adapter's factors are the change that PEFT itself makes; what they would miss is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from sft_atlas.errors import StoreError
from sft_atlas.model.lora import read_factors
from sft_atlas.weights.adapter import DoraFactors, LoraFactors, read_adapter
from tiny import build_model

# PEFT asks models for an old name of a property.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

GPT2 = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}


def save_peft(folder: Path, architecture: str = "llama", **config: Any) -> PeftModel:
    """Write an adapter with random factors, biases and saved modules by PEFT."""
    model = build_model(architecture, **(GPT2 if architecture == "gpt2" else {}))
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    adapted = get_peft_model(model, LoraConfig(**(settings | config)))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 32}},
        {"rank_pattern": {r".*\.0\.self_attn.q_proj": 3}, "use_rslora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head", "up_proj"]},
        {"architecture": "gpt2", "target_modules": ["c_attn"], "fan_in_fan_out": True},
    ],
)
def test_factors_and_replaced_weights_are_what_peft_merges(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    architecture = config.get("architecture", "llama")
    before = build_model(architecture, **(GPT2 if architecture == "gpt2" else {})).state_dict()
    adapted = save_peft(tmp_path, **config)
    adapter, stored = read_adapter(tmp_path), load_file(tmp_path / "adapter_model.safetensors")
    changed = 0
    for name, after in adapted.merge_and_unload().state_dict().items():
        if name in adapter.factors:
            factors = adapter.factors[name]
            assert isinstance(factors, LoraFactors)
            up, down, scale = factors
            torch.testing.assert_close(before[name] + scale * up @ down, after)
            changed += 1
        elif name in adapter.replaced:
            assert torch.equal(stored[adapter.replaced[name]], after)
            changed += 1
        else:
            assert torch.equal(before[name], after)
    assert changed == len(adapter.factors) + len(adapter.replaced)


def test_a_dora_adapter_is_what_peft_merges(tmp_path: Path) -> None:
    adapted = save_peft(tmp_path, use_dora=True, use_rslora=True)
    before = build_model().state_dict()
    factors = read_adapter(tmp_path).factors
    assert len(factors) == 4
    for name, after in adapted.merge_and_unload().state_dict().items():
        change = factors.get(name)
        if change is None:
            assert torch.equal(before[name], after)
            continue
        assert isinstance(change, DoraFactors)
        halves = [change.rows(before[name][:9]), change.rows(before[name][9:], 9)]
        torch.testing.assert_close(torch.cat(halves), after)
        plain = before[name] + change.low_rank.scale * change.low_rank.up @ change.low_rank.down
        assert not torch.allclose(after, plain, rtol=0.1)


def test_row_lengths_of_a_transposed_weight_are_refused(tmp_path: Path) -> None:
    save_peft(tmp_path, use_dora=True)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": True}))
    with pytest.raises(StoreError, match="use_dora with fan_in_fan_out is True"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("is_tied", [True, False])
def test_trained_embeddings_replace_one_weight_where_they_are_tied(
    tmp_path: Path, is_tied: bool
) -> None:
    model = build_model(tie_word_embeddings=is_tied)
    config = LoraConfig(
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        ensure_weight_tying=is_tied,
    )
    get_peft_model(model, config).save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.ties_head is is_tied
    assert sorted(adapter.replaced) == ["lm_head.weight"] * (not is_tied) + [
        "model.embed_tokens.weight"
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "VERA"),
        ("init_lora_weights", "pissa_niter_4"),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("alora_invocation_tokens", [7]),
        ("a_setting_of_tomorrow", True),
    ],
)
def test_a_setting_that_the_factors_do_not_tell_is_refused_by_name(
    tmp_path: Path, key: str, value: object
) -> None:
    save_peft(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(StoreError, match=f"{key} is "):
        read_adapter(tmp_path)


def test_another_rank_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    save_peft(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 8}))
    with pytest.raises(StoreError, match=r"expected \(out, 8\) and \(8, in\), because the rank"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("factor", ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"])
def test_a_factor_without_the_other_is_refused(tmp_path: Path, factor: str) -> None:
    save_peft(tmp_path, use_dora=factor == "lora_magnitude_vector")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[f"base_model.model.model.layers.1.self_attn.q_proj.{factor}"]
    save_file(tensors, path)
    with pytest.raises(StoreError, match=r"q_proj.lora_[AB].weight' without its other factor"):
        read_adapter(tmp_path)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapted_embedding_is_refused(tmp_path: Path) -> None:
    save_peft(tmp_path, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(StoreError, match=r"its adapter holds '.*embed_tokens.lora_embedding_A'"):
        read_adapter(tmp_path)


def test_factors_alone_are_refused_of_dora(tmp_path: Path) -> None:
    save_peft(tmp_path, use_dora=True)
    with pytest.raises(StoreError, match="is DoRA: it stretches the rows of 4 weights, such as"):
        read_factors(tmp_path)


def test_factors_alone_are_refused_where_an_adapter_replaces_weights(tmp_path: Path) -> None:
    save_peft(tmp_path, modules_to_save=["lm_head"])
    with pytest.raises(
        StoreError, match=r"replaces 1 weights as a whole, such as 'lm_head.weight'"
    ):
        read_factors(tmp_path)
