"""Inner products of weight changes equal dense ones: full models, adapters, and both together."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from memory_watch import peak_memory
from sft_atlas import files
from sft_atlas.errors import DataError, StoreError
from sft_atlas.measure.updates import Scope, measure_updates, update_grams
from sft_atlas.model.load import BaseModel, load_base, load_cell
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import UpdatesJob
from sft_atlas.study.spec import CellSpec, LoraSpec
from sft_atlas.train.loop import train
from sft_atlas.weights.names import parse_weight_name
from tiny import LORA, build_job, build_rows, save_base

SHAPES = {
    "model.embed_tokens.weight": (30, 12),
    "model.layers.0.self_attn.q_proj.weight": (12, 12),
    "model.layers.0.input_layernorm.weight": (12,),
    "model.layers.1.mlp.experts.down_proj": (3, 12, 20),
    "model.layers.1.mlp.up_proj.weight": (20, 12),
}
ADAPTED = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")


def random_weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}


def save_model(folder: Path, weights: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    return folder


def save_factors(
    folder: Path, seed: int, rank: int, modules: Sequence[str] = ADAPTED, *, dora: bool = False
) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        rows, columns = SHAPES[f"{module}.weight"]
        for factor, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            name = f"base_model.model.{module}.lora_{factor}.weight"
            tensors[name] = torch.randn(shape, generator=generator)
        if dora:
            name = f"base_model.model.{module}.lora_magnitude_vector"
            tensors[name] = torch.rand(rows, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": rank, "lora_alpha": 3.0, "use_dora": dora}
    files.write_json(folder / "adapter_config.json", config)
    return folder


def dense_changes(folder: Path, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """A folder's weight changes in float64, from its own files alone."""
    if (folder / "model.safetensors").is_file():
        tuned = load_file(folder / "model.safetensors")
        return {name: tuned[name].double() - base[name].double() for name in base}
    stored = load_file(folder / "adapter_model.safetensors")
    config = files.read_json(folder / "adapter_config.json")
    changes = {name: torch.zeros(shape).double() for name, shape in SHAPES.items()}
    for name, down in stored.items():
        if ".lora_A." in name:
            up = stored[name.replace("lora_A", "lora_B")].double()
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            scale = config["lora_alpha"] / config["r"]
            change = scale * up @ down.double()
            lengths = stored.get(name.replace("lora_A.weight", "lora_magnitude_vector"))
            if lengths is not None:
                before = base[f"{module}.weight"].double()
                moved = before + change
                change = moved * (lengths.double() / moved.norm(dim=1))[:, None] - before
            changes[f"{module}.weight"] = change
    return changes


def dense_gram(changes: list[dict[str, Tensor]], scope: Scope) -> np.ndarray[Any, Any]:
    flat = []
    for change in changes:
        parts = [torch.zeros(1).double()]
        for name, tensor in change.items():
            parsed = parse_weight_name(name)
            if scope.layer in (None, parsed.layer) and scope.kind in (None, parsed.kind):
                parts.append(tensor.flatten())
        flat.append(torch.cat(parts))
    stacked = torch.stack(flat)
    return (stacked @ stacked.T).numpy()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base with three full cells, one of them in bfloat16, three adapters of unequal rank, and
    one that is DoRA."""
    base = save_model(tmp_path / "base", random_weights(0))
    full = [
        save_model(tmp_path / f"full{seed}", random_weights(seed, dtype))
        for seed, dtype in ((1, torch.float32), (2, torch.bfloat16), (3, torch.float32))
    ]
    adapters = [
        save_factors(tmp_path / f"adapter{rank}", rank, rank, modules)
        for rank, modules in ((1, ADAPTED), (4, ADAPTED[:1]), (7, ADAPTED))
    ]
    dora = save_factors(tmp_path / "dora", 5, 2, dora=True)
    return base, [full[0], adapters[0], full[1], dora, adapters[1], adapters[2], full[2]]


@pytest.mark.parametrize("max_bytes", [1, 3000, 20_000, 1 << 28])
def test_inner_products_equal_dense_ones_whatever_the_blocks(
    folders: tuple[Path, list[Path]], max_bytes: int
) -> None:
    base, cells = folders
    grams = update_grams(base, cells, max_bytes=max_bytes)
    changes = [dense_changes(cell, random_weights(0)) for cell in cells]
    kinds = sorted({parse_weight_name(name).kind for name in SHAPES})
    layers = [Scope("layer", layer=layer) for layer in (0, 1)]
    assert list(grams) == [Scope("model"), *layers, *(Scope("kind", kind=k) for k in kinds)]
    for scope, gram in grams.items():
        expected = dense_gram(changes, scope)
        assert np.array_equal(gram, gram.T)
        # Differences are taken in float32.
        np.testing.assert_allclose(gram, expected, rtol=1e-6, atol=1e-6 * expected.max())


def test_another_cell_changes_no_other_pair(folders: tuple[Path, list[Path]]) -> None:
    base, cells = folders
    few, all_cells = update_grams(base, cells[:4]), update_grams(base, cells)
    for scope, gram in few.items():
        np.testing.assert_allclose(all_cells[scope][:4, :4], gram, rtol=1e-13, atol=1e-12)


def test_the_order_of_cells_changes_nothing_else(folders: tuple[Path, list[Path]]) -> None:
    base, cells = folders
    order = [3, 0, 5, 2, 4, 1]
    plain, mixed = update_grams(base, cells), update_grams(base, [cells[i] for i in order])
    for scope, gram in plain.items():
        np.testing.assert_allclose(mixed[scope], gram[order][:, order], rtol=1e-13, atol=1e-12)


def test_a_sharded_model_is_read_as_a_whole_one(folders: tuple[Path, list[Path]]) -> None:
    base, cells = folders
    expected = update_grams(base, cells)[Scope("model")]
    weights = random_weights(1)
    (cells[0] / "model.safetensors").unlink()
    for number, name in enumerate(weights, start=1):
        shard = cells[0] / f"model-0000{number}-of-00005.safetensors"
        save_file({name: weights[name]}, shard)
    assert np.array_equal(update_grams(base, cells)[Scope("model")], expected)


def test_a_base_may_store_its_tied_head_and_buffers(folders: tuple[Path, list[Path]]) -> None:
    base, cells = folders
    expected = update_grams(base, cells)[Scope("model")]
    extra = {
        "lm_head.weight": random_weights(0)["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file(random_weights(0) | extra, base / "model.safetensors")
    assert np.array_equal(update_grams(base, cells)[Scope("model")], expected)


def test_layers_and_kinds_that_no_cell_moved_are_there_with_zeros(
    folders: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    base, _ = folders
    cells = [save_factors(tmp_path / f"query{seed}", seed, 2, ADAPTED[:1]) for seed in (1, 2)]
    grams = update_grams(base, cells)
    assert not grams[Scope("layer", layer=1)].any()
    assert not grams[Scope("kind", kind="embedding")].any()
    assert np.array_equal(grams[Scope("layer", layer=0)], grams[Scope("model")])


def published(tmp_path: Path) -> tuple[BaseModel, Store, UpdatesJob]:
    """Three trained cells of one base: full in float32 and in bfloat16, and an adapter."""
    base = load_base(save_base(tmp_path / "base"))
    store = open_store(tmp_path / "store", create=True)
    jobs = [
        build_job(base.spec, keep_epochs=(1,)),
        build_job(base.spec, keep_epochs=(1,), precision="bfloat16", seed=1),
        build_job(base.spec, keep_epochs=(1,), lora=LORA),
    ]
    for job in jobs:
        base.reset()
        train(job, store=store, base=base, rows=build_rows())
    return base, store, UpdatesJob(cells=tuple(job.cells[0] for job in jobs))


def live_change(base: BaseModel, store: Store, cell: CellSpec) -> dict[str, Tensor]:
    live = load_cell(base, cell, store=store).named_parameters()
    return {name: weight.detach().double() - base.pristine[name] for name, weight in live}


def test_a_record_holds_the_cosines_of_live_weights(tmp_path: Path) -> None:
    base, store, job = published(tmp_path)
    record = measure_updates(store, job, base_folder=tmp_path / "base")
    path = store.layout.update(job.fingerprint) / "updates.parquet"
    rows = pq.read_table(path).to_pylist()
    changes = {cell.fingerprint: live_change(base, store, cell) for cell in job.cells}
    assert record.result["num_pairs"] == 3
    assert record.result["num_factored"] == 1
    # The model, two layers, and every kind; three pairs of each.
    assert len(rows) == 3 * (3 + len(record.result["kinds"]))
    for row in rows:
        scope = Scope(row["scope"], row["layer"], row["kind"])
        gram = dense_gram([changes[row["cell_a"]], changes[row["cell_b"]]], scope)
        norm_a, norm_b = np.sqrt(gram.diagonal())
        # The dense product of an adapter was rounded when it was added to the base weight.
        assert row["norm_a"] == pytest.approx(norm_a, rel=1e-3, abs=1e-9)
        assert row["norm_b"] == pytest.approx(norm_b, rel=1e-3, abs=1e-9)
        assert row["inner"] == pytest.approx(gram[0, 1], rel=1e-3, abs=1e-5)
        if norm_a * norm_b == 0:
            assert row["cosine"] is None
        else:
            assert row["cosine"] == pytest.approx(gram[0, 1] / norm_a / norm_b, abs=1e-3)
        position = None if row["layer"] is None else (row["layer"] + 0.5) / 2
        assert row["position"] == position
    unmoved = [row for row in rows if row["kind"] == "norm" and row["norm_a"] * row["norm_b"] == 0]
    assert len(unmoved) == 2, "an adapter leaves the norms where they were"


def test_a_record_is_made_once_and_is_the_same_in_any_order(tmp_path: Path) -> None:
    _, store, job = published(tmp_path)
    turned = replace(job, cells=job.cells[::-1])
    assert turned.fingerprint == job.fingerprint
    first = measure_updates(store, job, base_folder=tmp_path / "base")
    assert measure_updates(store, job, base_folder=tmp_path / "nowhere") == first
    store.set_aside(store.layout.update(job.fingerprint))
    again = measure_updates(store, turned, base_folder=tmp_path / "base")
    assert again.digest == first.digest


def test_opposite_updates_have_cosine_minus_one(tmp_path: Path) -> None:
    """Two adapters of one training run, one of them with its factors B turned round."""
    base = load_base(save_base(tmp_path / "base"))
    store = open_store(tmp_path / "store", create=True)
    job = build_job(base.spec, keep_epochs=(1, 2), lora=LoraSpec(rank=2, alpha=4.0))
    train(job, store=store, base=base, rows=build_rows())
    plus, minus = (store.layout.cell(cell.fingerprint) for cell in job.cells)
    turn_round(store, plus, minus)
    measure_updates(store, UpdatesJob(cells=job.cells), base_folder=tmp_path / "base")
    folder = store.layout.update(UpdatesJob(cells=job.cells).fingerprint)
    cosines = [row["cosine"] for row in pq.read_table(folder / "updates.parquet").to_pylist()]
    assert cosines.count(None) == 3, "norms, embedding and head did not move"
    assert [c for c in cosines if c is not None] == pytest.approx([-1.0] * 10, abs=1e-12)


def turn_round(store: Store, source: Path, target: Path) -> None:
    """Replace a stored adapter by the opposite of another."""
    record = store.read(target)
    tensors = load_file(source / "adapter_model.safetensors")
    turned = {name: -t if "lora_B" in name else t for name, t in tensors.items()}
    store.set_aside(target)

    def fill(aside: Path) -> dict[str, Any]:
        save_file(turned, aside / "adapter_model.safetensors")
        config = files.read_json(source / "adapter_config.json")
        files.write_json(aside / "adapter_config.json", config)
        return record.result

    store.publish(
        target, schema="cell/1", spec=record.spec, fill=fill, provenance=lambda: record.provenance
    )


def test_a_cell_has_cosine_one_with_itself_and_its_copy(folders: tuple[Path, list[Path]]) -> None:
    base, cells = folders
    gram = update_grams(base, [cells[0], cells[0], cells[1], cells[1]])[Scope("model")]
    norms = np.sqrt(gram.diagonal())
    cosines = gram / norms / norms[:, None]
    assert cosines[0, 1] == pytest.approx(1, abs=1e-12)
    assert cosines[2, 3] == pytest.approx(1, abs=1e-12)


def test_what_is_no_fine_tune_of_the_base_is_refused(
    folders: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    base, cells = folders
    weights = random_weights(1)
    name = "model.layers.1.mlp.up_proj.weight"
    cases = {
        "more": weights | {"model.layers.2.x.weight": torch.ones(1)},
        "fewer": {key: tensor for key, tensor in weights.items() if key != name},
        "other": weights | {name: torch.ones(3, 3)},
        "quantised": weights | {name: torch.ones(20, 12, dtype=torch.int8)},
    }
    for folder, tensors in cases.items():
        cell = save_model(tmp_path / folder, tensors)
        with pytest.raises(StoreError, match=f"{folder}.*; expected"):
            update_grams(base, [cells[0], cell])
    with pytest.raises(StoreError, match="nowhere: holds no safetensors file"):
        update_grams(base, [cells[0], tmp_path / "nowhere"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_change_that_is_not_finite_is_named(
    folders: tuple[Path, list[Path]], tmp_path: Path, bad: float
) -> None:
    base, cells = folders
    weights = random_weights(1)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = bad
    cell = save_model(tmp_path / "broken", weights)
    message = r"broken: the change of 'model.layers.1.mlp.up_proj.weight' holds NaN or infinity"
    with pytest.raises(DataError, match=message):
        update_grams(base, [*cells, cell])


def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    """Sixteen changes of 4 MiB are 128 MiB in float64; blocks keep all of them within 8 MiB."""
    name = "model.layers.0.mlp.up_proj.weight"
    generator = torch.Generator().manual_seed(0)
    folders = [
        save_model(tmp_path / str(i), {name: torch.randn(1024, 1024, generator=generator)})
        for i in range(17)
    ]
    update_grams(folders[0], folders[1:3], max_bytes=8 << 20)
    with peak_memory("RssAnon") as peak:
        update_grams(folders[0], folders[1:], max_bytes=8 << 20)
    # The blocks, their parts in float32 on the way, and what the allocator keeps of either.
    assert 1 << 20 < peak[0] < 40 << 20
