"""How is the evidence drawn for what can be told in advance, and for what a paper claimed?

In: the answers of the forecast's back-test, of the replayed decision and of the paper's findings.
Out: their charts and tables.
"""

from collections.abc import Iterator

from sft_atlas.render import forms
from sft_atlas.render.exhibits import Chart, Frames, Table
from sft_atlas.render.section_rows import choices, estimates, has, table, with_choices


def forecast(frames: Frames) -> Iterator[Chart | Table]:
    """List how often each way of forecasting held where the truth is known."""
    found = frames.get("back_test")
    if has(found) and found is not None:
        yield table(
            "back-test",
            "Forecasts against what came",
            found,
            {
                "scheme": ("What was held out", "text", 0),
                "candidate": ("Forecast by", "text", 0),
                "is_chosen": ("Chosen", "yes", 0),
                "pairwise_accuracy": ("Pairs in order, %", "percent", 1),
                "top1": ("Best found, %", "percent", 0),
                "top3": ("In the true top 3, %", "percent", 0),
                "regret": ("Regret, SD", "number", 2),
                "random_regret": ("Regret of a random pick", "number", 2),
                "rmse": ("Error, SD", "number", 2),
                "coverage": ("Intervals that hold, %", "percent", 0),
                "worst_coverage": ("Worst group, %", "percent", 0),
                "worst_group": ("Which", "text", 0),
                "width": ("Width, SD", "number", 1),
                "num_problems": ("Choices", "count", 0),
            },
            caption="Intervals are nominal 90 % and made for whole unseen groups.",
        )
    groups = frames.get("back_test_groups")
    if has(groups) and groups is not None:
        yield table("back-test-groups", "The same for each held-out group", groups, is_open=False)


def decision(frames: Frames) -> Iterator[Chart | Table]:
    """Draw how fast a new model's best data is found, run by run."""
    found = frames.get("replay")
    if not has(found, "weights", "policy", "num_revealed", "regret", "top3") or found is None:
        return
    names = ("weights",)
    for name, title, value, y_title, scale in (
        ("replay-regret", "What a choice gives away", "regret", "Regret, SD within models", 1),
        ("replay-top3", "Choices among the true best three", "top3", "Share, %", 100),
    ):
        drawn = found[found[value].notna()]
        rows = estimates(
            drawn,
            value,
            (f"{value}_low", f"{value}_high"),
            scale=scale,
            digits=0 if scale == 100 else 2,
            is_signed=False,
        ).assign(x=drawn["num_revealed"].astype(float), series=drawn["policy"].astype(str))
        yield Chart(
            name=name,
            title=title,
            caption=(
                "Mean over models and weights, by how many of the new model's runs are known. "
                "Bands, where drawn: 95 %, resampling models."
            ),
            form=forms.bands("Runs revealed", y_title, line_at=0 if scale == 1 else None),
            rows=with_choices(rows.drop(columns="is_faded"), drawn, names),
            choices=choices(drawn, names),
        )
    yield table(
        "replay",
        "Decisions replayed on models that are known",
        found,
        {
            "weights": ("Weights", "text", 0),
            "policy": ("Rule", "text", 0),
            "num_revealed": ("Runs revealed", "count", 0),
            "regret": ("Regret, SD", "number", 2),
            "regret_low": ("Low", "number", 2),
            "regret_high": ("High", "number", 2),
            "top3": ("In the true top 3, %", "percent", 0),
            "difference": ("Less than the plain order", "number", 2),
            "difference_low": ("Low", "number", 2),
            "difference_high": ("High", "number", 2),
            "claimed": ("Held to be best, %", "percent", 0),
            "held": ("Was best, %", "percent", 0),
            "num_problems": ("Choices", "count", 0),
            "num_models": ("Models", "count", 0),
        },
        is_open=False,
    )


def paper(frames: Frames) -> Iterator[Chart | Table]:
    """List what a paper found, and whether the table bears it out."""
    found = frames.get("paper_findings")
    if has(found) and found is not None:
        yield table("paper-findings", "The paper's claims and what becomes of them", found)
