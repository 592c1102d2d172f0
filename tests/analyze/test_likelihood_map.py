"""A map keeps its places, says when it cannot, and shows what was planted."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from planted_vectors import DIGEST, MEASURE, planted_world, publish_vector, vectors_of
from sft_atlas.analyze.likelihood_map import base_rows, default_steps, map_tables
from sft_atlas.analyze.map_places import make_map
from sft_atlas.errors import DataError
from sft_atlas.store.maps import MapSteps, StoredMap, load_mapped, map_folder, publish_map, read_map
from sft_atlas.store.store import Store, open_store
from sft_atlas.store.vectors import Vectors, load_vectors

STEPS = MapSteps()
World = tuple[Vectors, pd.DataFrame]


@pytest.fixture(scope="module")
def world() -> World:
    """Sixty-four cells: four base models, five datasets, three epochs."""
    return planted_world()


@pytest.fixture(scope="module")
def first(world: World) -> StoredMap:
    """The map of the first forty cells."""
    return make_map(world[0].take(range(40)), STEPS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def test_planted_models_come_out_as_clusters(world: World) -> None:
    vectors, cells = world
    tables = map_tables(vectors, cells, steps=[STEPS])
    quality = tables.quality.set_index("method")
    assert set(quality.index) == {"tsne", "pca", "mds"}
    assert (quality["trustworthiness"] > 0.9).all()
    assert quality.loc["mds", "stress"] < quality.loc["pca", "stress"]
    assert 0.5 < quality.loc["pca", "explained"] <= 1
    assert (quality["num_texts"] == 120).all()
    shares = tables.shares.set_index("grouping")["share"]
    assert shares["model"] > 0.8
    assert shares["data"] < 0.2
    agreement = tables.agreement.set_index("relation")["cosine"]
    assert agreement["same data, other model"] > 0.6
    assert abs(agreement["neither the same"]) < 0.3


def test_distance_from_the_base_grows_with_training(world: World) -> None:
    vectors, cells = world
    points = map_tables(vectors, cells, steps=[STEPS]).points
    points = points[points["method"] == "pca"].merge(cells, on="cell")
    assert (points.loc[points["epoch"] == 0, "kl_base"] == 0).all()
    means = points.groupby("epoch")["kl_base"].mean()
    assert means.is_monotonic_increasing


def test_the_order_of_cells_moves_none(world: World) -> None:
    vectors, _ = world
    order = np.random.default_rng(0).permutation(len(vectors.cells))
    straight, mixed = make_map(vectors, STEPS), make_map(vectors.take(order), STEPS)
    pd.testing.assert_frame_equal(straight.places, mixed.places, check_exact=True)


def test_new_cells_leave_old_places_bit_for_bit(world: World, first: StoredMap) -> None:
    later = make_map(world[0], STEPS, first)
    old = later.places[~later.places["is_added"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, first.places, check_exact=True)
    assert later.places["is_added"].sum() == 3 * 24
    assert (later.number, later.reason) == (1, "24 cells were added")
    assert later.clip_value == first.clip_value
    assert make_map(world[0], STEPS, later) is later


def test_cells_lie_the_same_whether_they_come_together_or_one_by_one(
    world: World, first: StoredMap
) -> None:
    vectors, _ = world
    together = make_map(vectors.take(range(44)), STEPS, first)
    step = first
    for size in (41, 42, 44):
        step = make_map(vectors.take(range(size)), STEPS, step)
    assert step.number == 3
    keys = ["method", "cell"]
    pd.testing.assert_frame_equal(
        together.places.sort_values(keys, ignore_index=True),
        step.places.sort_values(keys, ignore_index=True),
        check_exact=True,
    )


def test_added_cells_lie_next_to_their_own_model(world: World) -> None:
    vectors, cells = world
    is_late = (cells["epoch"] == 3).to_numpy()
    early = make_map(vectors.take(np.flatnonzero(~is_late)), STEPS)
    places = make_map(vectors, STEPS, early).places
    for method in ("tsne", "pca", "mds"):
        rows = places[places["method"] == method].merge(cells, on="cell")
        middle = rows[~rows["is_added"]].groupby("model")[["x", "y"]].mean()
        added = rows[rows["is_added"]]
        apart = added[["x", "y"]].to_numpy()[:, None] - middle.to_numpy()[None]
        nearest = middle.index[(apart**2).sum(axis=2).argmin(axis=1)]
        assert (nearest == added["model"].to_numpy()).mean() > 0.9, method


def test_a_map_that_most_cells_came_after_is_fitted_anew(world: World) -> None:
    vectors, _ = world
    small = make_map(vectors.take(range(30)), STEPS)
    half = make_map(vectors.take(range(60)), STEPS, small)
    assert (len(half.fitted), half.number) == (30, 1)
    anew = make_map(vectors, STEPS, half)
    assert (len(anew.fitted), anew.number) == (64, 2)
    assert anew.reason == "fitted anew: 34 of 64 cells came after the fit"
    pd.testing.assert_frame_equal(anew.places, make_map(vectors, STEPS).places, check_exact=True)


def test_a_map_that_cannot_be_kept_says_why(world: World, first: StoredMap) -> None:
    vectors, _ = world
    gone = make_map(vectors.take(range(1, 45)), STEPS, first)
    assert gone.reason == "fitted anew: 1 of its 40 cells have no likelihoods any more"
    is_cut = np.zeros(vectors.prompt.shape, dtype=bool)
    is_cut[50, [3, 7]] = True
    shorter = make_map(Vectors(**{**vars(vectors), "is_cut": is_cut}), STEPS, first)
    assert shorter.reason == "fitted anew: a new cell did not read 2 more texts whole"
    assert shorter.texts_left_out == (3, 7)
    few = make_map(vectors.take(range(9)), STEPS)
    assert few.methods == ("pca", "mds")
    more = make_map(vectors.take(range(10)), STEPS, few)
    assert more.reason == "fitted anew: 10 cells are enough for t-SNE"
    assert more.perplexity == 3


def test_few_cells_are_mapped_without_tsne_and_say_so() -> None:
    vectors, cells = planted_world(models=2, data=3, epochs=(1,))
    tables = map_tables(vectors, cells, steps=[STEPS])
    quality = tables.quality.set_index("method")
    assert quality.loc["tsne", "reason"] == "t-SNE needs 10 cells that are not all the same"
    assert quality.loc[["pca", "mds"], "reason"].isna().all()
    assert set(tables.points["method"]) == {"pca", "mds"}
    two = map_tables(vectors.take([0, 1]), cells)
    assert two.points.empty
    assert two.reason == "2 cells have likelihoods; it takes 3"
    assert map_tables(None, cells).reason == ""


def test_cells_that_are_all_the_same_make_a_map_without_numbers() -> None:
    _, cells = planted_world(models=2, data=3, epochs=(1, 2))
    vectors = vectors_of(np.tile(np.arange(20.0), (len(cells), 1)), cells=list(cells["cell"]))
    quality = map_tables(vectors, cells, steps=[STEPS]).quality.set_index("method")
    assert quality["stress"].isna().all()
    assert quality.loc["tsne", "reason"] is not None


def test_twins_lie_on_one_place(world: World) -> None:
    vectors, _ = world
    prompt = vectors.prompt.copy()
    prompt[1] = prompt[0]
    places = make_map(Vectors(**{**vars(vectors), "prompt": prompt}), STEPS).places
    for method in ("pca", "mds"):
        pair = places[places["method"] == method][["x", "y"]].to_numpy()[:2]
        np.testing.assert_allclose(pair[0], pair[1], atol=1e-9)


def test_every_variant_has_a_map_of_its_own(world: World) -> None:
    vectors, cells = world
    rng = np.random.default_rng(8)
    answer = -3 + rng.normal(size=vectors.prompt.shape)
    both = vectors_of(vectors.prompt, answer, cells=vectors.cells)
    tables = map_tables(both, cells)
    assert list(tables.quality["variant"].unique()) == ["whole", "prompt", "answer"]
    assert len(tables.points) == 9 * len(cells)
    assert len(tables.fresh) == 3
    again = map_tables(both, cells, known=tables.fresh)
    assert again.fresh == ()
    pd.testing.assert_frame_equal(again.points, tables.points, check_exact=True)


def test_models_that_read_other_wordings_are_compared_by_their_answers(world: World) -> None:
    vectors, cells = world
    words = [DIGEST if model == "model-0" else "e" * 64 for model in cells["model"]]
    both = vectors_of(vectors.prompt, vectors.prompt / 10, cells=vectors.cells, wordings=words)
    tables = map_tables(both, cells)
    assert set(tables.points["variant"]) == {"answer"}
    refused = tables.quality[tables.quality["variant"] == "prompt"]
    assert set(refused["reason"]) == {
        "chat templates word the questions in 2 ways; only answers can be compared"
    }
    # A study of one wording has its maps of the questions, without the cells of others.
    ours = cells[cells["model"] == "model-0"]
    alone = map_tables(both, ours)
    assert set(alone.points["variant"]) == {"whole", "prompt", "answer"}
    fresh = {made.steps.variant: made for made in alone.fresh}
    assert set(fresh["whole"].cells) == set(ours["cell"])
    assert set(fresh["answer"].cells) == set(cells["cell"])
    assert fresh["answer"].texts_sha256 == both.take([0, 1]).texts_sha256("answer")
    with pytest.raises(DataError) as error:
        make_map(both, STEPS)
    assert str(error.value) == (
        "map: cells read 2 wordings of the same questions; expected one. "
        "Compare their answers alone."
    )


def test_a_base_model_is_found_by_its_name() -> None:
    labels = pd.DataFrame({"model": ["a", "b", "a", "c"], "epoch": [0, 0, 2, 1]})
    assert base_rows(labels).tolist() == [0, 1, 0, -1]


def test_a_map_is_read_as_it_was_published(world: World, first: StoredMap, store: Store) -> None:
    vectors, _ = world
    assert read_map(store, vectors, STEPS) is None
    assert publish_map(store, first)
    found = read_map(store, world[0], STEPS)
    assert found is not None
    pd.testing.assert_frame_equal(found.places, first.places, check_exact=True)
    assert {**vars(found), "places": 0} == {**vars(first), "places": 0}
    later = make_map(world[0], STEPS, found)
    assert publish_map(store, later)
    newest = read_map(store, world[0], STEPS)
    assert newest is not None
    assert newest.number == 1
    assert newest.fitted == first.fitted


def test_the_same_history_gives_the_same_bytes(
    world: World, first: StoredMap, tmp_path: Path
) -> None:
    digests = []
    for name in ("one", "two"):
        store = open_store(tmp_path / name, create=True)
        made = make_map(world[0].take(range(40)), STEPS)
        publish_map(store, made)
        publish_map(store, make_map(world[0], STEPS, read_map(store, world[0], STEPS)))
        folder = map_folder(store, made.measure, made.texts_sha256, STEPS)
        digests.append([store.read(folder / str(n)).digest for n in (0, 1)])
    assert digests[0] == digests[1]


def test_a_study_that_shares_the_store_is_placed_on_its_map(world: World, store: Store) -> None:
    vectors, cells = world
    for cell, row in zip(vectors.cells, vectors.prompt, strict=True):
        publish_vector(store, cell, row.tolist())
    own = load_vectors(store, vectors.cells[:40], MEASURE)
    loaded, known = load_mapped(store, own, default_steps())
    assert loaded is own
    assert known == ()
    tables = map_tables(loaded, cells)
    assert [publish_map(store, made) for made in tables.fresh] == [True]
    # The other study has eight cells of its own and two that both have.
    theirs = [*vectors.cells[40:48], *vectors.cells[:2]]
    own = load_vectors(store, theirs, MEASURE)
    loaded, known = load_mapped(store, own, default_steps())
    assert loaded.cells[:10] == own.cells
    assert set(loaded.cells) == set(vectors.cells[:48])
    shown = map_tables(loaded, cells[cells["cell"].isin(theirs)], known=known)
    assert set(shown.points["cell"]) == set(theirs)
    assert shown.points.drop_duplicates("cell")["is_added"].sum() == 8
    assert set(shown.fresh[0].cells) == set(vectors.cells[:48])


def test_a_store_that_cannot_be_written_to_gets_no_map(
    first: StoredMap, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_named: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert not publish_map(store, first)


def test_a_map_that_another_process_published_first_is_kept(
    world: World, first: StoredMap, store: Store
) -> None:
    assert publish_map(store, first)
    assert not publish_map(store, make_map(world[0].take(range(41)), STEPS))
    kept = read_map(store, world[0], STEPS)
    assert kept is not None
    assert len(kept.cells) == 40
