"""Train cells with TRL's SFTTrainer or with transformers' Trainer (arms A, B and C).

Each cell is a run of its own from the base model. All get the same token ids, masks and order: a
run of e epochs is one pass over the samples of its e epochs in their order, read in sequence.

    python -m training.peers REQUEST.json
"""

import json
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import peft
import torch
from datasets import Dataset, disable_progress_bars, load_from_disk
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from training.grid import BATCH_SAMPLES, CLIP_NORM, Cell
from training.plain import padded
from training.world import Samples, World


@final
@dataclass(frozen=True, kw_only=True)
class Layout:
    """How TRL lays batches out."""

    padding_free: bool = False
    packing: bool = False


PACK_TOKENS = 1024
"""Length of TRL's packed lines."""


def labelled(samples: Samples, steps: Sequence[Sequence[int]]) -> Dataset:
    """Return the samples of all steps in order, with labels."""
    rows = [(samples.ids[i].tolist(), samples.prompt_lengths[i]) for step in steps for i in step]
    labels = [[-100] * prompt + ids[prompt:] for ids, prompt in rows]
    return Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "labels": labels})


def write_datasets(world: World, cells: Sequence[Cell]) -> None:
    """Keep the token ids of cells as datasets on disk, where arms B and F read them."""
    for cell in cells:
        folder = dataset_folder(world, cell)
        if not folder.is_dir():
            t = cell.trajectory
            samples = world.samples(t.model, t.dataset, t.samples)
            aside = folder.with_name(f"{folder.name}.new")
            labelled(samples, world.steps(cell)).save_to_disk(aside)
            aside.rename(folder)


def dataset_folder(world: World, cell: Cell) -> Path:
    t = cell.trajectory
    name = f"{t.model}-{t.dataset}-{t.samples}-epoch{cell.epoch}"
    (world.folder / "datasets").mkdir(exist_ok=True)
    return world.folder / "datasets" / name


def settings(cell: Cell, output: Path, **more: Any) -> dict[str, Any]:
    """Return what every trainer is told, so that the steps are the same."""
    return {
        "output_dir": str(output / "trainer"),
        "learning_rate": cell.trajectory.rate,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": BATCH_SAMPLES,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": CLIP_NORM,
        "weight_decay": 0.0,
        "use_cpu": True,
        **more,
    }


TUNED: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def open_model(world: World, cell: Cell) -> Any:
    """Read the base model, with the first adapter for LoRA."""
    name = cell.trajectory.model
    model = LlamaForCausalLM.from_pretrained(world.model(name), dtype=torch.float32)
    if cell.trajectory.method == "lora":
        return peft.PeftModel.from_pretrained(model, world.adapter(name), is_trainable=True)
    return model


def train_stock(world: World, cell: Cell, output: Path) -> None:
    """Train as TRL's quick start does: from texts, with its defaults (bfloat16, recomputation).

    Told are only what makes it the same experiment (rate, constant schedule, batch of 16, the
    order of samples) and where to save.
    """
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=open_model(world, cell),
        args=SFTConfig(**settings(cell, output)),
        train_dataset=_texts(world, cell),
        processing_class=AutoTokenizer.from_pretrained(world.model(cell.trajectory.model)),
    )
    trainer.train()
    trainer.save_model(output / cell.name)
    shutil.rmtree(output / "trainer", ignore_errors=True)


def _texts(world: World, cell: Cell) -> Dataset:
    from sft_atlas.data.subsets import row_order
    from sft_atlas.data.template import render_answer, render_prompt

    t = cell.trajectory
    lines = world.rows(t.dataset).read_text().splitlines()
    kept = [json.loads(lines[i]) for i in row_order(len(lines), 0)[: t.samples]]
    chosen = [kept[i] for step in world.steps(cell) for i in step]
    return Dataset.from_dict(
        {
            "prompt": [render_prompt("question-answer", row["prompt"]) for row in chosen],
            "completion": [render_answer("question-answer", row["completion"]) for row in chosen],
        }
    )


def train_tuned(world: World, cell: Cell, output: Path, layout: Layout) -> None:
    """Train with TRL set up for this machine: float32, no recomputation, ready token ids."""
    trainer = tuned_trainer(
        world, cell, output, layout, load_from_disk(dataset_folder(world, cell))
    )
    trainer.train()
    trainer.save_model(output / cell.name)


def tuned_trainer(
    world: World, cell: Cell, output: Path, layout: Layout, dataset: Dataset, **more: Any
) -> Any:
    from trl import SFTConfig, SFTTrainer

    arguments: dict[str, Any] = dict(TUNED)
    if layout.packing:
        samples = world.samples(
            cell.trajectory.model, cell.trajectory.dataset, cell.trajectory.samples
        )
        mean = samples.num_tokens() / len(samples.ids)
        # As many tokens in a step as a batch of samples has on average.
        lines = max(1, round(BATCH_SAMPLES * mean / PACK_TOKENS))
        arguments |= {"packing": True, "max_length": PACK_TOKENS}
        arguments |= {"per_device_train_batch_size": lines}
    else:
        arguments |= {"padding_free": layout.padding_free, "max_length": None}
        arguments |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
    return SFTTrainer(
        model=open_model(world, cell),
        args=SFTConfig(**settings(cell, output) | arguments | more),
        train_dataset=dataset,
        processing_class=make_tokenizer_of(world, cell),
    )


def make_tokenizer_of(world: World, cell: Cell) -> Any:
    return AutoTokenizer.from_pretrained(world.model(cell.trajectory.model))


class _Kept:
    """Base model and token ids that a process keeps for arm C."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.models: dict[str, LlamaForCausalLM] = {}
        self.pristine: dict[str, dict[str, torch.Tensor]] = {}
        self.samples: dict[tuple[str, str, int], Samples] = {}

    def model(self, name: str) -> LlamaForCausalLM:
        if name not in self.models:
            folder = self.world.model(name)
            self.models[name] = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
            state = self.models[name].state_dict()
            self.pristine[name] = {key: value.clone() for key, value in state.items()}
        model = self.models[name]
        model.load_state_dict(self.pristine[name])
        model.requires_grad_(True)
        return model

    def rows(self, cell: Cell) -> Samples:
        t = cell.trajectory
        key = (t.model, t.dataset, t.samples)
        if key not in self.samples:
            self.samples[key] = self.world.samples(*key)
        return self.samples[key]


class _Steps(torch.utils.data.Dataset[tuple[list[int], int]]):
    """Samples by their place in the run."""

    def __init__(self, steps: Sequence[Sequence[int]]) -> None:
        self.order = [index for step in steps for index in step]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> int:  # type: ignore[override]
        return self.order[place]


def train_kept(kept: _Kept, cell: Cell, output: Path) -> None:
    """Train with transformers' Trainer and PEFT in a process that keeps model and tokens."""
    name = cell.trajectory.model
    model: Any = kept.model(name)
    if cell.trajectory.method == "lora":
        model = peft.PeftModel.from_pretrained(model, kept.world.adapter(name), is_trainable=True)
    samples = kept.rows(cell)

    def collate(chosen: list[int]) -> dict[str, torch.Tensor]:
        ids, labels = padded(samples, chosen)
        lengths = torch.tensor([[len(samples.ids[i])] for i in chosen])
        mask = (torch.arange(ids.shape[1]) < lengths).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings(cell, output) | TUNED),
        train_dataset=_Steps(kept.world.steps(cell)),
        data_collator=collate,
    )
    trainer.train()
    trainer.save_model(str(output / cell.name))
    if cell.trajectory.method == "lora":
        kept.models[name] = model.unload()


def train_all(request: dict[str, Any]) -> Iterator[float]:
    """Train a request's cells one after another; yields the seconds of each."""
    world, output = World(Path(request["world"])), Path(request["output"])
    kept = _Kept(world)
    for content in request["cells"]:
        cell = Cell.from_json(content)
        started = time.perf_counter()
        if request["way"] == "stock":
            train_stock(world, cell, output)
        elif request["way"] == "tuned":
            train_tuned(world, cell, output, Layout(**request["layout"]))
        else:
            train_kept(kept, cell, output)
        yield time.perf_counter() - started


def main() -> None:
    warnings.simplefilter("ignore")
    disable_progress_bars()
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(request["num_threads"])
    print(json.dumps({"cell_seconds": list(train_all(request))}))


if __name__ == "__main__":
    main()
