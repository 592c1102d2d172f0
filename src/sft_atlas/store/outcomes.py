"""Find the record of a training run: one is published per last epoch, and the longest says most."""

from pathlib import Path

from sft_atlas.store.store import Store


def outcome_folder(store: Store, trajectory: str, *, last_epoch: int) -> Path:
    """Return where the outcome of a trajectory that was trained up to an epoch is published."""
    return store.layout.trajectory(trajectory) / str(last_epoch)


def longest_outcome(store: Store, trajectory: str) -> Path | None:
    """Return the folder of a trajectory's longest published run, or None.

    A constant schedule can be trained further by a later study; each run leaves a record of its
    own, since a published record never changes. The longest one's loss curve begins with all the
    others'.
    """
    folder = store.layout.trajectory(trajectory)
    epochs = [int(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    published = [e for e in sorted(epochs, reverse=True) if store.has(folder / str(e))]
    return folder / str(published[0]) if published else None
