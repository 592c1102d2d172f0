"""What the page draws by its own scripts can be written as files too."""

import json
from types import SimpleNamespace

from sft_atlas.analyze.analysis import analyze
from sft_atlas.render.figures import portable
from sft_atlas.render.study_charts import study_charts


def test_the_charts_of_a_study_are_drawn_from_the_same_tables(planted: SimpleNamespace) -> None:
    world = planted.World(num_models=3, num_datasets=3, num_benchmarks=3, epochs=(1, 2))
    tables = planted.make_tables(world)
    analysis = analyze(tables, questions=(), num_resamples=10)
    charts = {chart.name: chart for chart in study_charts(analysis, tables).charts}
    assert {"gain-map", "predictors", "layer-change", "dimension", "losses"} <= set(charts)
    drawn = charts["gain-map"].rows
    found = analysis.gain_map[analysis.gain_map["epoch"] == 2]
    assert len(drawn) == len(found)
    assert abs(drawn["value"].sum() - 100 * found["gain"].sum()) < 1e-9
    for chart in charts.values():
        json.dumps(portable(chart, chart.rows), allow_nan=False)


def test_a_study_without_results_has_no_charts(planted: SimpleNamespace) -> None:
    tables = planted.make_tables(planted.World(num_models=2, num_datasets=2, num_benchmarks=2))
    none = type(tables)(
        **{name: frame.iloc[:0] for name, frame in vars(tables).items() if hasattr(frame, "iloc")}
    )
    assert study_charts(analyze(none, questions=(), num_resamples=10), none).charts == []


def test_the_setting_of_the_answers_is_drawn_first(planted: SimpleNamespace) -> None:
    world = planted.World(
        num_models=2, num_datasets=2, num_benchmarks=2, epochs=(1,), samples=(50, 200)
    )
    tables = planted.make_tables(world)
    analysis = analyze(tables, questions=(), num_resamples=10)
    (chart,) = [c for c in study_charts(analysis, tables).charts if c.name == "gain-map"]
    assert [c.first for c in chart.choices if c.column == "setting"] == [analysis.main_setting]
