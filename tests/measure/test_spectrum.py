"""Spectra equal a dense decomposition, find a planted rank, and are published once."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sft_atlas.errors import DataError, StoreError
from sft_atlas.measure.adapter import verified_factors
from sft_atlas.measure.intruders import BaseVectors
from sft_atlas.measure.spectrum import (
    SpectrumRow,
    adapter_spectra,
    folder_spectra,
    measure_spectrum,
    pair_spectra,
    spectrum_of,
    vectors_folder,
)
from sft_atlas.model.load import BaseModel, load_base, load_cell
from sft_atlas.model.lora import LoraFactors
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.measure import SpectrumMeasure
from sft_atlas.study.spec import CellSpec, LoraSpec
from sft_atlas.train.loop import train
from sft_atlas.weights.tensors import TensorFolder
from tiny import LORA, build_job, build_rows, save_base

QUERY = "model.layers.0.self_attn.q_proj.weight"


def random_factors(rows: int, columns: int, rank: int, *, seed: int = 0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(rows, rank, generator=generator)
    return LoraFactors(up, torch.randn(rank, columns, generator=generator), 0.5)


def dense(factors: LoraFactors) -> Tensor:
    return factors.scale * (factors.up.double() @ factors.down.double())


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (600, 520), (520, 600)])
def test_a_dense_spectrum_equals_torchs(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(matrix.double())
    found = spectrum_of(matrix)
    shares = values / values.sum()
    assert found.rank_bound == min(shape)
    assert found.spectral_norm == pytest.approx(values[0].item(), rel=1e-9)
    assert found.nuclear_norm == pytest.approx(values.sum().item(), rel=1e-9)
    stable = (values.square().sum() / values[0] ** 2).item()
    assert found.stable_rank == pytest.approx(stable, rel=1e-9)
    assert found.top_share == pytest.approx(1 / stable, rel=1e-9)
    entropy = -(shares * shares.log()).sum().item()
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-9)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(50, 30, 4), (30, 50, 1), (6, 50, 8)])
def test_a_spectrum_from_factors_equals_that_of_the_dense_product(
    rows: int, columns: int, rank: int
) -> None:
    factors = random_factors(rows, columns, rank)
    found, expected = spectrum_of(factors), spectrum_of(dense(factors))
    assert found.rank_bound == min(rank, rows, columns)
    # The product's zero singular values are rounding, and add to its entropy.
    assert found[1:] == pytest.approx(expected[1:], rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_equal_singular_values_have_all_ranks_equal_to_their_number(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    left = torch.linalg.qr(torch.randn(60, rank, generator=generator).double()).Q
    right = torch.linalg.qr(torch.randn(50, rank, generator=generator).double()).Q
    found = spectrum_of(LoraFactors(left, right.T, 3.0))
    assert found.stable_rank == pytest.approx(rank, rel=1e-12)
    assert found.effective_rank == pytest.approx(rank, rel=1e-12)
    assert found.spectral_norm == pytest.approx(3.0, rel=1e-12)
    assert found.nuclear_norm == pytest.approx(3.0 * rank, rel=1e-12)


def test_ranks_do_not_depend_on_the_size_of_the_change() -> None:
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).double()
    large, tiny = spectrum_of(matrix), spectrum_of(matrix * 2.0**-600)
    assert tiny.stable_rank == pytest.approx(large.stable_rank, rel=1e-9)
    assert tiny.effective_rank == pytest.approx(large.effective_rank, rel=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        torch.zeros(5, 4),
        LoraFactors(torch.zeros(5, 2), torch.ones(2, 4), 1.0),
        LoraFactors(torch.tensor([[0.1, -0.1]] * 5), torch.tensor([[0.3, 0.7]] * 2), 3.0),
    ],
    ids=["dense", "factors", "cancelled"],
)
def test_a_matrix_that_did_not_change_has_no_rank(change: Tensor | LoraFactors) -> None:
    found = spectrum_of(change)
    assert found[1:] == (0.0, None, None, 0.0, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_change_that_is_not_finite_is_named(bad: float) -> None:
    factors = random_factors(5, 4, 2)
    factors.up[0, 0] = bad
    for change in (torch.full((3, 3), bad), factors):
        with pytest.raises(DataError, match=r"^layer: .* holds NaN or infinity; expected finite"):
            spectrum_of(change, where="layer")


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_cells_table_equals_dense_decompositions(
    tmp_path: Path, lora: LoraSpec | None, architecture: str
) -> None:
    base, store, cell = train_cell(tmp_path, lora, architecture)
    rows = measured_rows(base, store, cell)
    live = dict(load_cell(base, cell, store=store).named_parameters())
    matrices = [n for n, w in base.pristine.items() if ".layers." in n and w.dim() == 2]
    assert [row["tensor"] for row in rows] == matrices
    for row in rows:
        before = base.pristine[row["tensor"]].double()
        after = live[row["tensor"]].detach().double()
        values = torch.linalg.svdvals(after - before)
        # The dense product of an adapter was rounded when it was added to the base weight.
        tolerance = {"rel": 1e-3} if lora else {"rel": 1e-5}
        assert row["spectral_norm"] == pytest.approx(values[0].item(), **tolerance)
        stable = (values.square().sum() / values[0] ** 2).item()
        assert row["stable_rank"] == pytest.approx(stable, **tolerance)
        assert row["rank_bound"] == (lora.rank if lora else min(before.shape))
        assert [row["rows"], row["columns"]] == list(before.shape)
        cosines = (torch.linalg.svd(after).U[:, :10].T @ torch.linalg.svd(before).U).abs()
        likeness = cosines.amax(dim=1)
        for epsilon, column in ((0.3, "03"), (0.5, "05"), (0.6, "06"), (0.8, "08")):
            assert row[f"intruders_{column}"] == (likeness < epsilon).sum().item()


def train_cell(
    tmp_path: Path, lora: LoraSpec | None, architecture: str = "llama"
) -> tuple[BaseModel, Store, CellSpec]:
    base = load_base(save_base(tmp_path / "base", architecture))
    store = open_store(tmp_path / "store", create=True)
    job = build_job(base.spec, keep_epochs=(1,), lora=lora)
    train(job, store=store, base=base, rows=build_rows())
    return base, store, job.cells[0]


def measured_rows(base: BaseModel, store: Store, cell: CellSpec) -> list[dict[str, Any]]:
    measure = SpectrumMeasure()
    load_cell(base, cell, store=store)
    measure_spectrum(store, cell, measure, base=base)
    folder = store.layout.measure(cell.fingerprint, measure.fingerprint)
    rows: list[dict[str, Any]] = pq.read_table(folder / "spectrum.parquet").to_pylist()
    return rows


def test_a_record_sums_up_its_table_and_is_made_once(tmp_path: Path) -> None:
    base, store, cell = train_cell(tmp_path, LoraSpec(rank=2, alpha=4.0, targets=("q_proj",)))
    rows = measured_rows(base, store, cell)
    base.reset()
    record = measure_spectrum(store, cell, SpectrumMeasure(), base=base)
    assert record.schema == "spectrum/1"
    result = record.result
    assert result["is_factored"] is True
    assert (result["num_matrices"], result["num_changed"]) == (14, 2)
    changed = [row for row in rows if row["stable_rank"] is not None]
    assert {row["kind"] for row in changed} == {"attention.query"}
    assert result["stable_rank"] == pytest.approx(sum(r["stable_rank"] for r in changed) / 2)
    assert result["intruders_08"] == sum(row["intruders_08"] for row in rows)
    assert result["kinds"]["mlp.up"]["stable_rank"] is None
    assert result["kinds"]["attention.query"]["num_changed"] == 2
    unchanged = next(row for row in rows if row["kind"] == "mlp.up")
    assert (unchanged["spectral_norm"], unchanged["num_vectors"]) == (0.0, 10)
    assert [unchanged[f"intruders_{e}"] for e in ("03", "05", "06", "08")] == [0, 0, 0, 0]


def test_a_matrix_of_zeros_has_no_vectors_to_compare() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    zeros, full = {name: torch.zeros(6, 4)}, {name: torch.ones(6, 4)}
    for before, after in ((zeros, zeros), (zeros, full), (full, zeros)):
        (row,) = pair_spectra(before, after)
        assert row.num_vectors == 0
        assert {row.intruders_03, row.intruders_05, row.intruders_06, row.intruders_08} == {None}


def test_a_second_cell_reads_the_base_vectors_that_the_first_one_left(tmp_path: Path) -> None:
    base, store, cell = train_cell(tmp_path, LoraSpec(rank=2, alpha=4.0, targets=("q_proj",)))
    rows = measured_rows(base, store, cell)
    folder = vectors_folder(store, cell)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"model.layers.{layer}.self_attn.q_proj.weight.safetensors" for layer in (0, 1)
    ]
    again = list(adapter_spectra(base.pristine, verified_factors(store, cell)))
    assert [row._asdict() for row in again] == rows


@pytest.mark.parametrize("lora", [None, LORA, replace(LORA, dora=True, train_embeddings=True)])
def test_two_folders_are_compared_as_a_cell_and_its_base_are(
    tmp_path: Path, lora: LoraSpec | None
) -> None:
    base, store, cell = train_cell(tmp_path, lora)
    rows = measured_rows(base, store, cell)
    compared = list(folder_spectra(tmp_path / "base", store.layout.cell(cell.fingerprint)))
    order = sorted(rows, key=lambda row: (row["layer"], row["tensor"]))
    assert [row._asdict() for row in compared] == order


def test_each_expert_of_a_stacked_weight_has_a_row() -> None:
    name = "model.layers.1.mlp.experts.down_proj"
    before = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[1] += 0.1 * torch.outer(torch.ones(20), torch.ones(12))
    rows = list(pair_spectra({name: before}, {name: after}))
    assert [row.tensor for row in rows] == [f"{name}[{expert}]" for expert in range(3)]
    assert [row.layer for row in rows] == [1, 1, 1]
    assert rows[1].stable_rank == pytest.approx(1, abs=1e-6)
    assert (rows[0].stable_rank, rows[0].spectral_norm) == (None, 0.0)


def test_matrices_outside_the_layers_and_vectors_have_no_row() -> None:
    weights = {
        "model.embed_tokens.weight": torch.ones(4, 3),
        "lm_head.weight": torch.ones(4, 3),
        "model.layers.0.input_layernorm.weight": torch.ones(3),
    }
    assert list(pair_spectra(weights, weights)) == []


def spectra_of_pair(before: Tensor, after: Tensor) -> list[SpectrumRow]:
    return list(pair_spectra({QUERY: before}, {QUERY: after}))


def spectra_of_adapter(before: Tensor, factors: LoraFactors) -> list[SpectrumRow]:
    return list(adapter_spectra({QUERY: before}, {QUERY: factors}))


@pytest.mark.parametrize(
    ("compare", "error", "message"),
    [
        (
            lambda: spectra_of_pair(torch.ones(4, 3), torch.full((4, 3), math.nan)),
            DataError,
            f"{QUERY}: the tuned model's weight holds NaN",
        ),
        (
            lambda: spectra_of_pair(torch.full((4, 3), math.inf), torch.ones(4, 3)),
            DataError,
            f"{QUERY}: the base model's weight holds NaN",
        ),
        (
            lambda: spectra_of_pair(torch.ones(4, 3), torch.ones(3, 4)),
            StoreError,
            f"weights: '{QUERY}' has shape (4, 3) before and (3, 4) after",
        ),
        (
            lambda: spectra_of_adapter(torch.ones(4, 3), random_factors(4, 5, 2)),
            StoreError,
            f"adapter: its change of '{QUERY}' has shape (4, 5), the base's weight (4, 3)",
        ),
        (
            lambda: list(adapter_spectra({}, {QUERY: random_factors(4, 5, 2)})),
            StoreError,
            f"adapter: it changes '{QUERY}', which the base model does not have",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    compare: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        compare()
    assert message in str(raised.value)


def test_factors_are_much_faster_than_the_dense_product() -> None:
    factors = random_factors(1024, 1024, 16)

    def seconds_of(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    factored = min(seconds_of(lambda: spectrum_of(factors)) for _ in range(5))
    assert seconds_of(lambda: torch.linalg.svdvals(dense(factors).float())) > 100 * factored


def test_bfloat16_weights_are_compared_in_float32(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(8, 6, generator=generator).bfloat16()
    after = (before + torch.randn(8, 6, generator=generator)).bfloat16()
    save_file({QUERY: before}, tmp_path / "a.safetensors")
    (row,) = pair_spectra(
        TensorFolder(tmp_path), {QUERY: after}, vectors=BaseVectors(tmp_path / "vectors")
    )
    values = torch.linalg.svdvals(after.double() - before.double())
    assert row.spectral_norm == pytest.approx(values[0].item(), rel=1e-7)
    assert row.nuclear_norm == pytest.approx(values.sum().item(), rel=1e-7)
