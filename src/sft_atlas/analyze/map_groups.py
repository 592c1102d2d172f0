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

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

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
        codes = pd.factorize(here[grouping])[0]
        num_groups = int(codes.max(initial=-1) + 1)
        if total == 0 or (codes < 0).any() or not 1 < num_groups < len(rows):
            continue
        sizes = np.bincount(codes)
        sums = np.zeros((num_groups, rows.shape[1]))
        np.add.at(sums, codes, rows)
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


def displacement_agreement(q: Floats, bases: Ints, labels: pd.DataFrame) -> pd.DataFrame:
    """Return how alike the directions are in which training moved cells off their base models.

    Columns: relation (of `RELATIONS`), cosine (mean over pairs of cells), num_pairs. Pairs agree in
    method, samples and epoch. 1: the same direction; 0: unrelated. `bases[i]` is the row of i's
    base model; cells without one, and cells that did not move, are left out.
    """
    moved = np.flatnonzero(_is_tuned(labels) & (bases >= 0))
    vectors = displacements(q, np.maximum(bases, 0))[moved]
    is_moved = np.linalg.norm(vectors, axis=1) > 0
    moved, vectors = moved[is_moved], vectors[is_moved]
    if len(moved) < 2:
        return pd.DataFrame()
    here = labels.iloc[moved]
    alike = {
        name: pd.factorize(here[name])[0]
        for name in ("model", "data", "method", "samples", "epoch")
    }
    same = {name: codes[:, None] == codes[None, :] for name, codes in alike.items()}
    comparable = np.triu(same["method"] & same["samples"] & same["epoch"], 1)
    angle = cosines(vectors)
    masks = (
        same["model"] & ~same["data"],
        ~same["model"] & same["data"],
        ~same["model"] & ~same["data"],
    )
    found = []
    for relation, mask in zip(RELATIONS, masks, strict=True):
        chosen = angle[mask & comparable]
        if chosen.size:
            found.append(
                {"relation": relation, "cosine": float(chosen.mean()), "num_pairs": chosen.size}
            )
    return pd.DataFrame(found)


def _is_tuned(labels: pd.DataFrame) -> NDArray[np.bool_]:
    tuned: NDArray[np.bool_] = (labels["epoch"] > 0).fillna(False).to_numpy(dtype=bool)
    return tuned
