"""How is the evidence drawn for how to train: which data, LoRA or full, how much, how long?

In: the answers of `properties_together`, `methods_compared`, `samples_and_epochs` and `left_out`.
Out: their charts and tables.
"""

from collections.abc import Iterator
from typing import Any, Final

import pandas as pd

from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.render import forms
from sft_atlas.render.exhibits import Chart, Choice, Frames, Table
from sft_atlas.render.section_rows import (
    MEAN,
    choices,
    estimates,
    has,
    joined,
    matrix,
    named,
    ordered,
    rests,
    saturation,
    table,
    with_choices,
)

_RESTS: Final = (("n_text", "Rests on"),)
_KINDS: Final = {
    "each": "single datasets",
    "all": "all merged",
    "leave-one-out": "all but one merged",
}


def together(frames: Frames) -> Iterator[Chart | Table]:
    """Draw what each property adds to the others, and list it."""
    found = frames.get("partial_effects")
    if found is None or not has(found, "label", "effect", "setting", "method", "benchmark"):
        return
    found = found.assign(benchmark=found["benchmark"].replace("*", "all benchmarks together"))
    drawn = found[found["effect"].notna()]
    rows = estimates(drawn, "effect").assign(label=drawn["label"].astype(str), n_text=rests(drawn))
    names = ("setting", "method", "benchmark")
    yield Chart(
        name="partial-effects",
        title="What each property adds to the others",
        caption=(
            "Change of the score, in points, per standard deviation of a property, the others "
            "held fixed, within model and benchmark; 95 % intervals that resample models and "
            "datasets. Faded: open after adjustment."
        ),
        form=forms.forest("Points per standard deviation", tooltip=_RESTS),
        rows=ordered(with_choices(rows, drawn, names)),
        choices=choices(drawn, names),
    )
    yield table("partial-effects", "Partial effects", found, is_open=False)


def methods(frames: Frames) -> Iterator[Chart | Table]:
    """Draw LoRA less full on each benchmark, with the band within which it does not matter."""
    found = frames.get("method_differences")
    if has(found, "difference", "level", "verdict", "margin") and found is not None:
        drawn = found[found["difference"].notna()]
        # The average comes first, then the benchmarks of the mean, then other forms of them.
        levels = {"average": 0, "skill": 1, "benchmark": 2, "variant": 3}
        drawn = drawn.sort_values("level", key=lambda kind: kind.map(levels), kind="stable")
        skill = "skill " + drawn["skill"].astype(str)
        label = named(drawn["benchmark"]).where(drawn["level"] != "skill", skill)
        rows = estimates(drawn, "difference").assign(
            label=label,
            verdict=drawn["verdict"],
            n_text=rests(drawn),
            compared=_compared(drawn),
        )
        margin = 100 * float(drawn["margin"].iloc[0])
        yield Chart(
            name="method-differences",
            title="LoRA less full fine-tuning, by benchmark",
            caption=(
                f"Mean difference of paired runs, in points, with 95 % intervals that resample "
                f"models and datasets. Grey band: within ±{margin:g} points, where a difference is "
                "held to be too small to matter. Faded: no difference after adjustment."
            ),
            form=forms.forest(
                "LoRA less full, points", margin=margin, tooltip=(("verdict", "Verdict"), *_RESTS)
            ),
            rows=ordered(rows),
            choices=(Choice(column="compared", label="Compared"),),
        )
        yield table(
            "method-differences",
            "Differences and tests of equivalence",
            drawn,
            (
                *("setting", "data_kind", "epochs_used", "benchmark", "skill", "difference"),
                *("low", "high", "p_adjusted", "p_equivalence_adjusted", "verdict"),
                *("share_ahead", "num_pairs", "num_models", "num_datasets"),
            ),
            is_open=False,
        )
    for name, title in (
        ("method_reversals", "Where merged data turn the answer round"),
        ("method_traces", "What LoRA leaves behind, as a factor of full fine-tuning"),
    ):
        if has(frames.get(name)):
            yield table(name.replace("_", "-"), title, frames[name], is_open=False)


def doses(frames: Frames) -> Iterator[Chart | Table]:
    """Draw curves over epochs and samples, the sizes compared, and the best epochs."""
    curves = frames.get("dose_curves")
    if has(curves, "dose", "benchmark", "x", "change") and curves is not None:
        for dose, title, x_title in (
            ("epoch", "Change while training goes on", "Epoch"),
            ("samples", "Change with the number of samples", "Samples"),
        ):
            drawn = curves[(curves["dose"] == dose) & curves["change"].notna()]
            if not drawn.empty:
                yield _dose_chart(dose, title, x_title, drawn)
    sizes = frames.get("size_differences")
    if has(sizes, "difference", "benchmark") and sizes is not None:
        drawn = sizes[sizes["difference"].notna()]
        rows = estimates(drawn, "difference").assign(
            label=named(drawn["benchmark"]), n_text=rests(drawn), compared=_sizes(drawn)
        )
        yield Chart(
            name="size-differences",
            title="The largest number of samples against the smallest",
            caption=(
                "Mean difference of runs that agree in everything else, in points, with 95 % "
                "intervals that resample models and datasets. Faded: open after adjustment."
            ),
            form=forms.forest("More samples less fewer, points", tooltip=_RESTS),
            rows=ordered(rows),
            choices=(Choice(column="compared", label="Compared"),),
        )
        yield table("size-differences", "More samples less fewer", drawn, is_open=False)
    if has(frames.get("best_epochs"), "best_epoch"):
        yield table(
            "best-epochs",
            "The best epoch, and what choosing it brings",
            frames["best_epochs"],
            {
                "setting": ("Setting", "text", 0),
                "method": ("Method", "text", 0),
                "data_kind": ("Kind of data", "text", 0),
                "data": ("Data", "text", 0),
                "benchmark": ("Benchmark", "text", 0),
                "best_epoch": ("Best epoch", "count", 0),
                "epoch_low": ("From", "count", 0),
                "epoch_high": ("To", "count", 0),
                "apparent": ("Seems to bring", "points", 1),
                "validated": ("Brings where not chosen on", "points", 1),
                "low": ("Low", "points", 1),
                "high": ("High", "points", 1),
                "stop_epoch": ("Stop at", "count", 0),
                "num_models": ("Models", "count", 0),
            },
            caption="Against the last epoch, in points. From and to hold 95 % of what resampled "
            "models and datasets choose.",
            is_open=False,
        )


def left_out(frames: Frames) -> Iterator[Chart | Table]:
    """Draw what each dataset gives to the mixture, on each benchmark."""
    found = frames.get("left_out")
    if found is None or not has(found, "dataset", "benchmark", "difference", "method"):
        return
    drawn = found[found["difference"].notna()]
    # The mean stands first: with many benchmarks the last ones are out of sight.
    drawn = drawn.sort_values("benchmark", key=lambda name: name != AVERAGE, kind="stable")
    rows = matrix(
        drawn.assign(x=named(drawn["benchmark"]), y=drawn["dataset"].astype(str)),
        value="difference",
    )
    extra = ("method", "setting")
    limit = saturation(rows["value"])
    yield Chart(
        name="left-out",
        title="What each dataset gives to the mixture",
        caption=(
            "Score of the merged data less that without one dataset (rows), on each benchmark "
            "(columns), in points: above 0 the dataset helps. Faded: the interval "
            f"covers 0. Colours saturate at ±{limit:g} points."
        ),
        form=forms.heat_map("Points", limit),
        rows=with_choices(rows, drawn, extra),
        choices=choices(drawn, extra),
    )
    yield table(
        "left-out", "Merged data less merged data without one dataset", found, is_open=False
    )


def _dose_chart(dose: str, title: str, x_title: str, drawn: pd.DataFrame) -> Chart:
    bounds = ("band_low", "band_high") if has(drawn, "band_low", "band_high") else ("low", "high")
    is_mean = (named(drawn["data"]) == MEAN) if "data" in drawn else None
    rows = estimates(drawn, "change", bounds).assign(
        x=drawn["x"].astype(float),
        series="mean over data" if is_mean is None else named(drawn["data"], "mean over data"),
        benchmark=named(drawn["benchmark"]),
        compared=_compared(drawn, dose),
        n_text=rests(drawn),
    )
    return Chart(
        name=f"dose-{dose}",
        title=title,
        caption=(
            "Change from the first, within runs, in points. Band: 95 % for the mean over data, "
            "holding at all doses at once; it resamples models and datasets."
        ),
        form=forms.bands(x_title, "Change, points", tooltip=_RESTS, is_log=dose == "samples"),
        rows=rows.drop(columns="is_faded").reset_index(drop=True),
        choices=(
            Choice(column="compared", label="Setting"),
            Choice(column="benchmark", label="Benchmark", first=MEAN),
        ),
    )


def _compared(frame: pd.DataFrame, dose: str = "") -> "pd.Series[Any]":
    """Name the comparison that a row belongs to by the labels that differ between rows."""
    if dose == "samples":
        keys = ["method", "data_kind", "schedule", "horizon_epochs"]
    else:
        keys = ["method" if dose else "second", "data_kind", "setting", "epochs_used"]
    kept = [key for key in keys if key in frame and frame[key].nunique() > 1] or ["method"]
    words = frame.assign(data_kind=frame["data_kind"].replace(_KINDS))
    return joined(words, [key for key in kept if key in frame] or ["data_kind"])


def _sizes(frame: pd.DataFrame) -> "pd.Series[str]":
    keys = [key for key in ("method", "data_kind", "schedule") if key in frame]
    sizes = frame["second"].map("{:,}".format) + " less " + frame["first"].map("{:,}".format)
    return sizes + ", " + joined(frame.replace({"data_kind": _KINDS}), keys)
