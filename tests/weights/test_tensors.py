"""Tensors of one file or of many are the model's, and two models are paired by name and shape."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sft_atlas.errors import StoreError
from sft_atlas.weights.tensors import TensorFolder, iter_pairs
from tiny import build_model


@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_a_saved_model_is_read_whole_from_one_file_or_many(tmp_path: Path, shard: str) -> None:
    model = build_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    tensors = TensorFolder(tmp_path)
    live = dict(model.named_parameters())
    assert set(tensors) == set(live)
    assert len(tensors) == len(live)
    pairs = list(iter_pairs(live, tensors))
    assert [pair.name for pair in pairs] == list(live)
    assert all(torch.equal(pair.before, pair.after) for pair in pairs)


def test_a_tensor_that_is_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model-00001-of-00002.safetensors"):
        save_file({"a": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(StoreError, match="tensor 'a' is also in"):
        TensorFolder(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no safetensors file"):
        TensorFolder(tmp_path)


def test_models_of_different_architecture_make_no_pairs() -> None:
    small, wide = {"a": torch.zeros(2)}, {"a": torch.zeros(3)}
    with pytest.raises(StoreError, match=r"'a' has shape \(2,\) before and \(3,\) after"):
        list(iter_pairs(small, wide))
    with pytest.raises(StoreError, match="in one model alone, such as 'b'"):
        list(iter_pairs(small, {**small, "b": torch.zeros(1)}))
