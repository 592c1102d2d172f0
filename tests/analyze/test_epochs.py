"""Curves compare the same trajectories at every epoch."""

from types import ModuleType

from sft_atlas.analyze.epochs import epoch_curves, epoch_panel, last_against_first
from sft_atlas.analyze.gains import AVERAGE, cell_gains, mean_gains


def test_a_trajectory_without_all_epochs_is_left_out(planted: ModuleType) -> None:
    means = mean_gains(cell_gains(planted.make_tables(planted.World(methods=("full",)))))
    gone = means[(means["trajectory"] != means["trajectory"].iloc[0]) | (means["epoch"] != 3)]
    panel = epoch_panel(gone)
    assert panel["trajectory"].nunique() == means["trajectory"].nunique() - 1
    assert set(panel.groupby("epoch").size()) == {27}


def test_every_point_of_a_curve_rests_on_the_same_n(planted: ModuleType) -> None:
    gains = cell_gains(planted.make_tables(planted.World(num_failed=3)))
    curves = epoch_curves(gains, mean_gains(gains))
    sizes = curves.groupby(["setting", "method", "data", "benchmark"])["num_trajectories"]
    assert (sizes.nunique() == 1).all()
    average = curves[(curves["data"] == AVERAGE) & (curves["benchmark"] == AVERAGE)]
    assert (average["low"] < average["gain"]).all()


def test_one_kept_epoch_has_no_curve(planted: ModuleType) -> None:
    gains = cell_gains(planted.make_tables(planted.World(epochs=(5,))))
    means = mean_gains(gains)
    assert epoch_curves(gains, means).empty
    assert last_against_first(means) is None
