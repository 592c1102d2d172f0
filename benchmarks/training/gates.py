"""Say before anything is timed whether the arms do the same work, and do it right.

One full and one LoRA cell are trained by every arm. Arms that take the same steps must leave the
same weights, up to rounding: within 1e-4 of their norm, and a loss within 1e-5. Arms that pack see
other batches, and stock TRL computes in bfloat16: how far they are is told, not judged.

    python -m training.gates REQUEST.json
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from training import llama_factory, ours, peers
from training.arms import ArmError, Command, python, run, write_request
from training.grid import RATES, Cell, Trajectory
from training.plain import padded
from training.probes import LARGEST_CHANGE
from training.world import World

WEIGHTS_WITHIN: Final = 1e-4
LOSS_WITHIN: Final = 1e-5
LAYOUTS: Final = {
    "padded": {},
    "padding-free": {"padding_free": True},
    "packed": {"packing": True},
}
"""Ways in which TRL may lay batches out."""

SAME_STEPS: Final = {
    "plain, head at targets": True,
    "TRL stock": False,
    "TRL padded": True,
    "TRL padding-free": True,
    "TRL packed": False,
    "Trainer + PEFT": True,
    "LLaMA-Factory": True,
    "ours": True,
}
"""Arms that are compared with the plain loop, and whether they must agree with it."""


@final
@dataclass(frozen=True, kw_only=True)
class Gate:
    """One answer."""

    arm: str
    about: str
    is_passed: bool | None
    """None: told, not judged."""
    found: str


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where gates work, and the arms' way of being called."""

    world: World
    folder: Path
    llama_factory: Path | None

    def request(self, name: str, **content: Any) -> Path:
        path = self.folder / "requests" / f"{name}.json"
        return write_request(path, world=self.world.folder, **content)

    def ask(self, module: str, name: str, **content: Any) -> dict[str, Any]:
        """Run a module of this folder on a request and return its answer."""
        command = python(module, self.request(name, **content), 1)
        return run([command], self.folder / "logs" / name).answers[0]


def check(place: Place, cells: Sequence[Cell]) -> list[Gate]:
    """Return all answers; an arm that does not run has its last words as its answer."""
    peers.write_datasets(place.world, cells)
    first = cells[0]
    questions = [question for cell in cells for question in _questions(place, cell)]
    for name, layout in LAYOUTS.items():
        ask = partial(_contamination, place, first, layout)
        questions.append((f"TRL {name}", "a sample's loss does not move with its neighbour", ask))
    about = "16 samples in a pass lose what each loses alone"
    questions.append(("ours", about, lambda: _within(_probe(place, first, "ours"))))
    about = "a batch without a supervised token is refused"
    refused = lambda: _refused(_probe(place, first, "unsupervised"))  # noqa: E731
    questions += [("TRL padded", about, refused), ("ours", about, lambda: _our_refusal(place))]
    # Nothing is timed here, and every answer is a process of one thread.
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda question: _asked(*question), questions))


Answer = tuple[bool | None, str]
Question = tuple[str, str, Callable[[], Answer]]
"""Arm, what is asked, and what answers it."""


def _asked(arm: str, about: str, ask: Callable[[], Answer]) -> Gate:
    try:
        is_passed, words = ask()
    except ArmError as error:
        is_passed, words = False, f"did not run: {error}"
    return Gate(arm=arm, about=about, is_passed=is_passed, found=words)


def _within(value: float) -> Answer:
    return value <= LARGEST_CHANGE, f"relative change {value:.1e}, at most {LARGEST_CHANGE:g}"


def _refused(words: str) -> Answer:
    # A peer's answer is told: how it fails is its own affair.
    return (True if words.startswith("refused") else None), words


def _probe(place: Place, cell: Cell, question: str, **content: Any) -> Any:
    said = place.ask(
        "probes",
        f"probe-{question}",
        question=question,
        cell=cell.to_json(),
        output=place.folder / "probe",
        **content,
    )
    return said["answer"]


def _contamination(place: Place, cell: Cell, layout: Mapping[str, bool]) -> Answer:
    return _within(_probe(place, cell, "tuned", layout=layout))


def _questions(place: Place, cell: Cell) -> list[Question]:
    """Return what is asked about one cell; the plain loop is trained at once, to compare with."""
    method = cell.trajectory.method
    reference = _trained(place, cell, "plain")

    def compare(arm: str, is_judged: bool) -> Answer:
        folder = _trained(place, cell, arm)
        is_same, words = compare_folders(place.world, cell, folder, reference)
        return (is_same if is_judged else None), words

    about = f"{method}: same weights and loss as the plain loop"
    arms = [arm for arm in SAME_STEPS if arm != "LLaMA-Factory" or place.llama_factory]
    asked: list[Question] = [(arm, about, partial(compare, arm, SAME_STEPS[arm])) for arm in arms]
    about = f"{method}: training moves the loss, so that equality says something"
    asked.append(("all", about, lambda: _moved(place.world, cell, reference)))
    about = f"{method}: a cell of a longer run has the bytes of its own run"
    asked.append(("ours", about, lambda: _prefix(place, cell)))
    about = f"{method}: four runs in one model end as each alone"
    asked.append(("ours", about, lambda: _stacked(place, cell)))
    return asked


def _moved(world: World, cell: Cell, trained: Path) -> Answer:
    base = _loss(world, cell, None)
    moved = abs(_loss(world, cell, trained) - base) / base
    return moved > 100 * LOSS_WITHIN, f"by {moved:.1%}"


def _trained(place: Place, cell: Cell, arm: str) -> Path:
    """Train one cell with an arm and return its folder."""
    name = f"{arm}-{cell.trajectory.method}".replace(" ", "-")
    output = place.folder / "same" / name
    if arm == "ours":
        study = ours.write_study(
            place.world, output / "study.yaml", [cell.trajectory], range(1, cell.epoch + 1)
        )
        command = ours.command(study, output / "store", workers=1)
        run([command], place.folder / "logs" / name)
        folders = ours.folders_by_cell(study, output / "store")
        return next(folder for (_, epoch), folder in folders.items() if epoch == cell.epoch)
    run([_command(place, cell, arm, name, output)], place.folder / "logs" / name)
    return output / cell.name


def _command(place: Place, cell: Cell, arm: str, name: str, output: Path) -> Command:
    if arm.startswith("plain"):
        wanted = [{"trajectory": asdict(cell.trajectory), "epochs": [cell.epoch]}]
        loop = {"head_at_targets": arm != "plain"}
        path = place.request(name, output=output, wanted=wanted, loop=loop, num_threads=1)
        return python("plain", path, 1)
    if arm == "LLaMA-Factory":
        assert place.llama_factory is not None
        return llama_factory.command_of(place.llama_factory, place.world, cell, output, 1)
    way = {"TRL stock": "stock", "Trainer + PEFT": "kept"}.get(arm, "tuned")
    layout = LAYOUTS.get(arm.removeprefix("TRL "), {})
    path = place.request(
        name, output=output, cells=[cell.to_json()], way=way, layout=layout, num_threads=1
    )
    return python("peers", path, 1)


def compare_folders(world: World, cell: Cell, found: Path, reference: Path) -> Answer:
    """Compare two artefacts: distance of their weights over the norm, and of their losses."""
    a, b = (_weights(folder) for folder in (found, reference))
    names = a.keys() & b.keys()
    # A tied head may be written once or twice.
    if any("lm_head" not in name for name in a.keys() ^ b.keys()):
        return False, f"other tensors: {sorted(a.keys() ^ b.keys())[:3]}"
    apart = sum(((a[n].double() - b[n].double()) ** 2).sum().item() for n in names) ** 0.5
    norm = sum((b[n].double() ** 2).sum().item() for n in names) ** 0.5
    losses = [_loss(world, cell, folder) for folder in (found, reference)]
    weights, loss = apart / norm, abs(losses[0] - losses[1]) / losses[1]
    words = f"weights {weights:.1e}, loss {loss:.1e} apart"
    return weights <= WEIGHTS_WITHIN and loss <= LOSS_WITHIN, words


def _weights(folder: Path) -> dict[str, Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def _loss(world: World, cell: Cell, folder: Path | None) -> float:
    """Return the mean loss over the cell's own samples; None is the base model."""
    import peft

    t = cell.trajectory
    whole = folder if folder is not None and t.method == "full" else world.model(t.model)
    model: Any = LlamaForCausalLM.from_pretrained(whole, dtype=torch.float32)
    if folder is not None and t.method == "lora":
        model = peft.PeftModel.from_pretrained(model, folder)
    model.eval()
    samples = world.samples(t.model, t.dataset, t.samples)
    total = 0.0
    for i in range(len(samples.ids)):
        ids, labels = padded(samples, [i])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        total += functional.cross_entropy(logits, labels[0, 1:], reduction="sum").item()
    return total / samples.num_supervised()


def _prefix(place: Place, cell: Cell) -> Answer:
    longer = _trained_here(place, [cell.trajectory], (1, 2), "alone", "longer")
    alone = _trained_here(place, [cell.trajectory], (1,), "alone", "shorter")
    bytes_of = [_only_file(folders, 1).read_bytes() for folders in (longer, alone)]
    is_equal = bytes_of[0] == bytes_of[1]
    return is_equal, f"{len(bytes_of[0]):,} bytes {'equal' if is_equal else 'differ'}"


def _stacked(place: Place, cell: Cell) -> Answer:
    t = cell.trajectory
    rates = (*RATES[t.method], *(2 * rate for rate in RATES[t.method]))
    runs = [Trajectory(**asdict(t) | {"rate": rate}) for rate in rates]
    worst, words = True, []
    found = {
        variant: _trained_here(place, runs, (1, 2), variant, f"{variant}-four")
        for variant in ("alone", "stacked")
    }
    for key, folder in found["stacked"].items():
        is_same, said = compare_folders(place.world, cell, folder, found["alone"][key])
        worst = worst and is_same
        words.append(said)
    return worst, f"worst of {len(words)}: {max(words)}"


Folders = dict[tuple[str, int], Path]


def _trained_here(
    place: Place, runs: Sequence[Trajectory], epochs: Sequence[int], variant: str, name: str
) -> Folders:
    name = f"{name}-{runs[0].method}"
    output = place.folder / "ours" / name
    place.ask(
        "ours",
        name,
        output=output,
        trajectories=[asdict(t) for t in runs],
        epochs=list(epochs),
        variant=variant,
    )
    return ours.folders_by_cell(output / "study.yaml", output / "store")


def _only_file(folders: Folders, epoch: int) -> Path:
    (folder,) = [folder for (_, e), folder in folders.items() if e == epoch]
    (path,) = folder.glob("*.safetensors")
    return path


def _our_refusal(place: Place) -> Answer:
    """Train on prompts that fill max_tokens, so that no answer token is left."""
    folder = place.folder / "unsupervised"
    long = World(folder / "world")
    long.rows("first").parent.mkdir(parents=True, exist_ok=True)
    row = {"prompt": " ".join(["w7"] * 600), "completion": "w8"}
    long.rows("first").write_text((json.dumps(row) + "\n") * 32)
    (folder / "world" / "models").mkdir(exist_ok=True)
    if not long.model("S").exists():
        long.model("S").symlink_to(place.world.model("S").resolve(), target_is_directory=True)
    run_of = Trajectory(model="S", method="full", dataset="first", samples=32, rate=1e-3)
    study = ours.write_study(long, folder / "study.yaml", [run_of], [1])
    log = place.folder / "logs" / "unsupervised"
    try:
        run([ours.command(study, folder / "store", workers=1)], log)
    except ArmError as error:
        lines = log.with_name(f"{log.name}.0.log").read_text().splitlines()
        said = [line.strip() for line in lines if "supervised" in line]
        return bool(said), f"refused: {said[0][:200] if said else error}"
    return False, "trained without a word"


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    binary = request["llama_factory"]
    place = Place(
        world=World(Path(request["world"])),
        folder=Path(request["output"]),
        llama_factory=None if binary is None else Path(binary),
    )
    cells = [Cell.from_json(content) for content in request["cells"]]
    print(json.dumps({"gates": [asdict(gate) for gate in check(place, cells)]}))


if __name__ == "__main__":
    main()
