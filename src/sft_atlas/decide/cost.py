"""What does a choice cost on a GPU, before there is a study that would train it?

In: a model's name and choices of data, method, samples and epochs. Out: likely GPU-hours of
training, or nothing where neither a card nor the name tells the model's size. It is the arithmetic
of `study.cost` without what only a study knows; evaluation is not counted.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.catalog.cards import ModelCard, card_names, find_dataset, find_model
from sft_atlas.catalog.devices import find_device
from sft_atlas.errors import CatalogError
from sft_atlas.statistics.clusters import Floats
from sft_atlas.study.assumption import scenarios
from sft_atlas.study.cost import UNKNOWN_SAMPLE_TOKENS
from sft_atlas.study.model_folder import sized_card
from sft_atlas.study.shape import matmul_weights

DEVICE: Final = "h100"

_ODD: Final = re.compile(r"[^a-z0-9]+")
_SIZE: Final = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])")
_SECONDS: Final = 3600.0


@dataclass(frozen=True, kw_only=True)
class Price:
    """GPU-hours of some choices, and what they rest on."""

    gpu_hours: Floats
    """NaN where nothing tells it."""
    basis: str


def training_price(model: str, choices: pd.DataFrame, *, device: str = DEVICE) -> Price:
    """Estimate the training of choices with data, method_kind, samples and epoch.

    Likely values of `study.assumption`; 6N FLOPs per token, 4N for LoRA (Kaplan et al. 2020).
    Raises `CatalogError` for an unknown device.
    """
    peak = find_device(device).peak_flops
    card = model_card(model)
    if card is None:
        return Price(
            gpu_hours=np.full(len(choices), np.nan),
            basis="not known: no card and no name tells the model's size",
        )
    _, likely, _ = scenarios()
    per_sample = np.array([_sample_tokens(str(name)) for name in choices["data"]])
    samples = choices["samples"].to_numpy(dtype=np.float64)
    epochs = choices["epoch"].to_numpy(dtype=np.float64)
    tokens = per_sample * samples * epochs * likely.token_factor * likely.packing_factor
    factor = np.where(choices["method_kind"] == "lora", 4.0, 6.0)
    compute = tokens * factor * matmul_weights(card) / (peak * likely.train_utilisation)
    load = 2.0 * card.parameters / likely.load_bytes_per_second + likely.job_seconds
    hours: Floats = (compute * (1 + likely.checkpoint_fraction) + load) / _SECONDS
    return Price(
        gpu_hours=hours,
        basis=f"training alone, on one {device}, {card.parameters / 1e9:.1f} B parameters",
    )


def model_card(name: str) -> ModelCard | None:
    """Find a card by its name or by that of its repository, however written; else by the size that
    the name states.
    """
    wanted = _plain(name.rsplit("/", 1)[-1])
    for known in card_names("models"):
        card = find_model(known)
        tail = (card.source.hub or known).rsplit("/", 1)[-1]
        if wanted in (_plain(known), _plain(tail)):
            return card
    size = _SIZE.search(name.lower().replace("_", "-"))
    parameters = 0 if size is None else int(float(size.group(1)) * 1e9)
    return sized_card(name, parameters) if parameters else None


def _sample_tokens(data: str) -> float:
    for name in (data, data.replace("_", "-"), data.replace("_cleaned", "")):
        try:
            return find_dataset(name).tokens_per_sample
        except CatalogError:
            continue
    return UNKNOWN_SAMPLE_TOKENS


def _plain(name: str) -> str:
    return _ODD.sub("", name.lower())
