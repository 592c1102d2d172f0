"""What training left behind is read off against each cell's own base model."""

from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from sft_atlas.analyze import traces
from sft_atlas.analyze.analysis import Analysis, analyze
from sft_atlas.analyze.dimension_profile import dimension_profile, scan_profile
from sft_atlas.analyze.gains import AVERAGE, cell_gains
from sft_atlas.analyze.spectra import spectrum_profile


@pytest.fixture(scope="module")
def analysis(planted: ModuleType) -> Analysis:
    world = planted.World(num_datasets=6, num_benchmarks=4, epochs=(1, 3), forgetting=-3.0)
    return analyze(planted.make_tables(world), questions=(), num_resamples=60)


def answers(analysis: Analysis, question: str) -> list:
    return [finding for finding in analysis.findings if finding.question == question]


def test_the_planted_rise_of_the_dimension_is_found_above_and_not_below(
    analysis: Analysis,
) -> None:
    found = answers(analysis, traces.DIMENSION)
    assert len(found) == 2
    for finding in found:
        assert finding.estimate == pytest.approx(3.0, abs=0.1) and finding.is_clear
        assert "(Gride, last token)" in finding.statement
        assert "There the dimension is higher than before." in finding.statement
    rows = analysis.dimensions
    rows = rows[(rows["quantity"] == "gride") & (rows["model"] == AVERAGE)]
    rows = rows[(rows["method"] == "full") & (rows["pooling"] == "last")]
    below, above = rows["position"] < 0.45, rows["position"] >= 0.6
    assert rows.loc[below, "difference"].abs().max() < 0.15
    assert (rows.loc[above, "difference_low"] > 2.5).all()
    exact = rows["tuned"] - rows["base"]
    assert exact.to_numpy() == pytest.approx(rows["difference"].to_numpy(), abs=1e-9)


def test_likeness_to_the_base_has_no_base_value(analysis: Analysis) -> None:
    rows = analysis.dimensions[analysis.dimensions["quantity"] == "cka"]
    assert rows["base"].isna().all() and rows["difference"].isna().all()
    assert rows["tuned"].notna().all()


def test_a_layer_without_a_value_is_left_out_and_not_made_up(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(num_datasets=3, epochs=(1,), methods=("full",)))
    states = tables.representations.copy()
    states.loc[states["layer"] == 2, "gride"] = np.nan
    table = dimension_profile(type(tables)(**{**vars(tables), "representations": states}))
    rows = table[(table["quantity"] == "gride") & (table["model"] == AVERAGE)]
    missing = rows["position"].sub(2 / 6).abs() < 1e-9
    assert rows.loc[missing, ["base", "tuned", "difference"]].isna().all().all()
    assert rows.loc[~missing, "difference"].notna().all()


def test_cells_whose_base_was_not_measured_have_no_difference(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(num_datasets=3, epochs=(1,), methods=("full",)))
    bases = tables.cells.loc[tables.cells["method"] == "base", "cell"]
    states = tables.representations[~tables.representations["cell"].isin(bases)]
    scans = tables.scans[~tables.scans["cell"].isin(bases)]
    alone = type(tables)(**{**vars(tables), "representations": states, "scans": scans})
    table = dimension_profile(alone)
    assert table["base"].isna().all() and table["difference"].isna().all()
    assert scan_profile(alone).empty
    assert traces.dimension_findings(alone, cell_gains(alone)) == []


def test_scans_keep_the_scales_that_all_cells_have(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(num_datasets=3, epochs=(1,), methods=("full",)))
    scans = tables.scans
    short = (scans["cell"] == scans["cell"].iloc[-1]) & (scans["n1"] == 64)
    table = scan_profile(type(tables)(**{**vars(tables), "scans": scans[~short]}))
    assert sorted(table["n1"].unique()) == [1, 2, 4, 8, 16, 32]
    assert set(table["state"]) == {"base", "tuned"}
    rows = table[(table["model"] == AVERAGE) & (table["state"] == "tuned")]
    rows = rows[(rows["pooling"] == "last") & (rows["position"] == 1.0)]
    assert (np.diff(rows.sort_values("n1")["gride"]) < 0).all()


def test_lora_keeps_the_planted_share_of_the_divergence(analysis: Analysis) -> None:
    (finding,) = answers(analysis, traces.FORGETTING)
    assert np.exp(finding.estimate) == pytest.approx(0.3, rel=0.15) and finding.is_clear
    assert "full moves further from the base model." in finding.statement
    assert finding.n == 24 and len(finding.rows) == 48


def test_divergence_that_follows_the_gain_is_found(analysis: Analysis) -> None:
    for finding in answers(analysis, traces.LOST):
        assert finding.estimate < 0
        clear = "Moving further from the base goes with smaller gains." in finding.statement
        assert clear == finding.is_clear


def test_spectra_tell_the_methods_apart(analysis: Analysis) -> None:
    rows = analysis.spectra[analysis.spectra["kind"] == AVERAGE]
    mean = rows.groupby(["method", "quantity"])["value"].mean()
    assert mean["full", "effective_rank"] == pytest.approx(91.5, abs=1)
    assert mean["lora", "effective_rank"] == pytest.approx(13.5, abs=1)
    assert mean["full", "intruder_fraction"] == 0
    assert mean["lora", "intruder_fraction"] == pytest.approx(0.2)


def test_updates_are_grouped_by_what_they_share(analysis: Analysis) -> None:
    groups = analysis.update_groups.set_index("relation")
    expected = {
        "same data, other method": 0.6,
        "other data, same method": 0.3,
        "other data, other method": 0.1,
    }
    assert groups["cosine"].to_dict() == pytest.approx(expected, abs=0.03)
    assert (groups["low"] < groups["cosine"]).all() and (groups["num_models"] == 4).all()
    assert groups["num_pairs"].sum() == 4 * 12 * 11 / 2


@pytest.mark.parametrize(
    "missing", [("spectra", "descriptions", "forgetting"), ("similarities", "representations")]
)
def test_absent_measures_leave_the_other_answers(
    planted: ModuleType, missing: tuple[str, ...]
) -> None:
    small = planted.World(num_datasets=3, num_benchmarks=2, epochs=(1,), num_models=3, num_layers=2)
    tables = planted.make_tables(small)
    nothing = dict.fromkeys([*missing, "scans", "updates"], pd.DataFrame())
    analysis = analyze(type(tables)(**{**vars(tables), **nothing}), questions=(), num_resamples=5)
    assert analysis.scans.empty and analysis.update_pairs.empty and analysis.update_groups.empty
    assert analysis.dimensions.empty == ("representations" in missing)
    assert analysis.forgetting.empty == ("forgetting" in missing)
    assert analysis.spectra.empty == ("spectra" in missing)
    assert answers(analysis, traces.FORGETTING) or "forgetting" in missing


def test_a_layer_that_cannot_be_measured_is_left_out_of_the_statement(planted: ModuleType) -> None:
    """Last tokens are alike at the embeddings of every model: that is no reason to say nothing."""
    tables = planted.make_tables(planted.World(num_datasets=3, epochs=(1,), methods=("full",)))
    gains = cell_gains(tables)
    states = tables.representations.copy()
    states.loc[states["layer"] == 0, "gride"] = np.nan
    (finding,) = traces.dimension_findings(replaced(tables, representations=states), gains)
    assert "nan" not in finding.statement
    assert "; below it by " in finding.statement and finding.n == 12
    states.loc[states["position"] < 0.6, "gride"] = np.nan
    (finding,) = traces.dimension_findings(replaced(tables, representations=states), gains)
    assert "against the base model; below it no layer could be measured." in finding.statement
    assert finding.estimate == pytest.approx(3.0, abs=0.1)


def test_the_two_lines_of_a_dimension_rest_on_the_same_cells(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(num_datasets=3, epochs=(1,), methods=("full",)))
    states, cells = tables.representations.copy(), tables.cells
    tuned = cells.loc[(cells["model"] == "llama-a") & (cells["method"] != "base"), "cell"]
    base = cells.loc[(cells["model"] == "qwen2-b") & (cells["method"] == "base"), "cell"]
    gone = states["cell"].isin(tuned[:2]) & (states["layer"] == 3)
    states.loc[gone | states["cell"].isin(base), "gride"] = np.nan
    table = dimension_profile(replaced(tables, representations=states))
    rows = table[(table["quantity"] == "gride") & (table["pooling"] == "last")]
    rows = rows[rows["model"] == AVERAGE]
    assert (rows["tuned"] - rows["base"]).to_numpy() == pytest.approx(rows["difference"].to_numpy())
    assert rows["num_known"].tolist() == [9, 9, 9, 7, 9, 9, 9]


def test_a_band_ends_where_nothing_can_lie(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(num_datasets=3, epochs=(1,), methods=("full",)))
    states = tables.representations.copy()
    is_odd = states["cell"] == states["cell"].iloc[-1]
    states["num_clusters"] = np.where(is_odd, 9, 1)
    states["cka"] = states["cka"].where(~is_odd, 0.5)
    table = dimension_profile(replaced(tables, representations=states))
    assert table.loc[table["quantity"] == "num_clusters", "tuned_low"].min() == 1
    assert table.loc[table["quantity"] == "cka", "tuned_high"].max() == 1


def replaced(tables: object, **frames: pd.DataFrame) -> object:
    return type(tables)(**{**vars(tables), **frames})


def test_a_model_without_intruder_vectors_has_no_share_of_them(planted: ModuleType) -> None:
    """A matrix that did not change has no directions to look at."""
    tables = planted.make_tables(planted.World(num_datasets=3, epochs=(1,), methods=("full",)))
    still = tables.spectra["layer"] == 0
    spectra = tables.spectra.assign(num_vectors=np.where(still, 0, 10))
    rows = spectrum_profile(replaced(tables, spectra=spectra))
    rows = rows[(rows["quantity"] == "intruder_fraction") & (rows["kind"] == AVERAGE)]
    assert rows["position"].min() > 1 / 6 and np.isfinite(rows["value"]).all()
