"""What was known about a dataset before anything was trained on it?

In: the tables `datasets` (under each base model), `descriptions` (texts alone) and `similarities`
(to each benchmark). Out: one value per property and what it belongs to. Properties that are ratios
by nature (perplexities, lengths) are natural logarithms, so that subtracting a mean compares
factors. A property that is not measured is absent, never 0.
"""

from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from sft_atlas.analyze.perplexity import perplexities

SAME: Final = ""
"""In the columns `model` and `benchmark`: the value is the same for all of them."""

PERPLEXITY: Final = "log_perplexity"
LENGTH: Final = "log_length"
SIMILARITY: Final = "similarity"

VALUES: Final = ("predictor", "model", "data", "samples", "benchmark", "value")


class Predictor(NamedTuple):
    """A property of the data that may go with gain."""

    key: str
    """Name in tables and in columns of points."""
    label: str
    """What a reader calls it."""
    axis: str
    """Title of an axis that shows it; of exp(value) where `is_log`."""
    is_log: bool
    """Values are natural logarithms."""
    is_main: bool
    """Compared on each benchmark; the others on the mean over benchmarks alone."""


class Properties(NamedTuple):
    """What is measured, in the order of the report, and its values (columns `VALUES`)."""

    predictors: tuple[Predictor, ...]
    values: pd.DataFrame


_UNDER_MODEL: Final = (
    Predictor(PERPLEXITY, "answer perplexity", "Answer perplexity", True, True),
    Predictor(LENGTH, "length in tokens", "Mean length, tokens", True, True),
    Predictor("log_perplexity_prompt", "prompt perplexity", "Prompt perplexity", True, False),
    Predictor(
        "log_perplexity_whole",
        "perplexity of prompt and answer",
        "Perplexity of prompt and answer",
        True,
        False,
    ),
    Predictor(
        "log_perplexity_sample",
        "answer perplexity, mean over samples",
        "Answer perplexity, mean over samples",
        True,
        False,
    ),
    Predictor(
        "bits_per_byte", "answer bits per byte", "Bits per byte of the answers", False, False
    ),
    Predictor("ifd", "instruction difficulty (IFD)", "Mean IFD", False, False),
)
_PERPLEXITIES: Final = {
    PERPLEXITY: "answer_token_perplexity",
    "log_perplexity_sample": "answer_sample_perplexity",
    "log_perplexity_prompt": "prompt_token_perplexity",
    "log_perplexity_whole": "whole_token_perplexity",
}
"""Which of `perplexity.perplexities` a property is the logarithm of."""
_OF_TEXTS: Final = (
    Predictor("distinct_2", "distinct word pairs", "Share of distinct word pairs", False, False),
    Predictor("compression_ratio", "compression ratio", "Compression ratio", False, False),
    Predictor("embedding_spread", "spread of embeddings", "Spread of embeddings", False, False),
)


def data_properties(
    datasets: pd.DataFrame, descriptions: pd.DataFrame, similarities: pd.DataFrame
) -> Properties:
    """Collect every property that at least one dataset has."""
    frames = [*_under_models(datasets), *_of_texts(descriptions)]
    similar, compared = _to_benchmarks(similarities)
    frames += compared
    found = {str(frame["predictor"].iloc[0]) for frame in frames}
    known = (*_UNDER_MODEL[:2], *similar, *_UNDER_MODEL[2:], *_OF_TEXTS)
    values = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(VALUES))
    return Properties(tuple(item for item in known if item.key in found), values)


def _under_models(datasets: pd.DataFrame) -> list[pd.DataFrame]:
    """Values that depend on dataset and base model: from the sums of `dataset/2`."""
    if datasets.empty:
        return []

    variants = pd.DataFrame(
        [perplexities(datasets.loc[index].to_dict()) for index in datasets.index],
        index=datasets.index,
    ).astype(float)
    measured = {key: np.log(variants[name]) for key, name in _PERPLEXITIES.items()}
    measured["bits_per_byte"] = variants["answer_token_bits_per_byte"]
    measured[LENGTH] = np.log(datasets["mean_tokens"].astype(float))
    if "ifd" in datasets:
        measured["ifd"] = datasets["ifd"].astype(float)
    return _kept(
        [
            datasets[["model", "data", "samples"]].assign(predictor=name, benchmark=SAME, value=row)
            for name, row in measured.items()
        ]
    )


def _of_texts(descriptions: pd.DataFrame) -> list[pd.DataFrame]:
    """Values that depend on the dataset alone."""
    names = [item.key for item in _OF_TEXTS if item.key in descriptions]
    labels = {"model": SAME, "benchmark": SAME}
    return _kept(
        [
            descriptions[["data", "samples"]].assign(
                predictor=name, value=descriptions[name].astype(float), **labels
            )
            for name in names
        ]
    )


def _to_benchmarks(similarities: pd.DataFrame) -> tuple[list[Predictor], list[pd.DataFrame]]:
    """Mean cosine and coverage by each embedder; the first embedder's cosine is a main property."""
    if similarities.empty:
        return [], []
    predictors, frames = [], []
    for number, (embedder, rows) in enumerate(similarities.groupby("embedder", sort=False)):
        for column, name in (("mean_cosine", "similarity"), ("item_coverage", "item coverage")):
            key = name.replace(" ", "_") + (f":{embedder}" if number else "")
            label = f"{name} ({embedder})"
            is_main = number == 0 and column == "mean_cosine"
            axis = f"{label.capitalize()}, cosine"
            predictors.append(Predictor(key, label, axis, False, is_main))
            places = rows[["model", "data", "samples", "benchmark"]].fillna({"model": SAME})
            frames.append(places.assign(predictor=key, value=rows[column].astype(float)))
    return predictors, _kept(frames)


def _kept(frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Only finite values, and only properties that have any."""
    finite = [frame[np.isfinite(frame["value"])][list(VALUES)] for frame in frames]
    return [frame for frame in finite if not frame.empty]


def attach(
    points: pd.DataFrame, properties: Properties, *, common: list[str], average: str
) -> pd.DataFrame:
    """Add one column per predictor to rows with model, data, samples and benchmark.

    Where a dataset was measured at several sizes, that of the training set is taken if it is
    there, else the largest. For the mean over benchmarks (`benchmark == average`), a property that
    belongs to a benchmark is averaged over the `common` ones; it is NaN where one of them lacks it.
    """
    columns = {}
    for predictor in properties.predictors:
        values = properties.values[properties.values["predictor"] == predictor.key]
        keys = ["data"]
        if (values["model"] != SAME).any():
            keys.append("model")
        if (values["benchmark"] != SAME).any():
            keys.append("benchmark")
            values = pd.concat([values, _mean_over(values, common).assign(benchmark=average)])
        largest = values.sort_values("samples", kind="stable").drop_duplicates(keys, keep="last")
        exact = values.drop_duplicates([*keys, "samples"], keep="last")
        columns[predictor.key] = _lookup(points, exact, [*keys, "samples"]).fillna(
            _lookup(points, largest, keys)
        )
    return points.assign(**columns)


def _mean_over(values: pd.DataFrame, common: list[str]) -> pd.DataFrame:
    places = ["predictor", "model", "data", "samples"]
    rows = values[values["benchmark"].isin(common)]
    means = rows.groupby(places, sort=False)["value"].agg(["mean", "size"]).reset_index()
    return means[means["size"] == len(common)].rename(columns={"mean": "value"})


def _lookup(points: pd.DataFrame, values: pd.DataFrame, keys: list[str]) -> "pd.Series[float]":
    joined = points[keys].merge(values[[*keys, "value"]], on=keys, how="left")
    return joined["value"].set_axis(points.index)
