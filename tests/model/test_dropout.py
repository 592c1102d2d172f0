"""Dropout's masks are as random as they should be, and know nothing of layout or company."""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sft_atlas.errors import StudyError
from sft_atlas.model.dropout import dropout_seeds, dropped, layer_key, place_tokens
from sft_atlas.model.lora import add_lora, lora_state
from sft_atlas.model.training_pass import summed_losses
from sft_atlas.study.spec import LoraSpec
from tiny import build_model, build_rows

NAME = "model.layers.0.self_attn.q_proj"
SMALLEST_P = 1e-3
"""All that is random here is fixed: a test that passes once passes always."""

Mask = NDArray[np.bool_]


def places(num_samples: int, num_positions: int) -> tuple[Tensor, Tensor]:
    shape = (num_samples, num_positions)
    return (
        torch.arange(num_samples)[:, None].expand(shape),
        torch.arange(num_positions).expand(shape),
    )


def mask(
    rate: float = 0.5,
    *,
    seed: int = 0,
    step: int = 0,
    name: str = NAME,
    shape: tuple[int, int, int] = (8, 64, 512),
) -> Mask:
    """Which values are zeroed, axes sample, position, column."""
    with dropout_seeds([(seed, step)]):
        place_tokens(*places(*shape[:2]))
        return (dropped(torch.ones(shape), rate=rate, layer=layer_key(name)) == 0).numpy()


def mixed(word: int) -> int:
    """degski's 64-bit finaliser, as it is published."""
    for _ in range(2):
        word ^= word >> 32
        word = word * 0xD6E8FEB86659FD93 % 2**64
    return word ^ (word >> 32)


def level(seed: int, step: int, sample: int, position: int, name: str, column: int) -> int:
    """The number from 0 to 65,535 that decides about one value, by whole numbers of any size."""
    start = 0x9E3779B97F4A7C15
    key = mixed((seed + start) % 2**64)
    for part in (step, sample, position):
        key = mixed(key ^ part)
    layer = int.from_bytes(hashlib.sha256(f"dropout/{name}".encode()).digest()[:8], "big") >> 1
    word = mixed(mixed(key ^ layer) ^ mixed((column // 4 + start) % 2**64))
    lane = word >> 16 * (column % 4) & 0xFFFF
    return (lane + 32_768) % 65_536  # as a signed number, counted from the smallest


@pytest.mark.parametrize(("seed", "step", "rate"), [(0, 0, 0.1), (7, 10**6, 0.5), (2**31, 3, 3e-3)])
def test_masks_are_those_of_the_published_hash(seed: int, step: int, rate: float) -> None:
    found = mask(rate, seed=seed, step=step, shape=(3, 5, 27))
    expected = [
        [
            [level(seed, step, s, p, NAME, c) < round(rate * 65_536) for c in range(27)]
            for p in range(5)
        ]
        for s in range(3)
    ]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_every_column_position_and_sample_is_dropped_as_often(rate: float) -> None:
    found = mask(rate)
    share = round(rate * 65_536) / 65_536
    for axes in ((), (0,), (1,), (2,), (0, 1)):
        others = tuple(axis for axis in range(3) if axis not in axes)
        counts, num = found.sum(axis=others).ravel(), math.prod(found.shape[a] for a in others)
        z = (counts - num * share) / math.sqrt(num * share * (1 - share))
        assert SMALLEST_P < stats.chi2.sf((z**2).sum(), len(z)) < 1 - SMALLEST_P


def pairs_of_masks() -> Iterator[tuple[str, Mask, Mask]]:
    first = mask()
    for lag in (1, 2, 3, 4, 5, 8, 64, 256):
        yield f"columns {lag} apart", first[..., lag:], first[..., :-lag]
    for lag in (1, 2, 16, 32):
        yield f"positions {lag} apart", first[:, lag:], first[:, :-lag]
    for lag in (1, 2, 4):
        yield f"samples {lag} apart", first[lag:], first[:-lag]
    for number in (1, 2, 256, 2**20):
        yield f"step {number}", first, mask(step=number)
        yield f"seed {number}", first, mask(seed=number)
    yield "seed and step exchanged", mask(seed=1, step=2), mask(seed=2, step=1)
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.q_proj"):
        yield name, first, mask(name=name)
    # The sample of one is the position of the other.
    square = mask(shape=(64, 64, 64))
    yield "sample and position exchanged", square, square.transpose(1, 0, 2)


def test_no_mask_tells_of_another() -> None:
    p_values = []
    for what, one, other in pairs_of_masks():
        agreements = np.count_nonzero(one == other)
        exempt = np.count_nonzero(np.eye(64)) * 64 if "and position" in what else 0
        p = stats.binomtest(agreements - exempt, one.size - exempt, 0.5).pvalue
        assert p > SMALLEST_P, what
        p_values.append(p)
    assert stats.kstest(p_values, "uniform").pvalue > SMALLEST_P


@pytest.mark.parametrize("rows", ["positions", "samples", "steps", "layers"])
def test_four_values_in_a_rectangle_are_independent(rows: str) -> None:
    """A hash of (row ^ column) that mixed too little would give rectangles an even parity."""
    if rows == "positions":
        bits = mask(shape=(1, 256, 1024))[0]
    elif rows == "samples":
        bits = mask(shape=(256, 1, 1024))[:, 0]
    elif rows == "steps":
        bits = np.stack([mask(step=step, shape=(1, 1, 1024))[0, 0] for step in range(256)])
    else:
        names = (f"model.layers.{layer}.mlp.up_proj" for layer in range(256))
        bits = np.stack([mask(name=name, shape=(1, 1, 1024))[0, 0] for name in names])
    signs = bits * 2.0 - 1
    products = (signs @ signs.T)[np.triu_indices(256, k=1)] / math.sqrt(1024)
    # Sums of squares of inner products count such rectangles; each square has variance 2 - 2/n.
    z = (products @ products - len(products)) / math.sqrt(2 * len(products))
    assert abs(z) < stats.norm.isf(SMALLEST_P / 2)


def test_what_stays_is_scaled_by_the_share_that_stays() -> None:
    x = torch.randn(8, 64, 512, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with dropout_seeds([(0, 0)]):
        place_tokens(*places(8, 64))
        y = dropped(x, rate=0.25, layer=layer_key(NAME))
    is_zeroed = torch.from_numpy(mask(0.25))
    assert torch.equal(y == 0, is_zeroed)
    torch.testing.assert_close(y, torch.where(is_zeroed, 0, x / 0.75))
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(is_zeroed, 0, torch.full_like(x, 1 / 0.75)))


def test_a_token_keeps_its_mask_wherever_it_lies() -> None:
    """Padded, packed, turned round, behind another run, cut into passes, or flat."""
    lengths = [7, 3, 5]
    alone = mask(0.3, seed=4, step=2, shape=(3, 7, 21))
    expected = {(s, p): alone[s, p] for s in range(3) for p in range(lengths[s])}

    def drop(
        seeds: list[tuple[int, int]],
        samples: list[list[int]],
        positions: list[list[int]],
        *,
        flat: bool = False,
    ) -> Tensor:
        x = torch.ones(len(samples), len(samples[0]), 21)
        with dropout_seeds(seeds):
            place_tokens(torch.tensor(samples), torch.tensor(positions))
            return dropped(x.flatten(0, 1) if flat else x, rate=0.3, layer=layer_key(NAME)) == 0

    packed = [(s, p) for s in (2, 0, 1) for p in range(lengths[s])]
    line, places_ = [s for s, _ in packed], [p for _, p in packed]
    own = drop([(4, 2)], [line], [places_])[0]
    beside = drop([(4, 3), (4, 2)], [line[::-1], line], [places_[::-1], places_])
    padded = drop([(4, 2)], [[*line, -1, -1]], [[*places_, 0, 0]])[0]
    flat = drop([(4, 2)], [line], [places_], flat=True)
    parts = torch.cat([drop([(4, 2)], [[place]], [[p]])[0] for place, p in packed])
    for found in (own, beside[1], padded, flat, parts):
        for row, token in zip(found.numpy(), packed, strict=False):
            assert np.array_equal(row, expected[token])
    assert not torch.equal(beside[0].flip(0), beside[1])


def test_a_layer_that_is_recomputed_drops_the_same() -> None:
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    x = torch.ones(2, 4, 16, requires_grad=True)

    def layer(x: Tensor) -> Tensor:
        return dropped(torch.tanh(x @ weight), rate=0.5, layer=layer_key(NAME))

    gradients = []
    for recomputed in (False, True):
        x.grad = weight.grad = None
        with dropout_seeds([(0, 0), (1, 0)]):
            place_tokens(*places(2, 4))
            y = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
            torch.autograd.backward(y.square().sum())
        gradients.append((x.grad, weight.grad))
    for one, other in zip(*gradients, strict=True):
        assert one is not None and other is not None and one.any()
        assert torch.equal(one, other)


def adapter_gradients(
    passes: list[list[int]], *, step: int = 0, packed: bool = True
) -> tuple[float, dict[str, Tensor]]:
    model = build_model()
    add_lora(model, LoraSpec(rank=4, alpha=8.0, dropout=0.4), seed=0)
    for name, tensor in lora_state(model).items():
        if "lora_B" in name:
            tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    model.train()
    total = 0.0
    for indices in passes:
        with dropout_seeds([(0, step)]):
            loss = summed_losses(model, [(build_rows(), indices)], packed=packed).sum()
            torch.autograd.backward(loss)
        total += loss.item()
    return total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_a_step_is_the_same_in_every_layout() -> None:
    loss, gradients = adapter_gradients([[3, 8, 1, 12]])
    assert len(gradients) == 28
    for passes, packed in (
        ([[12, 1, 3, 8]], True),
        ([[3, 8], [1, 12]], True),
        ([[8, 12, 3, 1]], False),
        ([[3], [8], [1], [12]], False),
    ):
        found, others = adapter_gradients(passes, packed=packed)
        assert found == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            assert (others[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    other, _ = adapter_gradients([[3, 8, 1, 12]], step=1)
    assert other != pytest.approx(loss, rel=1e-3)


def test_training_without_saying_what_is_trained_is_an_error() -> None:
    model = build_model()
    add_lora(model, LoraSpec(rank=4, alpha=8.0, dropout=0.4), seed=0)
    ids = torch.arange(2, 8)[None]
    assert model(input_ids=ids).logits.isfinite().all(), "evaluation needs no key"
    with pytest.raises(RuntimeError) as caught:
        model.train()(input_ids=ids)
    assert str(caught.value) == (
        "dropout: an adapter with dropout is trained, but nobody said which samples the pass "
        "holds; expected `dropout_seeds` around it and `place_tokens` before it. Call both, or "
        "model.eval()."
    )
    with dropout_seeds([(0, 0)]), pytest.raises(RuntimeError, match="nobody said which samples"):
        model(input_ids=ids)
    place_tokens(*places(1, 6))
    with pytest.raises(RuntimeError, match="nobody said which samples"):
        model(input_ids=ids)


def test_a_layer_that_sees_chosen_tokens_is_refused() -> None:
    with dropout_seeds([(0, 0)]):
        place_tokens(*places(2, 6))
        with pytest.raises(StudyError) as caught:
            dropped(torch.ones(7, 3), rate=0.5, layer=0)
    assert str(caught.value) == (
        "dropout: a layer sees tokens in the layout (7,), but the pass holds (2, 6); expected each "
        "token once and in order. Train layers that see chosen tokens alone, as experts do, "
        "without dropout, or name other targets."
    )
