"""Whether the training engine is right on this device, before anybody asks how fast it is."""

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor
from train_gpu_bench import Bench, gate
from train_gpu_engine import Work, loss_gap, make_model
from train_gpu_sums import SMOKE_SHAPE, Shape

from sft_atlas.model import document_attention
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.model.score import computes_in
from sft_atlas.model.training_pass import can_pack, summed_losses
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.store import open_store
from sft_atlas.study.spec import ModelSpec, Source
from sft_atlas.train.checkpoint import CheckpointWriter
from sft_atlas.train.holder import Holder, LiveHolder, StackHolder
from sft_atlas.train.loop import train
from sft_atlas.train.metrics import METRICS_NAME, read_metrics
from sft_atlas.train.placement import Observers, TrainPlacement
from sft_atlas.train.run import Run


def do_correct(bench: Bench) -> None:
    """Compare kernels and layouts with each other, and stacked runs with runs alone."""
    base = bench.base("135m")
    _compare_attentions(bench, base)
    for is_lora in (True, False):
        # A CPU computes in float32 whatever the precision.
        for precision, bound in bench.few((("float32", 1e-5), ("bfloat16", 1e-2))):
            work = bench.work(is_lora=is_lora, tokens=1600, precision=precision)
            alone = [_losses(bench, base, work, [seed]) for seed in range(4)]
            beside = _losses(bench, base, work, list(range(4)))
            gap = loss_gap(
                [loss for own in beside for loss in own], [loss for (own,) in alone for loss in own]
            )
            kind = "lora" if is_lora else "full"
            gate(bench, f"4 stacked runs lose what each loses alone, {kind}, {precision}",
                  gap, bound, steps=len(beside[0]))  # fmt: skip


def _compare_attentions(bench: Bench, base: BaseModel) -> None:
    """Compare the kernel for varying lengths with buckets, and packed with padded samples."""
    model = base.model
    work = bench.work(is_lora=False, tokens=4096)
    member = (work.rows(model.config.vocab_size), list(range(work.documents)))
    calls = mock.Mock(wraps=document_attention._attend_as_they_lie)
    with mock.patch.object(document_attention, "_attend_as_they_lie", calls):
        found = _loss_and_gradients(model, member, "bfloat16")
        num_calls = calls.call_count
    with mock.patch.object(document_attention, "_has_kernel", lambda *_: False):
        buckets = _loss_and_gradients(model, member, "bfloat16")
    name = "the kernel for varying lengths agrees with buckets, bfloat16"
    if num_calls:
        gate(bench, f"{name}: loss", abs(found[0] / buckets[0] - 1), 1e-2)
        gate(bench, f"{name}: gradients", _distance(found[1], buckets[1]), 5e-2)
    else:
        bench.emit({"name": name, "passed": None, "found": "no such kernel here"})
    packs = can_pack(model)
    bench.emit({"name": "the model packs", "passed": packs})
    together = _loss_and_gradients(model, member, "float32")
    padded = _loss_and_gradients(model, member, "float32", packed=False)
    gate(bench, "packed samples lose what padded ones do, float32",
          abs(together[0] / padded[0] - 1), 1e-5)  # fmt: skip
    gate(bench, "and have their gradients, float32", _distance(together[1], padded[1]), 1e-4)
    base.reset()


def _loss_and_gradients(
    model: Any, member: Any, precision: Any, *, packed: bool = True
) -> tuple[float, list[Tensor]]:
    model.zero_grad(set_to_none=True)
    with computes_in(precision, model.device):
        loss = summed_losses(model, [member], packed=packed).sum()
    torch.autograd.backward(loss)
    return float(loss), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the norm of a difference over the norm of what is expected."""
    pairs = list(zip(found, expected, strict=True))
    apart = sum(float((a - b).double().square().sum()) for a, b in pairs)
    return float((apart / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5)


def _losses(
    bench: Bench, base: BaseModel, work: Work, seeds: Sequence[int], steps: int = 3
) -> list[list[float]]:
    """Return the losses of each run over some steps, alone in the live model or in a stack."""
    placement = TrainPlacement(stack_runs=len(seeds))
    holder: Holder = (LiveHolder if len(seeds) == 1 else StackHolder)(base, placement)
    rows = work.rows(base.model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for seed in seeds:
            job = work.job(base.spec, seed=seed, keep_epochs=(9,))
            runs.append(
                Run(
                    job=job,
                    store=open_store(Path(folder), create=True),
                    rows=rows,
                    observers=Observers(),
                    state=holder.begin(job.trajectory),
                    writer=CheckpointWriter(Path(folder)),
                )
            )
        holder.hold(runs)
        losses: list[list[float]] = [[] for _ in runs]
        for _ in range(steps):
            found = holder.backward([run.next_step() for run in runs], 16_384).tolist()
            for run, loss, own in zip(runs, found, losses, strict=True):
                own.append(loss)
                run.clip()
                run.move(1e-4)
        for run in runs:
            run.writer.close()
        holder.close()
        base.reset()
    return losses


RESUME_SHAPE: Final = Shape(
    architecture="llama", hidden=256, layers=4, inner=768, heads=4, key_heads=2, vocabulary=4096
)


def do_resume(bench: Bench) -> None:
    """Kill a run in its second epoch, let another process finish it, compare with one that lived.

    The process of this part leaves the device to its children.
    """
    shape = SMOKE_SHAPE if bench.is_smoke else RESUME_SHAPE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model: Any = make_model(shape, "cpu")
        model.save_pretrained(folder / "model")
        first_kill = 6
        ends = [
            _train_elsewhere(bench, folder, store, kill_at)
            for store, kill_at in (
                ("lived", 0),
                ("again", 0),
                ("killed", first_kill),
                ("killed", 0),
            )
        ]
        begun = int((folder / "killed.first").read_text())
        bench.emit({
            "name": "a killed run is gone on with",
            "passed": ends == [0, 0, -signal.SIGKILL, 0] and begun > 1,
            "ends": str(ends), "first_step_of_the_second_process": begun,
        })  # fmt: skip
        lived, again, killed = (_result(folder / store) for store in ("lived", "again", "killed"))
        noise = _distance(again[1], lived[1])
        bench.emit({"name": "two undisturbed runs", "weights_apart": noise,
                    "losses_apart": loss_gap(again[0], lived[0])})  # fmt: skip
        gate(bench, "a resumed run's losses", loss_gap(killed[0], lived[0]), 1e-3)
        gate(bench, "a resumed run's weights", _distance(killed[1], lived[1]), 1e-2,
              is_bitwise=all(map(torch.equal, killed[1], lived[1])))  # fmt: skip


def _train_elsewhere(bench: Bench, folder: Path, store: str, kill_at: int) -> int:
    context: Any = get_context("fork" if bench.is_smoke else "spawn")
    process = context.Process(
        target=_train_or_die, args=(folder, store, kill_at, str(bench.device))
    )
    process.start()
    process.join()
    return int(process.exitcode)


def _train_or_die(folder: Path, store: str, kill_at: int, device: str) -> None:
    """Train 2 epochs of 4 steps; die behind a step if asked to."""
    spec = ModelSpec(name="random", source=Source(path=folder / "model"))
    work = Work(is_lora=False, documents=8, tokens=512)
    base = load_base(spec, device=device)
    steps: list[int] = []

    def on_step(done: int, _all: int) -> None:
        if not steps:
            (folder / f"{store}.first").write_text(str(done))
        steps.append(done)
        if done == kill_at:
            _wait_for_checkpoint(folder / store)
            os.kill(os.getpid(), signal.SIGKILL)

    train(
        work.job(spec, seed=0, keep_epochs=(1, 2)),
        store=open_store(folder / store, create=True),
        base=base,
        rows=work.rows(base.model.config.vocab_size),
        observers=Observers(on_step=on_step),
    )


def _wait_for_checkpoint(root: Path) -> None:
    """Wait until the epoch's checkpoint, which is written beside the steps, is on the disk."""
    for _ in range(600):
        if list(root.glob("working/*/step-*")):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{root}: no checkpoint came in a minute; expected one of the first epoch")


def _result(root: Path) -> tuple[list[float], list[Tensor]]:
    """Return the losses and the last weights that a run published."""
    store = open_store(root)
    spec = ModelSpec(name="random", source=Source(path=root.parent / "model"))
    job = Work(is_lora=False, documents=8, tokens=512).job(spec, seed=0, keep_epochs=(1, 2))
    outcome = outcome_folder(store, job.trajectory.fingerprint, last_epoch=2)
    losses = [step.loss for step in read_metrics(outcome / METRICS_NAME)]
    cell = store.layout.cell(job.cells[-1].fingerprint)
    weights = [tensor.float() for path in sorted(cell.glob("*.safetensors"))
               for _, tensor in sorted(load_file(path).items())]  # fmt: skip
    return losses, weights
