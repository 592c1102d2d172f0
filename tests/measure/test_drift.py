"""Weight changes equal a dense computation, for full and LoRA, and sum up over layers."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from sft_atlas.measure.drift import DriftRow, WeightChange, drift_rows, measure_drift
from sft_atlas.model.load import BaseModel, load_base, load_cell
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.spec import LoraSpec
from sft_atlas.train.loop import Observers, train
from tiny import LORA, build_job, build_rows, save_base


def measure(
    tmp_path: Path, lora: LoraSpec | None, architecture: str = "llama"
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], BaseModel, Store]:
    """Drift rows of a trained cell, its dense changes by name, its base and store."""
    base = load_base(save_base(tmp_path / "base", architecture))
    store = open_store(tmp_path / "store", create=True)
    job = build_job(base.spec, keep_epochs=(2,), lora=lora)
    observers = Observers(on_epoch=lambda cell, _: measure_drift(store, cell, base=base))  # type: ignore[arg-type,return-value]
    train(job, store=store, base=base, rows=build_rows(), observers=observers)
    cell = job.cells[0]
    live = dict(load_cell(base, cell, store=store).named_parameters())
    dense = {name: (live[name] - base.pristine[name]).detach().double() for name in live}
    table = pq.read_table(store.layout.drift(cell.fingerprint) / "drift.parquet")
    return table.to_pylist(), dense, base, store


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_drift_equals_a_dense_computation(
    tmp_path: Path, lora: LoraSpec | None, architecture: str
) -> None:
    rows, dense, base, _ = measure(tmp_path, lora, architecture)
    by_tensor = {row["tensor"]: row for row in rows}
    assert by_tensor.keys() == {*dense, "layers.0", "layers.1", "model"}
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


def test_an_adapter_leaves_all_other_weights_where_they_were(tmp_path: Path) -> None:
    rows, _, _, _ = measure(tmp_path, LoraSpec(rank=2, alpha=4.0, targets=("q_proj",)))
    moved = {row["kind"] for row in rows if row["frobenius"] > 0}
    assert moved == {"attention.query", "total"}


def test_drift_is_measured_once(tmp_path: Path) -> None:
    _, _, base, store = measure(tmp_path, None)
    cell = build_job(base.spec, keep_epochs=(2,)).cells[0]
    load_cell(base, cell, store=store)
    first = measure_drift(store, cell, base=base)
    base.reset()
    assert measure_drift(store, cell, base=base) == first


def test_a_weight_that_was_zero_has_no_relative_change() -> None:
    change = WeightChange("model.layers.0.self_attn.q_proj.bias", 4.0, 0.0, 16)
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
    )
