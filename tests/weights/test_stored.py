"""Tensors are found where they lie, and blocks of any group are the tensors; damage is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft_atlas.errors import StoreError
from sft_atlas.weights import blocks
from sft_atlas.weights.blocks import iter_blocks
from sft_atlas.weights.stored import find_tensors
from tiny import build_model


@pytest.mark.parametrize("block_bytes", [1, 100, 4_096, 1 << 20])
def test_blocks_put_together_are_the_tensors(
    tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    model = build_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    model.bfloat16().save_pretrained(tmp_path / "b")
    one, other = find_tensors(tmp_path / "a"), find_tensors(tmp_path / "b")
    groups = [(one[name], other[name]) for name in one]
    pieces: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in groups]
    for block in iter_blocks(groups):
        row_weights = (
            one[groups[block.group][0].name].num_weights // groups[block.group][0].shape[0]
        )
        num_before = sum(len(first) for first, _ in pieces[block.group])
        assert block.first_row * row_weights == num_before
        first, second = (tensor.clone() for tensor in block.tensors)
        pieces[block.group].append((first, second))
    whole = load_file(tmp_path / "b" / "model.safetensors")
    for (stored, _), parts in zip(groups, pieces, strict=True):
        first = torch.cat([part for part, _ in parts]).view(stored.shape)
        second = torch.cat([part for _, part in parts]).view(stored.shape)
        assert first.dtype == torch.float32
        assert torch.equal(second, whole[stored.name])
        assert torch.equal(first.bfloat16(), second)


def test_a_reader_that_stops_early_leaves_no_open_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1 << 22)}, tmp_path / "model.safetensors")
    reader = iter_blocks([(find_tensors(tmp_path)["a"],)])
    next(reader)
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open - 1


def test_only_the_shards_of_the_index_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert find_tensors(tmp_path)["a"].path.name == "model-1.safetensors"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(StoreError) as caught:
        find_tensors(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'model-2.safetensors'}: is missing, but model.safetensors.index.json names "
        f"it; expected all shards. Download or copy the model again."
    )


@pytest.mark.parametrize("num_bytes", [0, 4, 60, 200])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(64), "b": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(StoreError, match=r"model.safetensors: is no complete safetensors file \("):
        find_tensors(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(64)}, path)
    tensor = find_tensors(tmp_path)["a"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"model.safetensors: ends within 'a'"):
        list(iter_blocks([(tensor,)]))
