"""The layer whose change goes most closely with gain is found where it was planted.

The estimate is the position of the strongest correlation. It is unbiased for peaks inside the
depth. In the outer tenths noise can move it one way only: it is drawn inwards by 0.01 to 0.09 (5 to
3 models, 10 datasets), and its interval still covers.
"""

import numpy as np
import pandas as pd
import pytest

from sft_atlas.analyze.layers import _correlations, _peak_positions
from sft_atlas.statistics.clusters import percentile_interval

NUM_LAYERS = 24
POSITIONS = (np.arange(NUM_LAYERS) + 0.5) / NUM_LAYERS
GRID = np.indices((5, 10)).reshape(2, -1)


def planted_change(rng: np.random.Generator, peak: float) -> tuple[pd.DataFrame, np.ndarray]:
    """Runs of 5 models on 10 datasets, and the change of their layers.

    Layers near the peak follow the gain; neighbours share half of their noise, and upper layers
    move more whatever is gained.
    """
    gain = rng.normal(size=10)[GRID[1]] + 0.5 * rng.normal(size=50)
    noise = rng.normal(size=(50, NUM_LAYERS))
    noise[:, 1:] = 0.5 * noise[:, :-1] + np.sqrt(0.75) * noise[:, 1:]
    follows = np.exp(-(((POSITIONS - peak) / 0.15) ** 2) / 2)
    level = 3 * POSITIONS + rng.normal(size=5)[GRID[0], None]
    rows = pd.DataFrame({"model": GRID[0], "data": GRID[1], "gain": gain}).astype(
        {"model": str, "data": str}
    )
    return rows, level + 0.8 * gain[:, None] * follows + noise


def estimates(peak: float, *, num_studies: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_studies):
        rows, matrix = planted_change(rng, peak)
        correlation, _ = _correlations(rows, matrix, num_resamples=1, seed=0)
        found.append(float(_peak_positions(correlation[None], POSITIONS)[0]))
    return np.array(found)


@pytest.mark.parametrize("peak", [0.3, 0.8])
def test_the_estimated_peak_is_unbiased(peak: float) -> None:
    found = estimates(peak, num_studies=60, seed=3)
    assert abs(found.mean() - peak) < 3 * found.std(ddof=1) / np.sqrt(found.size)
    assert found.std() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("peak", [0.3, 0.5, 0.6, 0.8])
def test_the_estimated_peak_is_unbiased_over_2000_studies(peak: float) -> None:
    found = estimates(peak, num_studies=2000, seed=4)
    error = found.std(ddof=1) / np.sqrt(found.size)
    assert abs(found.mean() - peak) < max(3 * error, 0.005)


@pytest.mark.parametrize(("peak", "inwards"), [(0.05, 1), (0.95, -1)])
def test_a_peak_at_an_end_is_drawn_inwards_a_little(peak: float, inwards: int) -> None:
    found = estimates(peak, num_studies=60, seed=5)
    assert 0.0 < inwards * (found.mean() - peak) < 0.05


@pytest.mark.parametrize("peak", [0.05, 0.6])
def test_the_interval_of_the_peak_covers_it(peak: float) -> None:
    rng = np.random.default_rng(6)
    covered, trials, half_layer = 0, 25, 0.5 / NUM_LAYERS
    for number in range(trials):
        rows, matrix = planted_change(rng, peak)
        _, draws = _correlations(rows, matrix, num_resamples=150, seed=number)
        interval = percentile_interval(_peak_positions(draws, POSITIONS))
        assert interval is not None
        covered += interval[0] - half_layer <= peak <= interval[1] + half_layer
    assert covered >= 0.93 * trials


def test_without_any_peak_the_position_is_left_open() -> None:
    rng = np.random.default_rng(7)
    widths = []
    for number in range(15):
        rows, matrix = planted_change(rng, peak=9.0)
        _, draws = _correlations(rows, matrix, num_resamples=150, seed=number)
        interval = percentile_interval(_peak_positions(draws, POSITIONS))
        assert interval is not None
        widths.append(interval[1] - interval[0])
    # The sentence calls a peak open where its interval is wider than half of the depth.
    assert np.mean(np.array(widths) > 0.5) >= 0.9
