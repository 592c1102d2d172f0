"""Planted intruders are found, old directions are not, and peft counts the same."""

import copy
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import Tensor, nn

from sft_atlas.measure.intruders import (
    EPSILONS,
    BaseVectors,
    Intruders,
    count_intruders,
    leading_left_vectors,
    left_vectors,
)


def random_matrix(rows: int, columns: int, *, seed: int = 0, decay: float = 0.7) -> Tensor:
    """A matrix whose singular values fall as 1 / i^decay, with random directions."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator)).Q
    values = 10 / torch.arange(1, rank + 1) ** decay
    return left * values @ right.T


def plant(base: Tensor, strengths: list[float], *, seed: int = 1) -> Tensor:
    """Add one direction per strength (in spectral norms of the base), spread evenly over all old
    left vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.svd(base, full_matrices=False).U
    signs = torch.linalg.qr(torch.randn(left.shape[1], len(strengths), generator=generator)).Q
    right = torch.linalg.qr(torch.randn(base.shape[1], len(strengths), generator=generator)).Q
    return base + left @ signs * torch.tensor(strengths) * 10 @ right.T


def count(base: Tensor, tuned: Tensor, num_vectors: int = 10) -> Intruders:
    return count_intruders(tuned, left_vectors(base).vectors, num_vectors=num_vectors)


@pytest.mark.parametrize("shape", [(300, 300), (200, 400), (400, 200), (700, 700)])
@pytest.mark.parametrize("num_planted", [1, 3])
def test_exactly_the_planted_directions_are_intruders(
    shape: tuple[int, int], num_planted: int
) -> None:
    base = random_matrix(*shape)
    found = count(base, plant(base, [9.0, 7.0, 5.0][:num_planted]))
    assert found == Intruders(10, (num_planted,) * len(EPSILONS))


def test_a_direction_that_is_planted_below_the_leading_ones_is_not_seen() -> None:
    base = random_matrix(300, 300)
    assert count(base, plant(base, [0.001])).counts == (0, 0, 0, 0)


def test_a_small_change_of_every_weight_brings_no_intruder() -> None:
    base = random_matrix(300, 200)
    tuned = base + 1e-3 * torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
    assert count(base, tuned) == Intruders(10, (0, 0, 0, 0))


def test_a_larger_epsilon_never_counts_fewer() -> None:
    base = random_matrix(200, 200, decay=0.2)
    noise = torch.randn(200, 200, generator=torch.Generator().manual_seed(2))
    seen = set()
    for strength in (0.01, 0.03, 0.1, 0.3):
        counts = count(base, base + strength * noise).counts
        assert counts is not None
        assert list(counts) == sorted(counts)
        seen.add(counts)
    assert len(seen) > 1


def test_counts_do_not_depend_on_the_order_or_orientation_of_the_axes() -> None:
    base = random_matrix(200, 150, decay=0.3)
    tuned = plant(base, [1.5, 0.8]) + 0.05 * random_matrix(200, 150, seed=5, decay=0.0)
    expected = count(base, tuned)
    generator = torch.Generator().manual_seed(4)
    rows = torch.randperm(200, generator=generator)
    columns = torch.randperm(150, generator=generator)
    assert count(base[rows][:, columns], tuned[rows][:, columns]) == expected
    turn = torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(3))).Q
    assert count(turn @ base, turn @ tuned) == expected


def test_counts_equal_those_of_peft() -> None:
    lines: list[str] = []
    bases, adapted = peft_pair()
    with_adapter = copy.deepcopy(bases)
    model = get_peft_model(with_adapter, LoraConfig(r=4, target_modules=["0", "1", "2"]))
    expected = {}
    for name, strength in adapted.items():
        layer = model.base_model.model[int(name)]
        generator = torch.Generator().manual_seed(int(name))
        with torch.no_grad():
            for factor in (layer.lora_A["default"], layer.lora_B["default"]):
                factor.weight.copy_(torch.randn(factor.weight.shape, generator=generator))
                factor.weight.mul_(strength)
        tuned = layer.base_layer.weight + layer.get_delta_weight("default")
        found = count(layer.base_layer.weight.detach(), tuned.detach())
        assert found.counts is not None
        expected[name] = found.counts[EPSILONS.index(0.5)]
    reduce_intruder_dimension(model, top_k=10, threshold_epsilon=0.5, logging_sink=lines.append)
    theirs = {}
    for line in lines:
        if match := re.search(r"(\d): (?:No intruders|Intruders: (\d+))$", line):
            theirs[match[1]] = int(match[2] or 0)
    assert theirs == expected
    assert len(set(theirs.values())) > 1


def peft_pair() -> tuple[nn.Sequential, dict[str, float]]:
    """Three layers of unequal shape, and how strongly each is changed."""
    layers = nn.Sequential(nn.Linear(60, 80), nn.Linear(80, 50), nn.Linear(50, 50))
    for seed, layer in enumerate(layers):
        with torch.no_grad():
            layer.weight.copy_(random_matrix(*layer.weight.shape, seed=seed))
    return layers, {"0": 0.01, "1": 0.3, "2": 1.0}


@pytest.mark.parametrize("shape", [(800, 800), (600, 1500), (1500, 600)])
def test_leading_vectors_of_a_large_matrix_equal_a_full_decomposition(
    shape: tuple[int, int],
) -> None:
    matrix = random_matrix(*shape)
    top, full = leading_left_vectors(matrix, 10), left_vectors(matrix)
    cosines = (top.vectors * full.vectors[:, :10]).sum(dim=0).abs()
    assert cosines.min() > 1 - 1e-4
    torch.testing.assert_close(top.values, full.values[:10], rtol=1e-4, atol=0)
    assert torch.equal(leading_left_vectors(matrix, 10).vectors, top.vectors)


def test_equal_singular_values_are_decomposed_in_full() -> None:
    """A Krylov space cannot tell them apart, and says so."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(600, 600, generator=generator)).Q
    values = torch.cat([torch.full((20,), 5.0), torch.ones(580)])
    matrix = left * values
    found = leading_left_vectors(matrix, 10)
    assert torch.equal(found.vectors, left_vectors(matrix).vectors[:, :10])


def test_vectors_of_singular_value_zero_are_no_directions() -> None:
    base = random_matrix(40, 40)
    flat = torch.outer(torch.ones(40), torch.ones(40))
    assert leading_left_vectors(flat, 10).vectors.shape == (40, 1)
    assert count(base, flat).num_vectors == 1
    assert count(base, torch.zeros(40, 40)) == Intruders(0, None)
    assert count(torch.zeros(40, 40), base) == Intruders(0, None)


def test_base_vectors_are_computed_once_and_leave_memory_at_the_limit() -> None:
    first, second = random_matrix(30, 20), random_matrix(30, 20, seed=1)
    vectors = BaseVectors(max_bytes=30 * 20 * 4)
    kept = vectors.left("first", first)
    assert vectors.left("first", first) is kept
    vectors.left("second", second)
    assert vectors.num_bytes == 30 * 20 * 4
    assert vectors.left("first", first) is not kept
    assert torch.equal(vectors.left("first", first), kept)


def test_stored_base_vectors_are_read_by_a_later_process(tmp_path: Path) -> None:
    matrix = random_matrix(30, 20)
    computed = BaseVectors(tmp_path).left("w", matrix)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    assert torch.equal(BaseVectors(tmp_path).left("w", matrix), computed)
    assert path.stat().st_mtime_ns == written


def test_stored_vectors_that_are_damaged_or_of_another_matrix_are_made_anew(
    tmp_path: Path,
) -> None:
    matrix, other = random_matrix(30, 20), random_matrix(30, 20, seed=1)
    computed = BaseVectors(tmp_path).left("w", matrix)
    (path,) = tmp_path.iterdir()
    assert torch.equal(BaseVectors(tmp_path).left("w", other), left_vectors(other).vectors)
    for damage in (b"short", path.read_bytes()[:-1] + b"\x7f"):
        path.write_bytes(damage)
        assert torch.equal(BaseVectors(tmp_path).left("w", matrix), computed)


def test_no_more_files_are_written_than_allowed(tmp_path: Path) -> None:
    vectors = BaseVectors(tmp_path, max_file_bytes=30 * 20 * 4)
    for seed in (0, 1):
        vectors.left(f"w{seed}", random_matrix(30, 20, seed=seed))
    assert [path.name for path in tmp_path.iterdir()] == ["w0.safetensors"]
