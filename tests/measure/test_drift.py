"""Weight changes equal a dense computation, for full and LoRA, and sum up over layers."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from sft_atlas.errors import DataError
from sft_atlas.measure.drift import (
    DriftRow,
    WeightChange,
    count_unchanged,
    drift_rows,
    measure_drift,
)
from sft_atlas.model.load import BaseModel, load_base, load_cell
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.measure import DriftMeasure
from sft_atlas.study.spec import LoraSpec
from sft_atlas.train.loop import Observers, train
from tiny import LORA, build_job, build_rows, save_base

KINDS = {
    "kind.attention.query",
    "kind.attention.key",
    "kind.attention.value",
    "kind.attention.output",
    "kind.mlp.gate",
    "kind.mlp.up",
    "kind.mlp.down",
    "kind.norm",
}


def measure(
    tmp_path: Path, lora: LoraSpec | None, architecture: str = "llama"
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], BaseModel, Store]:
    """Drift rows of a trained cell, its dense changes by name, its base and store."""
    base = load_base(save_base(tmp_path / "base", architecture))
    store = open_store(tmp_path / "store", create=True)
    job = build_job(base.spec, keep_epochs=(2,), lora=lora)
    observers = Observers(
        on_epoch=lambda cell, _: measure_drift(store, cell, DriftMeasure(), base=base)
    )  # type: ignore[arg-type,return-value]
    train(job, store=store, base=base, rows=build_rows(), observers=observers)
    cell = job.cells[0]
    live = dict(load_cell(base, cell, store=store).named_parameters())
    dense = {name: (live[name] - base.pristine[name]).detach().double() for name in live}
    folder = store.layout.measure(cell.fingerprint, DriftMeasure().fingerprint)
    table = pq.read_table(folder / "drift.parquet")
    return table.to_pylist(), dense, base, store


@pytest.mark.parametrize("lora", [None, LORA, replace(LORA, dora=True, train_embeddings=True)])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_drift_equals_a_dense_computation(
    tmp_path: Path, lora: LoraSpec | None, architecture: str
) -> None:
    rows, dense, base, _ = measure(tmp_path, lora, architecture)
    by_tensor = {row["tensor"]: row for row in rows}
    assert by_tensor.keys() == {*dense, "layers.0", "layers.1", *KINDS, "model"}
    for name, change in dense.items():
        row, norm = by_tensor[name], change.norm().item()
        # The dense product of an adapter was rounded when it was added to the base weight.
        tolerance = {"rel": 1e-3, "abs": 1e-5} if lora else {"rel": 1e-6}
        assert row["frobenius"] == pytest.approx(norm, **tolerance)
        assert row["rms"] == pytest.approx(norm / change.numel() ** 0.5, **tolerance)
        before = base.pristine[name].double().norm().item()
        if before:
            assert row["relative"] == pytest.approx(norm / before, **tolerance)
        assert row["num_weights"] == change.numel()


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_layers_total_is_the_root_of_its_summed_squares(
    tmp_path: Path, lora: LoraSpec | None
) -> None:
    rows, dense, base, _ = measure(tmp_path, lora)
    for layer in (0, 1):
        names = [name for name in dense if f".layers.{layer}." in name]
        change = math.sqrt(sum(dense[name].square().sum().item() for name in names))
        before = math.sqrt(
            sum(base.pristine[name].double().square().sum().item() for name in names)
        )
        (total,) = [row for row in rows if row["kind"] == "total" and row["layer"] == layer]
        assert total["frobenius"] == pytest.approx(change, rel=1e-3)
        assert total["relative"] == pytest.approx(change / before, rel=1e-3)
        assert total["position"] == (layer + 0.5) / 2
    whole = rows[-1]
    assert (whole["tensor"], whole["layer"], whole["position"]) == ("model", None, None)
    assert whole["num_weights"] == sum(change.numel() for change in dense.values())


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_kinds_total_pools_its_matrices_over_the_layers(
    tmp_path: Path, lora: LoraSpec | None
) -> None:
    rows, dense, _, _ = measure(tmp_path, lora)
    for kind in ("mlp.up", "norm"):
        members = [r for r in rows if r["kind"] == kind and r["layer"] is not None]
        assert {row["layer"] for row in members} == {0, 1}
        (total,) = [row for row in rows if row["tensor"] == f"kind.{kind}"]
        assert (total["layer"], total["position"], total["kind"]) == (None, None, kind)
        assert total["num_weights"] == sum(dense[r["tensor"]].numel() for r in members)
        squares = math.fsum(row["frobenius"] ** 2 for row in members)
        assert total["frobenius"] == pytest.approx(math.sqrt(squares), rel=1e-12)


@pytest.mark.parametrize("lora", [None, LORA])
def test_unchanged_weights_are_those_with_the_same_bfloat16_bits(
    tmp_path: Path, lora: LoraSpec | None
) -> None:
    rows, dense, base, store = measure(tmp_path, lora)
    cell = build_job(base.spec, keep_epochs=(2,), lora=lora).cells[0]
    live = dict(load_cell(base, cell, store=store).named_parameters())
    by_tensor = {row["tensor"]: row for row in rows}
    num_unchanged = 0
    for name in dense:
        after, before = live[name].detach().bfloat16(), base.pristine[name].bfloat16()
        pairs = zip(after.flatten().tolist(), before.flatten().tolist(), strict=True)
        same = [a.hex() == b.hex() for a, b in pairs]
        assert by_tensor[name]["unchanged_fraction"] == sum(same) / len(same)
        num_unchanged += sum(same)
    assert 0 < num_unchanged < rows[-1]["num_weights"]
    assert rows[-1]["unchanged_fraction"] == num_unchanged / rows[-1]["num_weights"]


def test_zeros_of_other_sign_are_other_bits() -> None:
    before = torch.tensor([0.0, 1.0, 1.0, 1.0])
    after = torch.tensor([-0.0, 1.0, 1.001, 1.1])
    # 1.001 rounds to 1 in bfloat16, whose values near 1 are 1/128 apart.
    assert count_unchanged(before, after) == 2


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_weight_that_is_not_finite_is_named_and_no_number_is_published(
    tmp_path: Path, lora: LoraSpec | None
) -> None:
    base = load_base(save_base(tmp_path / "base"))
    store = open_store(tmp_path / "store", create=True)
    job = build_job(base.spec, keep_epochs=(1,), lora=lora)
    train(job, store=store, base=base, rows=build_rows())
    cell = job.cells[0]
    load_cell(base, cell, store=store)
    name = "model.layers.1.mlp.up_proj.weight"
    base.pristine[name][0, 0] = math.nan
    with pytest.raises(DataError) as caught:
        measure_drift(store, cell, DriftMeasure(), base=base)
    assert str(caught.value) == (
        f"cell {cell.fingerprint}: its weight {name!r}, or the base model's, holds NaN or "
        f"infinity; expected finite weights. Train it with a lower learning rate."
    )
    assert not store.has(store.layout.measure(cell.fingerprint, DriftMeasure().fingerprint))


def test_an_adapter_leaves_all_other_weights_where_they_were(tmp_path: Path) -> None:
    rows, _, _, _ = measure(tmp_path, LoraSpec(rank=2, alpha=4.0, targets=("q_proj",)))
    moved = {row["kind"] for row in rows if row["frobenius"] > 0}
    assert moved == {row["kind"] for row in rows if row["unchanged_fraction"] < 1}
    assert moved == {"attention.query", "total"}


def test_drift_is_measured_once(tmp_path: Path) -> None:
    _, _, base, store = measure(tmp_path, None)
    cell = build_job(base.spec, keep_epochs=(2,)).cells[0]
    load_cell(base, cell, store=store)
    first = measure_drift(store, cell, DriftMeasure(), base=base)
    base.reset()
    assert measure_drift(store, cell, DriftMeasure(), base=base) == first


def test_a_weight_that_was_zero_has_no_relative_change() -> None:
    change = WeightChange("model.layers.0.self_attn.q_proj.bias", 4.0, 0.0, 16, 4)
    assert drift_rows([change], num_layers=2)[0] == DriftRow(
        tensor=change.tensor,
        layer=0,
        num_layers=2,
        position=0.25,
        kind="other",
        frobenius=2.0,
        relative=None,
        rms=0.5,
        num_weights=16,
        unchanged_fraction=0.25,
    )
