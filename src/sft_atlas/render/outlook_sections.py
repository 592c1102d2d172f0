"""How is the evidence drawn for what can be told in advance, and for what a paper claimed?

In: the answers of the forecast's back-test, of the replayed decision and of the paper's findings.
Out: their charts and tables.
"""

from collections.abc import Iterator

from sft_atlas.render.exhibits import Chart, Frames, Table
from sft_atlas.render.section_rows import has, table


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


def decision(frames: Frames) -> Iterator[Chart | Table]:
    """Draw how fast a new model's best data is found, cell by cell."""
    found = frames.get("replay")
    if has(found) and found is not None:
        yield table("replay", "Decisions replayed on models that are known", found)


def paper(frames: Frames) -> Iterator[Chart | Table]:
    """List what a paper found, and whether the table bears it out."""
    found = frames.get("paper_findings")
    if has(found) and found is not None:
        yield table("paper-findings", "The paper's findings against its table", found)
