"""Do cells lie by their base model, or by their data?

In: centred vectors of cells and their labels. Out: which share of all squared distances lies
between the groups of a label, and whether training on the same data moves different base models in
the same direction. Both look at the whole space, not at a flat picture of it.
"""

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.analyze.likelihood_space import cosines, displacements
from sft_atlas.statistics.clusters import MIN_CLUSTERS, Floats, Ints, codes, percentile_interval

GROUPINGS: Final = ("family", "model", "data", "method", "samples", "epoch")
RELATIONS: Final = ("same model, other data", "same data, other model", "neither the same")


def group_shares(q: Floats, labels: pd.DataFrame) -> pd.DataFrame:
    """Return for each label the share of the squared distances that lies between its groups.

    Over tuned cells. Columns: grouping, num_groups, num_cells, share (between sum of squares over
    total, in [0, 1]) and chance, what groups of these sizes have when nothing is behind them:
    (groups - 1) / (cells - 1). Labels with one group, or a group per cell, are left out.
    """
    tuned = _is_tuned(labels)
    rows, here = q[tuned], labels[tuned]
    rows = rows - rows.mean(axis=0) if len(rows) else rows
    total = float((rows**2).sum())
    found = []
    for grouping in GROUPINGS:
        group = pd.factorize(here[grouping])[0]
        num_groups = int(group.max(initial=-1) + 1)
        if total == 0 or (group < 0).any() or not 1 < num_groups < len(rows):
            continue
        sizes = np.bincount(group)
        sums = np.zeros((num_groups, rows.shape[1]))
        np.add.at(sums, group, rows)
        between = float(((sums**2).sum(axis=1) / sizes).sum())
        found.append(
            {
                "grouping": grouping,
                "num_groups": num_groups,
                "num_cells": len(rows),
                "share": between / total,
                "chance": (num_groups - 1) / (len(rows) - 1),
            }
        )
    return pd.DataFrame(found)


def displacement_agreement(
    q: Floats, bases: Ints, labels: pd.DataFrame, *, num_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Return how alike the directions are in which training moved cells off their base models.

    Columns: relation (of `RELATIONS`), cosine (mean over pairs of cells), low, high (95 %; base
    models and datasets are drawn, NaN below three of either), num_pairs. Pairs agree in method,
    samples and epoch. 1: the same direction; 0: unrelated. `bases[i]` is the row of i's base model;
    cells without one, and cells that did not move, are left out.
    """
    moved = np.flatnonzero(_is_tuned(labels) & (bases >= 0))
    vectors = displacements(q, np.maximum(bases, 0))[moved]
    is_moved = np.linalg.norm(vectors, axis=1) > 0
    moved, vectors = moved[is_moved], vectors[is_moved]
    if len(moved) < 2:
        return pd.DataFrame()
    here = labels.iloc[moved]
    names = ("model", "data", "method", "samples", "epoch")
    alike = {name: codes(here[name].astype(str)) for name in names}
    same = {name: code[:, None] == code[None, :] for name, code in alike.items()}
    comparable = np.triu(same["method"] & same["samples"] & same["epoch"], 1)
    angle = cosines(vectors)
    masks = (
        same["model"] & ~same["data"],
        ~same["model"] & same["data"],
        ~same["model"] & ~same["data"],
    )
    found = []
    for relation, mask in zip(RELATIONS, masks, strict=True):
        first, second = np.nonzero(mask & comparable)
        if first.size:
            chosen = angle[first, second]
            ends = [(alike[name][first], alike[name][second]) for name in ("model", "data")]
            low, high = _pair_bounds(chosen, *ends, num_resamples=num_resamples, seed=seed)
            row = {"relation": relation, "cosine": float(chosen.mean()), "low": low, "high": high}
            found.append(row | {"num_pairs": chosen.size})
    return pd.DataFrame(found)


def _pair_bounds(
    values: Floats,
    models: tuple[Ints, Ints],
    datasets: tuple[Ints, Ints],
    *,
    num_resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Return 95 % bounds of the mean over pairs of cells; NaN below three models or datasets.

    Models and datasets are drawn with replacement. A pair counts as often as everything that it
    rests on was drawn: a model or dataset that both cells share counts once.
    """
    rng, sizes = np.random.default_rng([seed, 0xD15]), []
    drawn = []
    for ends in (models, datasets):
        size = int(max(side.max() for side in ends)) + 1
        sizes.append(size)
        drawn.append(rng.multinomial(size, np.full(size, 1 / size), size=num_resamples))
        if np.unique(np.concatenate(ends)).size < MIN_CLUSTERS:
            return float("nan"), float("nan")
    # Pairs that rest on the same models and datasets have the same weight: they are one sum.
    shape = (sizes[0], sizes[0], sizes[1], sizes[1])
    keys = np.ravel_multi_index((*models, *datasets), shape)
    kept, group = np.unique(keys, return_inverse=True)
    sums, counts = np.bincount(group, weights=values), np.bincount(group)
    weights = np.ones((num_resamples, kept.size))
    left_model, right_model, left_data, right_data = np.unravel_index(kept, shape)
    sides = ((left_model, right_model), (left_data, right_data))
    for draws, (left, right) in zip(drawn, sides, strict=True):
        weights *= draws[:, left] * np.where(left == right, 1, draws[:, right])
    with np.errstate(invalid="ignore", divide="ignore"):
        bounds = percentile_interval((weights @ sums) / (weights @ counts))
    return bounds or (float("nan"), float("nan"))


def _is_tuned(labels: pd.DataFrame) -> NDArray[np.bool_]:
    tuned: NDArray[np.bool_] = (labels["epoch"] > 0).fillna(False).to_numpy(dtype=bool)
    return tuned
