"""Two folders differ by what a dense computation in float64 says, in whatever form they are stored;
what cannot be compared is refused, and the message names it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from memory_watch import peak_memory
from sft_atlas.errors import DataError, StoreError
from sft_atlas.measure.drift import DriftRow
from sft_atlas.measure.weight_pair import PairDrift, measure_pair
from sft_atlas.model.lora import add_lora
from sft_atlas.model.lora import save_adapter as save_ours
from sft_atlas.study.spec import LoraSpec
from tiny import build_model

# PEFT asks models for an old name of a property.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def tensors_of(seed: int = 0, **extra: Any) -> dict[str, Tensor]:
    """Return the weights of a tiny model by name, tied ones once."""
    model = build_model(seed=seed, **({"tie_word_embeddings": False} | extra))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(tensors: dict[str, Tensor], size: float = 1e-3) -> dict[str, Tensor]:
    """Return weights near the given ones."""
    torch.manual_seed(7)
    return {name: t + size * torch.randn_like(t) for name, t in tensors.items()}


def save(folder: Path, tensors: dict[str, Tensor], *, tied: bool | None = None) -> Path:
    """Write a folder; `tied` None writes no configuration."""
    folder.mkdir(exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    if tied is not None:
        (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    return folder


def save_shards(folder: Path, tensors: dict[str, Tensor], shard_of: Callable[[int], int]) -> Path:
    """Write a folder of shards with its index."""
    folder.mkdir()
    shards: dict[str, dict[str, Tensor]] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        shards.setdefault(f"model-{shard_of(number)}.safetensors", {})[name] = tensor
    for file, members in shards.items():
        save_file(members, folder / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return folder


def by_tensor(result: PairDrift) -> dict[str, DriftRow]:
    return {row.tensor: row for row in result.rows}


def assert_dense(result: PairDrift, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Compare each weight's row with a computation in float64 on the tensors as stored."""
    rows = by_tensor(result)
    assert {name for name in rows if rows[name].kind != "total" and "kind." not in name} == set(
        before
    )
    for name in before:
        old, new = before[name].double(), after[name].double()
        row, norm = rows[name], (new - old).norm().item()
        assert row.frobenius == pytest.approx(norm, rel=1e-6)
        assert row.relative == pytest.approx(norm / old.norm().item(), rel=1e-6)
        assert row.rms == pytest.approx(norm / math.sqrt(old.numel()), rel=1e-6)
        same = before[name].bfloat16() == after[name].bfloat16()
        assert row.unchanged_fraction == same.double().mean().item()


@pytest.mark.parametrize("before_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("after_type", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_equal_a_dense_computation_for_any_mix_of_types(
    tmp_path: Path, before_type: torch.dtype, after_type: torch.dtype
) -> None:
    plain = tensors_of()
    before = {name: tensor.to(before_type) for name, tensor in plain.items()}
    after = {name: tensor.to(after_type) for name, tensor in moved(plain).items()}
    result = measure_pair(save(tmp_path / "a", before), save(tmp_path / "b", after))
    assert_dense(result, before, after)
    assert (result.num_layers, result.from_adapter, result.notes) == (2, False, ())
    sizes = [t.numel() * t.itemsize for t in (*before.values(), *after.values())]
    assert result.bytes_read == sum(sizes)


def test_a_weight_of_many_blocks_is_measured_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # Longer than a block, of a length that no block divides, with a change in the last weight.
    before = {UP: torch.randn(1_237, 1_009), "model.norm.weight": torch.randn(1_300_001)}
    after = {name: tensor.clone() for name, tensor in before.items()}
    after[UP][-1, -1] += 3.0
    after["model.norm.weight"][-1] -= 2.0
    result = measure_pair(save(tmp_path / "a", before), save(tmp_path / "b", after))
    assert_dense(result, before, after)


@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e18, 1e30])
def test_weights_at_the_ends_of_float32_keep_their_norms(tmp_path: Path, scale: float) -> None:
    before = {UP: scale * torch.randn(64, 64)}
    after = {UP: before[UP] * 1.01}
    result = measure_pair(save(tmp_path / "a", before), save(tmp_path / "b", after))
    assert_dense(result, before, after)


def test_a_change_in_one_layer_is_found_there_and_nowhere_else(tmp_path: Path) -> None:
    before = tensors_of()
    after = before | {UP: before[UP] + 0.1}
    result = measure_pair(save(tmp_path / "a", before), save(tmp_path / "b", after))
    changed = {row.tensor for row in result.rows if row.frobenius > 0}
    assert changed == {UP, "layers.1", "kind.mlp.up", "model"}
    assert changed == {row.tensor for row in result.rows if row.unchanged_fraction < 1}
    for name in changed:
        assert by_tensor(result)[name].frobenius == pytest.approx(
            0.1 * math.sqrt(32 * 48), rel=1e-6
        )


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_order_of_shards_changes_a_digit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    before = tensors_of()
    after = moved(before)
    names = data.draw(st.permutations(sorted(before)))
    places = data.draw(st.lists(st.integers(0, 3), min_size=len(names), max_size=len(names)))
    shuffled = {name: after[name] for name in names}
    shards = save_shards(folder / "b", shuffled, lambda number: places[number])
    base = save(folder / "a", before)
    result = measure_pair(base, shards)
    assert result.rows == measure_pair(base, save(folder / "c", after)).rows
    weights = [row for row in result.rows if row.tensor in before]
    squares = math.fsum(row.frobenius**2 for row in weights)
    assert result.rows[-1].frobenius ** 2 == pytest.approx(squares, rel=1e-12)
    assert result.rows[-1].num_weights == sum(row.num_weights for row in weights)


def save_adapter(folder: Path, **config: Any) -> tuple[Path, dict[str, Tensor]]:
    """Write a PEFT adapter of the tiny model; return it and the weights that PEFT merges."""
    adapted = get_peft_model(
        build_model(tie_word_embeddings=False),
        LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]} | config)),
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload()
    return folder, {name: p.detach().clone() for name, p in merged.named_parameters()}


@pytest.mark.parametrize(
    "config",
    [{}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}],
)
def test_an_adapter_and_its_merged_model_have_the_same_rows(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    base = save(tmp_path / "base", tensors_of(), tied=False)
    adapter, merged = save_adapter(tmp_path / "adapter", **config)
    of_factors = measure_pair(base, adapter)
    of_weights = measure_pair(base, save(tmp_path / "merged", merged, tied=False))
    assert of_factors.from_adapter and not of_weights.from_adapter
    for one, other in zip(of_factors.rows, of_weights.rows, strict=True):
        assert (one.tensor, one.num_weights) == (other.tensor, other.num_weights)
        assert one.frobenius == pytest.approx(other.frobenius, rel=1e-6)
        assert one.unchanged_fraction == other.unchanged_fraction
    unmoved = by_tensor(of_factors)["model.layers.0.mlp.down_proj.weight"]
    assert (unmoved.frobenius, unmoved.unchanged_fraction) == (0.0, 1.0)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    adapter, _ = save_adapter(tmp_path / "adapter")
    shallow = {n: t for n, t in tensors_of().items() if ".layers.1." not in n}
    base = save(tmp_path / "base", shallow, tied=False)
    with pytest.raises(StoreError) as caught:
        measure_pair(base, adapter)
    assert str(caught.value) == (
        f"{adapter}: it changes layer 1 (2 tensors, such as 'model.layers.1.mlp.up_proj.weight') "
        f"which are not in {base}; expected an adapter of this base model. Name the base that it "
        f"was trained on."
    )
    wide = save(tmp_path / "wide", tensors_of(intermediate_size=64), tied=False)
    with pytest.raises(StoreError, match=r"up_proj.weight' has shape \(48, 32\), but the weight"):
        measure_pair(wide, adapter)
    with pytest.raises(StoreError, match="is an adapter; expected a whole model as the base"):
        measure_pair(adapter, base)


def test_missing_layers_are_named_as_a_range(tmp_path: Path) -> None:
    deep, shallow = tensors_of(num_hidden_layers=5), tensors_of()
    base = save(tmp_path / "a", deep, tied=False)
    tuned = save(tmp_path / "b", shallow, tied=False)
    with pytest.raises(StoreError) as caught:
        measure_pair(base, tuned)
    assert str(caught.value) == (
        f"{tuned}: layers 2..4 (27 tensors, such as 'model.layers.2.input_layernorm.weight') are "
        f"in {base} alone; expected two models of one architecture. Compare a model with the base "
        f"that it was trained from."
    )


def test_another_shape_is_refused_with_both_files(tmp_path: Path) -> None:
    base = save(tmp_path / "a", tensors_of(), tied=False)
    tuned = save(tmp_path / "b", tensors_of(vocab_size=66), tied=False)
    with pytest.raises(StoreError) as caught:
        measure_pair(base, tuned)
    assert str(caught.value) == (
        f"{tuned / 'model.safetensors'}: 'lm_head.weight' has shape (66, 32), but (64, 32) in "
        f"{base / 'model.safetensors'}; expected two models of one architecture. Compare a model "
        f"with the base that it was trained from. Where tokens were added, compare with the base "
        f"after the same resizing."
    )


def test_a_trained_embedding_that_is_the_head_counts_once(tmp_path: Path) -> None:
    before = tensors_of(tie_word_embeddings=True)
    model = build_model(tie_word_embeddings=True)
    lora = LoraSpec(rank=2, alpha=4.0, targets=("q_proj",), train_embeddings=True)
    add_lora(model, lora, seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.01)
    (tmp_path / "adapter").mkdir()
    save_ours(tmp_path / "adapter", model, lora, base_name="b")
    bare = measure_pair(save(tmp_path / "bare", before), tmp_path / "adapter")
    copy = {HEAD: before[EMBEDDING].clone()}
    copied = measure_pair(save(tmp_path / "copied", before | copy), tmp_path / "adapter")
    assert bare.rows == copied.rows
    assert HEAD not in by_tensor(bare)
    embedding = by_tensor(bare)[EMBEDDING]
    assert embedding.rms == pytest.approx(0.01, rel=1e-5)
    assert bare.rows[-1].frobenius == pytest.approx(embedding.frobenius)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_weight_that_is_not_finite_is_named_with_its_file(
    tmp_path: Path, bad: float, side: str
) -> None:
    folders = {"a": tensors_of(), "b": moved(tensors_of())}
    folders[side][UP][-1, -1] = bad
    saved = {name: save(tmp_path / name, tensors) for name, tensors in folders.items()}
    with pytest.raises(DataError) as caught:
        measure_pair(saved["a"], saved["b"])
    assert str(caught.value) == (
        f"{saved[side] / 'model.safetensors'}: {UP!r} holds NaN or infinity; expected finite "
        f"weights. Use a checkpoint from before the training diverged, or save it again."
    )


@pytest.mark.parametrize("dora", [False, True])
def test_factors_that_are_not_finite_are_refused(tmp_path: Path, dora: bool) -> None:
    base = save(tmp_path / "base", tensors_of(), tied=False)
    adapter, _ = save_adapter(tmp_path / "adapter", use_dora=dora)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.{UP.removesuffix('.weight')}.lora_A.weight"][0, 0] = math.nan
    save_file(tensors, path)
    with pytest.raises(DataError, match=rf"the factors of '{UP}' hold NaN or infinity"):
        measure_pair(base, adapter)


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of()
    base = save(tmp_path / "a", tensors)
    tuned = save(tmp_path / "b", tensors | {UP: tensors[UP].to(torch.float8_e4m3fn)})
    with pytest.raises(StoreError, match=rf"'{UP}' is stored as F8_E4M3; expected F32, F16, BF16"):
        measure_pair(base, tuned)


def test_a_tied_head_counts_once_however_it_is_stored(tmp_path: Path) -> None:
    before = {name: t for name, t in tensors_of().items() if name != HEAD}
    after = moved(before)
    with_copy = after | {HEAD: after[EMBEDDING].clone()}
    base = save(tmp_path / "a", before, tied=True)
    plain = measure_pair(base, save(tmp_path / "b", after, tied=True))
    assert plain.notes == ()
    folder = save(tmp_path / "c", with_copy, tied=True)
    copied = measure_pair(base, folder)
    assert copied.rows == plain.rows
    assert copied.notes == (
        f"{folder}: stores 'lm_head.weight' with the values of the embedding; it was read as tied.",
    )
    both = save(tmp_path / "d", before | {HEAD: before[EMBEDDING].clone()}, tied=True)
    assert measure_pair(both, folder).rows == plain.rows


def test_a_head_that_training_untied_is_compared_with_the_embedding(tmp_path: Path) -> None:
    before = {name: t for name, t in tensors_of().items() if name != HEAD}
    after = moved(before) | {HEAD: before[EMBEDDING] + 0.5}
    base = save(tmp_path / "a", before, tied=True)
    result = measure_pair(base, save(tmp_path / "b", after, tied=False))
    assert_dense(result, before | {HEAD: before[EMBEDDING]}, after)
    assert "which is compared with that embedding" in result.notes[0]


def test_a_head_that_contradicts_its_configuration_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of()
    tuned = save(tmp_path / "b", tensors, tied=True)
    base = save(tmp_path / "a", {n: t for n, t in tensors.items() if n != HEAD}, tied=True)
    with pytest.raises(
        StoreError, match=r"config.json ties 'lm_head.weight' to the embedding, but"
    ):
        measure_pair(base, tuned)


def test_a_lost_head_is_a_lost_weight(tmp_path: Path) -> None:
    tensors = tensors_of()
    base = save(tmp_path / "a", tensors, tied=False)
    tuned = save(tmp_path / "b", {n: t for n, t in tensors.items() if n != HEAD}, tied=False)
    with pytest.raises(StoreError, match=rf"'lm_head.weight' is in {base} alone"):
        measure_pair(base, tuned)


def test_buffers_and_a_leading_name_are_no_difference(tmp_path: Path) -> None:
    before = {name: t for name, t in tensors_of().items() if name != HEAD}
    after = moved(before)
    plain = measure_pair(
        save(tmp_path / "a", before, tied=True), save(tmp_path / "b", after, tied=True)
    )
    short = {name.removeprefix("model."): tensor for name, tensor in after.items()}
    short["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tuned = save(tmp_path / "c", short, tied=True)
    result = measure_pair(tmp_path / "a", tuned)
    assert result.rows == plain.rows
    assert result.notes == (
        f"{tuned}: 1 buffers that are no weights were left out, such as "
        f"'layers.0.self_attn.rotary_emb.inv_freq'.",
        f"{tuned}: its names differ from the base's by a leading 'model.', which was ignored.",
    )


def test_memory_does_not_grow_with_the_largest_tensor(tmp_path: Path) -> None:
    small = save(tmp_path / "small", {UP: torch.randn(1_024, 1_024).bfloat16()})
    measure_pair(small, small)
    largest = torch.randn(64, 4_096).bfloat16().repeat(128, 1)
    large = save(tmp_path / "large", {UP: largest, HEAD: largest[:4_096].clone()})
    del largest
    with peak_memory("VmRSS") as rise:
        result = measure_pair(large, large)
    assert result.bytes_read == 2 * 96 * 2**20
    # The goal is three times the largest tensor of 64 MiB; blocks need about 12 MiB.
    assert 2 * 2**20 < rise[0] < 32 * 2**20
