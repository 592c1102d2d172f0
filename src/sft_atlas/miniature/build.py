"""How are the files of the miniature world made again?

In: a folder and, optionally, names. Out: under that folder `datasets/*.jsonl.gz`, `benchmarks/*`,
`texts/*.jsonl.gz` and `models/*`. Called with `ASSETS` it makes what is shipped: data to the byte,
and models to the bit on one machine with one thread.

Weights are stored as float16, which moves scores by less than bfloat16 does and halves the size.
"""

import gzip
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sft_atlas.errors import CatalogError
from sft_atlas.miniature import bases, instruct, texts
from sft_atlas.miniature.recipe import RECIPES

ASSETS = Path(__file__).parent / "assets"


def names() -> tuple[str, ...]:
    """Return every name that `build` accepts; one name may stand for a dataset and a benchmark."""
    models = (spec.name for spec in RECIPES)
    datasets = (spec.name for spec in instruct.INSTRUCTION_SETS)
    benchmarks = (spec.name for spec in instruct.BENCHMARKS)
    return tuple(dict.fromkeys((*models, *datasets, *benchmarks, texts.NAME)))


def build(
    out: Path,
    *,
    only: Sequence[str] | None = None,
    num_steps: int | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> list[Path]:
    """Write models, datasets, benchmarks and texts under `out` and return the files, in order.

    A base takes about ten minutes on one core, all data a second. `num_steps` shortens pretraining
    for a trial. Raises `CatalogError` for an unknown name.
    """
    unknown = sorted(set(only or ()) - set(names()))
    if unknown:
        known = ", ".join(sorted(names()))
        raise CatalogError(f"miniature: {unknown[0]!r} does not exist; expected one of {known}.")

    def is_wanted(name: str) -> bool:
        return only is None or name in only

    written: list[Path] = []
    for dataset in instruct.INSTRUCTION_SETS:
        if is_wanted(dataset.name):
            written.append(write_dataset(dataset, out / "datasets"))
    for benchmark in instruct.BENCHMARKS:
        if is_wanted(benchmark.name):
            written.extend(write_benchmark(benchmark, out / "benchmarks"))
    if is_wanted(texts.NAME):
        written.append(write_lines(texts.draw_texts(), out / "texts" / f"{texts.NAME}.jsonl.gz"))
    report(f"miniature: {len(written)} data files")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for recipe in RECIPES:
            if is_wanted(recipe.name):
                model = bases.pretrain(recipe, num_steps=num_steps, report=report)
                folder = out / "models" / recipe.name
                written.extend(write_model(model, bases.build_tokenizer(recipe), folder))
    finally:
        torch.set_num_threads(num_threads)
    return written


def write_dataset(spec: instruct.InstructionSet, folder: Path) -> Path:
    """Write an instruction set as gzipped JSON lines and return the file."""
    return write_lines(instruct.draw_rows(spec), folder / f"{spec.name}.jsonl.gz")


def write_benchmark(spec: instruct.Benchmark, folder: Path) -> list[Path]:
    """Write the items, the few-shot examples and the definition of a benchmark."""
    definition = folder / f"{spec.name}.yaml"
    written = [
        write_items(instruct.draw_benchmark(spec), folder / f"{spec.name}.jsonl.gz"),
        write_items(instruct.draw_shots(spec), folder / f"{spec.name}-shots.jsonl.gz"),
        definition,
    ]
    definition.write_text(render_mapping(instruct.define_benchmark(spec)), encoding="ascii")
    return written


def write_items(items: Iterable[instruct.BenchmarkItem], path: Path) -> Path:
    """Write benchmark items as gzipped JSON lines and return the file."""
    return write_lines((item.as_record() for item in items), path)


def write_lines(records: Iterable[Mapping[str, object]], path: Path) -> Path:
    """Write one JSON object per line; the same records give the same bytes at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as packed:
        packed.write(text.encode("utf-8"))
    path.write_bytes(buffer.getvalue())
    return path


def write_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> list[Path]:
    """Write a model folder that `from_pretrained` loads; weights as float16 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sorted(path for path in folder.iterdir() if path.is_file())


def render_mapping(mapping: Mapping[str, object]) -> str:
    """Render a mapping as YAML, one key per line; nested values in JSON, which YAML contains."""
    return "".join(f"{key}: {_render_value(value)}\n" for key, value in mapping.items())


def _render_value(value: object) -> str:
    is_plain = isinstance(value, str) and value.replace("-", "").replace("_", "").isalnum()
    return str(value) if is_plain else json.dumps(value)
