"""What does the catalog say about the models, the data and the texts of the miniature world?

In: the recipes and specs, and the shipped weights for their parameter counts. Out: the text of
`catalog/miniature.yaml`. The file is kept in the catalog as data like any other; a test compares it
with this rendering, so that a card cannot differ from what it describes.

Token counts are means over all rows, in the study's template: a sample with its end-of-sequence
token, a benchmark's prompt up to and including `###Answer:`, a generated answer with its
end-of-sequence token, or one option of a choice question; `choices` is the largest number of them.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from statistics import fmean

from sft_atlas.miniature import instruct, recipe, texts

ASSETS = Path(__file__).parent / "assets"
SOURCE = "miniature/assets"
TEMPLATE_TOKENS = 3
"""The two marks and the newline of the template."""
LANGUAGE_B_MAJORITY = 0.5


def render_cards() -> str:
    """Return the YAML text of all cards of the miniature world."""
    sections = {
        "models": {spec.name: _card_of_model(spec) for spec in recipe.RECIPES},
        "datasets": {spec.name: _card_of_dataset(spec) for spec in instruct.INSTRUCTION_SETS},
        "benchmarks": {spec.name: _card_of_benchmark(spec) for spec in instruct.BENCHMARKS},
        "texts": {texts.NAME: _card_of_texts()},
    }
    lines = ["# Generated from sft_atlas.miniature by render_cards; change the recipes, not this."]
    for section, cards in sections.items():
        lines.append(f"{section}:")
        for name, card in cards.items():
            lines.append(f"  {name}:")
            lines.extend(f"    {key}: {_render_value(value)}" for key, value in card.items())
    return "\n".join(lines) + "\n"


def _render_value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_render_value(part)}" for key, part in value.items()) + "}"
    return json.dumps(value)


def _card_of_model(spec: recipe.BaseRecipe) -> Mapping[str, object]:
    centred_on_b = spec.language_b_fraction > LANGUAGE_B_MAJORITY
    return {
        "source": {"asset": f"{SOURCE}/models/{spec.name}"},
        "family": spec.architecture,
        "languages": ["b", "a"] if centred_on_b else ["a", "b"],
        "license": instruct.LICENCE,
        "parameters": count_parameters(ASSETS / "models" / spec.name / "model.safetensors"),
        "layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_heads": recipe.NUM_HEADS,
        "num_kv_heads": spec.num_kv_heads,
        "vocab_size": recipe.VOCAB_SIZE,
        "head_dim": recipe.HEAD_DIM,
        "tied_embeddings": True,
        "texts": texts.NAME,
        "note": spec.note,
    }


def count_parameters(path: Path) -> int:
    """Add up the sizes of all tensors by the header of a safetensors file; tied ones count once."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _card_of_dataset(spec: instruct.InstructionSet) -> Mapping[str, object]:
    rows = instruct.draw_rows(spec)
    samples = (f"{row['prompt']} {row['completion']}" for row in rows)
    return {
        "source": {"asset": f"{SOURCE}/datasets/{spec.name}.jsonl.gz"},
        "shape": "prompt-completion",
        "group": spec.group,
        "language": spec.language,
        "license": instruct.LICENCE,
        "rows": len(rows),
        "tokens_per_sample": round(mean_words(samples) + TEMPLATE_TOKENS + 1, 2),
        "note": spec.note,
    }


def _card_of_benchmark(spec: instruct.Benchmark) -> Mapping[str, object]:
    items = instruct.draw_benchmark(spec)
    is_choice = spec.kind == "choice"
    scoring = (
        {"choices": max(len(item.choices) for item in items)}
        if is_choice
        else {"max_new_tokens": instruct.MAX_NEW_TOKENS}
    )
    answers = [text for item in items for text in _answers_of(item)]
    return {
        "source": {"asset": f"{SOURCE}/benchmarks/{spec.name}.yaml"},
        "kind": spec.kind,
        "metric": instruct.define_benchmark(spec)["metric"],
        "items": len(items),
        "shots": 0,
        "prompt_tokens": round(mean_words(item.question for item in items) + TEMPLATE_TOKENS, 2),
        "answer_tokens": round(mean_words(answers) + (0 if is_choice else 1), 2),
        **scoring,
        "skill": spec.skill,
        "language": spec.language,
        "license": instruct.LICENCE,
    }


def _card_of_texts() -> Mapping[str, object]:
    drawn = [row["text"] for row in texts.draw_texts()]
    return {
        "source": {"asset": f"{SOURCE}/texts/{texts.NAME}.jsonl.gz"},
        "languages": ["a", "b"],
        "license": instruct.LICENCE,
        "num_texts": len(drawn),
        "tokens_per_text": round(mean_words(drawn), 2),
        "note": "Documents of the corpus from a random stream of their own, half in each language.",
    }


def _answers_of(item: instruct.BenchmarkItem) -> tuple[str, ...]:
    return item.choices if item.choices else (item.answer,)


def mean_words(texts: Iterable[str]) -> float:
    """Return the mean number of words, which are the tokens of the world's tokenizer."""
    return fmean(len(text.split(" ")) for text in texts)
