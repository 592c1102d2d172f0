"""Train trajectories in one process as a competent researcher would without this package (arm D).

The base model and the token ids stay in memory. A trajectory's epochs are checkpoints of one run.
A batch is sorted by length and split into micro-batches that are padded to their longest sample;
the loss is summed over supervised tokens and divided by their number in the whole batch. LoRA is
PEFT's. Wall time ends when the last file is written.

    python -m training.plain REQUEST.json
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import peft
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel

from training.grid import ADAMW, CLIP_NORM, Cell, Trajectory
from training.world import Samples, World, epoch_steps


@final
@dataclass(frozen=True, kw_only=True)
class Loop:
    """How the plain loop works; what is fastest here is found before anything is timed."""

    micro_batch_samples: int = 16
    is_fused: bool = True
    """AdamW's fused kernel."""
    head_at_targets: bool = False
    """Logits only where a token is supervised, which most loops do not bother to do."""


def train_trajectories(
    world: World,
    wanted: Sequence[tuple[Trajectory, Sequence[int]]],
    output: Path,
    loop: Loop,
    *,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> None:
    """Train (trajectory, epochs) pairs and write one folder per cell."""
    base: dict[str, LlamaForCausalLM] = {}
    pristine: dict[str, dict[str, Tensor]] = {}
    for trajectory, epochs in wanted:
        name = trajectory.model
        if name not in base:
            base[name] = LlamaForCausalLM.from_pretrained(world.model(name), dtype=torch.float32)
            pristine[name] = {k: v.clone() for k, v in base[name].state_dict().items()}
        model: Any = base[name]
        model.load_state_dict(pristine[name])
        model.requires_grad_(True)
        if trajectory.method == "lora":
            model = peft.PeftModel.from_pretrained(model, world.adapter(name), is_trainable=True)
        samples = world.samples(name, trajectory.dataset, trajectory.samples)
        for epoch in _train(model, trajectory, samples, loop, max(epochs), on_step):
            if epoch in epochs:
                cell = Cell(trajectory=trajectory, epoch=epoch)
                model.save_pretrained(output / cell.name)
        if trajectory.method == "lora":
            base[name] = model.unload()


def _train(
    model: Any,
    trajectory: Trajectory,
    samples: Samples,
    loop: Loop,
    num_epochs: int,
    on_step: Callable[[int, float], None],
) -> Iterator[int]:
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=trajectory.rate, fused=loop.is_fused, **ADAMW)
    step = 0
    for epoch in range(1, num_epochs + 1):
        for chosen in epoch_steps(trajectory.samples, epoch):
            num_targets = sum(len(samples.ids[i]) - samples.prompt_lengths[i] for i in chosen)
            optimizer.zero_grad()
            total = 0.0
            ordered = sorted(chosen, key=lambda i: len(samples.ids[i]))
            for start in range(0, len(ordered), loop.micro_batch_samples):
                part = ordered[start : start + loop.micro_batch_samples]
                loss = _summed_loss(model, samples, part, loop.head_at_targets) / num_targets
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
            step += 1
            on_step(step, total)
        yield epoch


def _summed_loss(model: Any, samples: Samples, part: list[int], head_at_targets: bool) -> Tensor:
    ids, labels = padded(samples, part)
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(samples.ids[i])] for i in part])
    if not head_at_targets:
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        shifted, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return functional.cross_entropy(shifted, targets, ignore_index=-100, reduction="sum")
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "peft_config") else model
    hidden = inner.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)[0][:, :-1]
    is_target = labels[:, 1:] != -100
    logits = inner.lm_head(hidden[is_target])
    return functional.cross_entropy(logits, labels[:, 1:][is_target], reduction="sum")


def padded(samples: Samples, part: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return ids and labels (samples, longest), padded on the right."""
    width = max(len(samples.ids[i]) for i in part)
    ids = torch.zeros(len(part), width, dtype=torch.int64)
    labels = torch.full((len(part), width), -100)
    for line, i in enumerate(part):
        sample, prompt = torch.from_numpy(samples.ids[i]), samples.prompt_lengths[i]
        ids[line, : len(sample)] = sample
        labels[line, prompt : len(sample)] = sample[prompt:]
    return ids, labels


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(request["num_threads"])
    wanted = [(Trajectory(**item["trajectory"]), item["epochs"]) for item in request["wanted"]]
    losses: list[float] = []
    started = time.perf_counter()
    train_trajectories(
        World(Path(request["world"])),
        wanted,
        Path(request["output"]),
        Loop(**request["loop"]),
        on_step=lambda _step, loss: losses.append(loss),
    )
    print(json.dumps({"seconds": time.perf_counter() - started, "losses": losses}))


if __name__ == "__main__":
    main()
