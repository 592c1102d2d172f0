"""Directions of training agree as much as was planted, and no more surely than models allow."""

import numpy as np
import pandas as pd
import pytest

from sft_atlas.analyze.map_groups import displacement_agreement


def moved(
    num_models: int, num_data: int, *, common: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Base models at random places, and cells off them: a share of each move is its data's."""
    rng = np.random.default_rng(seed)
    taught = rng.normal(size=(num_data, 300))
    rows, bases, labels = [], [], []
    for m in range(num_models):
        bases += [len(rows)] * (num_data + 1)
        rows.append(9 * rng.normal(size=300))
        labels.append((f"m{m}", "base", 0))
        own = rng.normal(size=(num_data, 300))
        rows += list(rows[-1] + common * taught + own)
        labels += [(f"m{m}", f"d{d}", 1) for d in range(num_data)]
    frame = pd.DataFrame(labels, columns=["model", "data", "epoch"])
    return np.array(rows), np.array(bases), frame.assign(method="full", samples=1)


def test_the_planted_agreement_is_found_with_bounds_around_it() -> None:
    table = displacement_agreement(*moved(4, 6, common=1.0)).set_index("relation")
    alike = table.loc["same data, other model"]
    assert alike["cosine"] == pytest.approx(0.5, abs=0.05) and alike["num_pairs"] == 6 * 6
    assert 0.3 < alike["low"] < alike["cosine"] < alike["high"] < 0.7
    for relation in ("same model, other data", "neither the same"):
        assert table.loc[relation, "low"] < 0 < table.loc[relation, "high"]


def test_agreement_that_is_not_there_is_not_shown_as_sure() -> None:
    sure = 0
    for seed in range(20):
        table = displacement_agreement(*moved(3, 5, common=0.0, seed=seed), num_resamples=200)
        sure += int((~((table["low"] <= 0) & (table["high"] >= 0))).sum())
    assert sure <= 3  # of 60


@pytest.mark.parametrize(("num_models", "num_data"), [(2, 5), (4, 2)])
def test_too_few_models_or_datasets_have_no_bounds(num_models: int, num_data: int) -> None:
    table = displacement_agreement(*moved(num_models, num_data, common=1.0))
    assert table["cosine"].notna().all()
    assert table[["low", "high"]].isna().all().all()


def test_bounds_do_not_depend_on_the_order_of_cells() -> None:
    q, bases, labels = moved(3, 4, common=0.5)
    order = np.random.default_rng(1).permutation(len(q))
    place = np.argsort(order)
    turned = displacement_agreement(
        q[order], place[bases[order]], labels.iloc[order].reset_index(drop=True)
    )
    straight = displacement_agreement(q, bases, labels)
    pd.testing.assert_frame_equal(turned, straight, atol=1e-12, rtol=0)
