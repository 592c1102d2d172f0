"""Install LLaMA-Factory in an environment of its own and train cells with it (arm F).

Its pins (transformers <= 5.6, trl <= 0.24, datasets <= 4.0) exclude this project's versions. Beside
torch's CPU build the torchvision and torchaudio that pip chooses do not load. Texts need neither:
the first is removed, and an empty module stands for the second, which is always imported.
LLaMA-Factory reads the same token ids, in the same order, from a dataset on disk.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from training.arms import ArmError, Command, last_words
from training.grid import BATCH_SAMPLES, CLIP_NORM, MAX_TOKENS, Cell
from training.peers import dataset_folder
from training.world import World

VERSION: Final = "0.9.5"
INSTALL_SECONDS: Final = 900
EMPTY_TORCHAUDIO: Final = (
    "import pathlib, sysconfig; "
    "pathlib.Path(sysconfig.get_path('purelib'), 'torchaudio.py').touch()"
)


def install(folder: Path) -> Path:
    """Return the command of an installed LLaMA-Factory; installs it the first time.

    Raises:
        ArmError: with pip's or its own last words if it cannot be had or does not start.
    """
    command = folder / "bin" / "llamafactory-cli"
    log = folder.with_suffix(".log")
    if not (folder / "works").is_file():
        constraints = Path(__file__).parents[2] / "constraints.txt"
        pip = [str(folder / "bin" / "pip"), "--quiet"]
        torch, package = ["torch"], [f"llamafactory=={VERSION}"]
        for step in (
            [sys.executable, "-m", "venv", str(folder)],
            [*pip, "install", "--constraint", str(constraints), *torch],
            [*pip, "install", "--constraint", str(constraints), *package],
            [*pip, "uninstall", "--yes", "torchvision", "torchaudio"],
            [str(folder / "bin" / "python"), "-c", EMPTY_TORCHAUDIO],
            [str(command), "version"],
        ):
            _do(step, log)
        (folder / "works").touch()
    return command


def _do(step: list[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                step, stdout=stream, stderr=subprocess.STDOUT, check=False, timeout=INSTALL_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ArmError(f"took more than {INSTALL_SECONDS} s to install") from error
    if done.returncode:
        raise ArmError(last_words(log))


def command_of(binary: Path, world: World, cell: Cell, output: Path, num_threads: int) -> Command:
    """Return the command that trains one cell; its settings are written beside the output."""
    lora: dict[str, Any] = {
        "finetuning_type": "lora",
        "adapter_name_or_path": world.adapter(cell.trajectory.model),
    }
    content: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": world.model(cell.trajectory.model),
        "tokenized_path": llama_dataset(world, cell),
        "dataset": "asked for, though tokenized_path is what is read",
        "template": "empty",
        "cutoff_len": MAX_TOKENS,
        "disable_shuffling": True,
        "output_dir": output / cell.name,
        "overwrite_output_dir": True,
        "per_device_train_batch_size": BATCH_SAMPLES,
        "learning_rate": cell.trajectory.rate,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "weight_decay": 0.0,
        "max_grad_norm": CLIP_NORM,
        "bf16": False,
        "disable_gradient_checkpointing": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        **(lora if cell.trajectory.method == "lora" else {"finetuning_type": "full"}),
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{cell.name}.yaml"
    # JSON is YAML, and `no` without quotes would be false.
    path.write_text(json.dumps(content, default=str))
    return Command([str(binary), "train", str(path)], num_threads)


def llama_dataset(world: World, cell: Cell) -> Path:
    """Return a cell's samples in the form that LLaMA-Factory's `tokenized_path` reads."""
    from datasets import DatasetDict, load_from_disk

    source = dataset_folder(world, cell)
    folder = source.with_name(f"{source.name}-llama-factory")
    if not folder.is_dir():
        rows = load_from_disk(source)
        rows = rows.add_column("attention_mask", [[1] * len(ids) for ids in rows["input_ids"]])
        DatasetDict({"train": rows}).save_to_disk(folder)
    return folder
