"""Which runs does a published grid imply that are not in it?

In: the labels of the runs that a source has. Out: the labels of those that its own pattern says
should be there. A hole that has no row is seen by no count, and a comparison that misses one arm
looks complete. The one decision: a block is taken for a full product of models, data, methods and
epochs only where at most a tenth of that product is absent; what is sparser was not meant to be
one, and nothing is added.
"""

import itertools
from typing import Final

import pandas as pd

from sft_atlas.evidence.source import LABELS

MAX_ABSENT_SHARE: Final = 0.1

_AXES: Final = {
    "model": ("model", "family", "languages"),
    "data": ("data", "data_kind", "data_group", "samples"),
    "method": ("method", "method_kind"),
    "schedule": ("schedule", "horizon_epochs"),
    "epoch": ("epoch",),
    "seed": ("seed",),
}
"""What varies inside a block, and the labels that go with each."""


def implied_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """Return the labels (`source.LABELS`) of absent runs of the source's blocks.

    Epochs that some trajectory of a block has are expected of all of them.
    """
    is_base = labels["method"] == "base"
    frames = [_absent(block) for _, block in labels[~is_base].groupby("block", sort=True)]
    found = [frame for frame in frames if not frame.empty]
    if not found:
        return labels.iloc[:0][list(LABELS)]
    return pd.concat(found, ignore_index=True).astype(
        {name: labels[name].dtype for name in LABELS}
    )[list(LABELS)]


def _absent(block: pd.DataFrame) -> pd.DataFrame:
    levels = {
        axis: block.drop_duplicates(list(names))[list(names)] for axis, names in _AXES.items()
    }
    num_planned = 1
    for level in levels.values():
        num_planned *= len(level)
    if not 0 < num_planned - len(block) <= MAX_ABSENT_SHARE * num_planned:
        return block.iloc[:0]
    rows = itertools.product(
        *(level.itertuples(index=False, name=None) for level in levels.values())
    )
    names = list(itertools.chain.from_iterable(_AXES.values()))
    planned = pd.DataFrame([tuple(itertools.chain.from_iterable(row)) for row in rows])
    planned.columns = pd.Index(names)
    planned = planned.assign(block=block["block"].iloc[0])
    known = pd.MultiIndex.from_frame(block[list(_AXES)].astype("string").fillna(""))
    keys = pd.MultiIndex.from_frame(planned[list(_AXES)].astype("string").fillna(""))
    return planned[~keys.isin(known)]
