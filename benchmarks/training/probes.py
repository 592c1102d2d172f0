"""Ask a layout two questions: does a sample see its neighbour, and is a step without any supervised
token refused?

    python -m training.probes REQUEST.json
"""

import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset, disable_progress_bars

from training.grid import BATCH_SAMPLES, Cell
from training.peers import Layout, tuned_trainer
from training.world import World

LARGEST_CHANGE: Final = 1e-6
"""Relative change of a loss that rounding may make."""


def trl_contamination(world: World, cell: Cell, layout: Layout, output: Path) -> float:
    """Return how much the loss of a sample moves, relatively, when its neighbour changes.

    Fails if its own prompt does not move it: then the probe would see nothing.
    """
    t = cell.trajectory
    samples = world.samples(t.model, t.dataset, t.samples)
    # The longer sample comes first in packed lines, and the second could look back at it.
    first, second = sorted((0, 1), key=lambda i: -len(samples.ids[i]))
    neighbour, own = samples.ids[first].tolist(), samples.ids[second].tolist()
    prompt = samples.prompt_lengths[second]

    def loss(beside: list[int], ids: list[int]) -> float:
        rows = {
            "input_ids": [beside, ids],
            "labels": [[-100] * len(beside), [-100] * prompt + ids[prompt:]],
        }
        more = {"per_device_train_batch_size": 1 if layout.packing else 2}
        rows_of = Dataset.from_dict(rows)
        trainer = tuned_trainer(world, cell, output, layout, rows_of, **more)
        (batch,) = list(trainer.get_train_dataloader())
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, batch))

    plain = loss(neighbour, own)
    other = loss([neighbour[0], *reversed(neighbour[1:])], own)
    moved = loss(neighbour, [own[0], *reversed(own[1:prompt]), *own[prompt:]])
    assert abs(moved - plain) > 1e-4 * abs(plain), "the probe sees nothing"
    return abs(other - plain) / abs(plain)


def our_contamination(world: World, cell: Cell) -> float:
    """Return how far the loss of 16 samples in a pass is from the sum of their own, relatively."""
    from sft_atlas.model.load import load_model
    from sft_atlas.model.training_pass import can_pack, summed_losses

    model = load_model(world.model(cell.trajectory.model), where="benchmark").train()
    assert can_pack(model), "the model packs"
    rows = our_rows(world, cell)
    chosen = world.steps(cell)[0]
    with torch.no_grad():
        together = summed_losses(model, [(rows, chosen)]).item()
        apart = math.fsum(summed_losses(model, [(rows, [i])]).item() for i in chosen)
    return abs(together - apart) / apart


def our_rows(world: World, cell: Cell) -> Any:
    """Return a cell's samples as this package's training takes them."""
    import numpy as np

    from sft_atlas.data.batches import TrainingRows
    from sft_atlas.data.prepared import PreparedRows

    t = cell.trajectory
    samples = world.samples(t.model, t.dataset, t.samples)
    lengths = [len(ids) for ids in samples.ids]
    places = np.arange(len(lengths))
    prepared = PreparedRows(
        tokens=np.concatenate(samples.ids).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompt_lengths=np.array(samples.prompt_lengths, np.int32),
        rows=places,
        positions=places,
        result={},
    )
    return TrainingRows([prepared])


def trl_unsupervised(world: World, cell: Cell, output: Path) -> str:
    """Return what TRL says of a batch without a supervised token."""
    t = cell.trajectory
    samples = world.samples(t.model, t.dataset, t.samples)
    ids = [samples.ids[i].tolist() for i in range(BATCH_SAMPLES)]
    rows = Dataset.from_dict({"input_ids": ids, "labels": [[-100] * len(line) for line in ids]})
    try:
        trainer = tuned_trainer(world, cell, output, Layout(), rows)
        said = trainer.train()
    except (ValueError, RuntimeError) as error:
        return f"refused: {error}"
    return f"trained without a word, loss {said.training_loss:g}"


def main() -> None:
    warnings.simplefilter("ignore")
    disable_progress_bars()
    request = json.loads(Path(sys.argv[1]).read_text())
    world, output = World(Path(request["world"])), Path(request["output"])
    cell = Cell.from_json(request["cell"])
    questions: dict[str, Callable[[], Any]] = {
        "ours": lambda: our_contamination(world, cell),
        "tuned": lambda: trl_contamination(world, cell, Layout(**request["layout"]), output),
        "unsupervised": lambda: trl_unsupervised(world, cell, output),
    }
    print(json.dumps({"answer": questions[request["question"]]()}))


if __name__ == "__main__":
    main()
