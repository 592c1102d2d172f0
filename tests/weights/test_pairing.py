"""Files of one model pair up in whatever form they were saved; what is no weight stays out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sft_atlas.errors import StoreError
from sft_atlas.weights.pairing import Pairing, pair_folders
from sft_atlas.weights.stored import StoredTensor


def save(folder: Path, tensors: dict[str, Tensor], *, tied: bool | None = None) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    if tied is not None:
        text = {"text_config": {"tie_word_embeddings": tied}}
        (folder / "config.json").write_text(json.dumps(text))
    return folder


def pair(base: Path, tuned: Path, *, equal: bool = True) -> Pairing:
    return pair_folders(base, tuned, are_equal=lambda one, other: equal)


def test_the_hubs_gpt2_pairs_with_a_saved_one(tmp_path: Path) -> None:
    inside = {
        "wte.weight": torch.zeros(8, 4),
        "h.0.attn.c_attn.weight": torch.zeros(4, 12),
        "h.0.attn.c_attn.bias": torch.zeros(12),
    }
    masks = {"h.0.attn.bias": torch.zeros(1, 1, 2, 2), "h.0.attn.masked_bias": torch.zeros(())}
    hub = save(tmp_path / "hub", inside | masks)
    saved = save(tmp_path / "saved", {f"transformer.{n}": t for n, t in inside.items()})
    for base, tuned in ((hub, saved), (saved, hub)):
        found = pair(base, tuned)
        assert len(found.pairs) == 3
        for weight in found.pairs:
            assert isinstance(weight.after, StoredTensor)
            names = {name.removeprefix("transformer.") for name in (weight.name, weight.after.name)}
            assert len(names) == 1
        assert any("by a leading 'transformer.'" in note for note in found.notes)
        assert any("2 buffers that are no weights were left out" in n for n in found.notes)


def test_a_missing_configuration_ties_a_head_by_its_values(tmp_path: Path) -> None:
    embedding = {"embed_tokens.weight": torch.zeros(8, 4)}
    base = save(tmp_path / "a", embedding)
    tuned = save(tmp_path / "b", embedding | {"lm_head.weight": torch.zeros(8, 4)})
    assert [p.name for p in pair(base, tuned).pairs] == ["embed_tokens.weight"]
    own = pair(base, tuned, equal=False)
    assert [p.name for p in own.pairs] == ["embed_tokens.weight", "lm_head.weight"]
    assert own.pairs[1].before.name == "embed_tokens.weight"
    lost = pair(tuned, base, equal=False)
    assert {p.name: p.after.name for p in lost.pairs if isinstance(p.after, StoredTensor)} == {
        "embed_tokens.weight": "embed_tokens.weight",
        "lm_head.weight": "embed_tokens.weight",
    }


def test_the_text_part_of_a_configuration_can_say_that_the_head_is_not_tied(tmp_path: Path) -> None:
    tensors = {"embed_tokens.weight": torch.zeros(8, 4)}
    base = save(tmp_path / "a", tensors | {"lm_head.weight": torch.zeros(8, 4)}, tied=False)
    tuned = save(tmp_path / "b", tensors, tied=False)
    with pytest.raises(StoreError, match=r"'lm_head.weight' is in .*/a alone"):
        pair(base, tuned)


def test_names_that_share_nothing_are_listed_in_short(tmp_path: Path) -> None:
    base = save(tmp_path / "a", {name: torch.zeros(1) for name in "pqrst"})
    tuned = save(tmp_path / "b", {"p": torch.zeros(1), "u": torch.zeros(1)})
    with pytest.raises(StoreError) as caught:
        pair(base, tuned)
    assert str(caught.value) == (
        f"{tuned}: 'q', 'r', 's' and 1 more are in {base} alone, 'u' is in {tuned} alone; expected "
        f"two models of one architecture. Compare a model with the base that it was trained from."
    )


def test_a_tensor_without_weights_is_refused(tmp_path: Path) -> None:
    base = save(tmp_path / "a", {"p": torch.zeros(4)})
    tuned = save(tmp_path / "b", {"p": torch.zeros(0)})
    with pytest.raises(StoreError, match=r"'p' has shape \(0,\), which holds no weight; expected"):
        pair(base, tuned)


def test_an_adapted_head_is_compared_with_the_embedding_it_was_tied_to(tmp_path: Path) -> None:
    base = save(tmp_path / "a", {"wte.weight": torch.zeros(8, 4)}, tied=True)
    adapter = tmp_path / "b"
    adapter.mkdir()
    up, down = torch.ones(8, 2), torch.ones(2, 4)
    factors = {"lm_head.lora_A.weight": down, "lm_head.lora_B.weight": up}
    named = {f"base_model.model.{name}": tensor for name, tensor in factors.items()}
    save_file(named, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    embedding, head = pair(base, adapter).pairs
    assert (embedding.name, embedding.after) == ("wte.weight", None)
    assert (head.name, head.before.name) == ("lm_head.weight", "wte.weight")


def test_an_adapter_of_a_model_whose_names_have_a_leading_part_fits(tmp_path: Path) -> None:
    base = save(tmp_path / "a", {"h.0.mlp.c_fc.weight": torch.zeros(4, 8)})
    adapter = tmp_path / "b"
    adapter.mkdir()
    prefix = "base_model.model.transformer.h.0.mlp.c_fc"
    factors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(8, 2)}
    named = {f"{prefix}.{name}.weight": tensor for name, tensor in factors.items()}
    save_file(named, adapter / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 4, "fan_in_fan_out": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    found = pair(base, adapter)
    assert found.pairs[0].after is not None
    assert found.notes == (
        f"{adapter}: its names differ from the base's by a leading 'transformer.', which was "
        f"ignored.",
    )
