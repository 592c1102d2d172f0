"""Shapes, operations, predictions and tables of `train_gpu.py`: what needs no GPU and no torch.

A model's operations are counted as its mathematics asks for them: 6 per weight and token where
weights train, 4 where they are frozen under adapters, the output head only at supervised
positions, attention over half of each document's square. What an implementation computes again is
not counted. So a figure of utilisation is comparable between arms, and no arm gains by waste.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, final

Row = dict[str, Any]

DENSE_PEAK_TFLOPS: Final = 989.0
"""bfloat16 without sparsity, by the vendor's data sheet of H100 and H200."""

RANK: Final = 16


@final
@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's sizes; its weights are random."""

    architecture: Literal["llama", "qwen2"]
    hidden: int
    layers: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    is_tied: bool = True

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def _matrices(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's seven linear maps."""
        own, shared = self.heads * self.head_size, self.key_heads * self.head_size
        attention = [(self.hidden, own), (self.hidden, shared), (self.hidden, shared)]
        mlp = [(self.hidden, self.inner)] * 2 + [(self.inner, self.hidden)]
        return [*attention, (own, self.hidden), *mlp]

    @property
    def body_weights(self) -> int:
        """Weights in matrix products, the output head left out."""
        return self.layers * sum(a * b for a, b in self._matrices)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def adapter_weights(self) -> int:
        return self.layers * sum((a + b) * RANK for a, b in self._matrices)

    def config(self) -> dict[str, Any]:
        """Return the fields of transformers' configuration."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": self.is_tied,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": 1,
        }


SHAPES: Final = {
    # SmolLM2-135M, Qwen2.5-0.5B, Qwen2.5-7B.
    "135m": Shape(
        architecture="llama", hidden=576, layers=30, inner=1536, heads=9, key_heads=3,
        vocabulary=49_152,
    ),
    "0.5b": Shape(
        architecture="qwen2", hidden=896, layers=24, inner=4864, heads=14, key_heads=2,
        vocabulary=151_936,
    ),
    "7b": Shape(
        architecture="qwen2", hidden=3584, layers=28, inner=18_944, heads=28, key_heads=4,
        vocabulary=152_064, is_tied=False,
    ),
}  # fmt: skip

SMOKE_SHAPE: Final = Shape(
    architecture="llama", hidden=64, layers=2, inner=96, heads=4, key_heads=2, vocabulary=512
)


def step_flops(
    shape: Shape, lengths: Sequence[int], supervised: int, *, is_lora: bool
) -> dict[str, float]:
    """Return the operations of forward and backward pass over documents, by what they are for."""
    tokens, square = sum(lengths), sum(length**2 for length in lengths)
    width = shape.heads * shape.head_size
    per_weight = 4 if is_lora else 6
    adapters = 6.0 * shape.adapter_weights * tokens if is_lora else 0.0
    return {
        "body": float(per_weight) * shape.body_weights * tokens,
        "adapters": adapters,
        "head": float(per_weight) * shape.head_weights * supervised,
        # Scores and values: 2 operations each over half the square; thrice for both passes.
        "attention": 6.0 * shape.layers * width * square,
    }


def spread(seconds: Sequence[float]) -> Row:
    """Return the median of a list of times with its quartiles, milliseconds."""
    ordered = sorted(seconds)
    first, third = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    return {
        "median_ms": 1e3 * statistics.median(ordered),
        "quartiles_ms": [1e3 * first, 1e3 * third],
        "n": len(ordered),
    }


@final
@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A figure that was written down before anything was measured."""

    row: str
    field: str
    low: float
    high: float
    said: str
    """The estimate in words; the range is what still counts as a hit."""


def _about(row: str, field: str, value: float, said: str, *, within: float = 0.3) -> Prediction:
    low, high = value * (1 - within), value * (1 + within)
    return Prediction(row=row, field=field, low=low, high=high, said=said)


PREDICTIONS: Final = (
    _about("matrix product", "tflops", 788, "788 TFLOP/s in bfloat16", within=0.05),
    _about("copy", "terabytes_per_second", 4.3, "4.3 TB/s, read and written", within=0.05),
    _about("0.5b lora, eager", "issue_ms", 29, "4.8k kernels of 6 us: 29 ms"),
    _about("0.5b lora, eager", "us_per_token", 6.6, "6.6 us a token"),
    _about("0.5b lora, eager", "crossover_tokens", 4400, "steps of 4.4k tokens fill the GPU"),
    _about("0.5b lora, 16 runs of 512 tokens", "gain", 8.0, "8x"),
    _about("0.5b lora, 16 runs of 1600 tokens", "gain", 2.7, "2.7x"),
    _about("0.5b lora, 16 runs of 8000 tokens", "gain", 1.05, "1.05x", within=0.1),
    Prediction(
        row="0.5b lora, compiled", field="issue_ms", low=6, high=10, said="6 to 10 ms when compiled"
    ),
    _about("0.5b lora, compiled, 16 runs of 512 tokens", "gain", 2.5, "2.5x against compiled"),
    Prediction(
        row="0.5b lora, compiled, 16 runs of 1600 tokens", field="gain", low=1.0, high=1.3,
        said="1.0x to 1.3x against compiled",
    ),
    _about("0.5b lora, compiled, 16 runs of 8000 tokens", "gain", 1.0, "1.0x", within=0.1),
    Prediction(
        row="0.5b lora, 512 tokens, CUDA graph", field="median_ms", low=6, high=10,
        said="6 to 10 ms when captured",
    ),
    _about("7b lora", "us_per_token", 87, "87 us a token"),
    _about("7b lora, 4 runs of 512 tokens", "gain", 1.0, "1.0x", within=0.1),
    _about("7b lora, 4 runs of 1600 tokens", "gain", 1.0, "1.0x", within=0.1),
    Prediction(
        row="0.5b, lora against full", field="gain_per_token", low=1.0, high=1.5,
        said="at most 1.5x per token (4N against 6N)",
    ),
    # Not in the table of anchors; from 4N x 0.49 G / 6.6 us = 300 TFLOP/s at the same rate.
    _about("0.5b full, eager, 16384 tokens", "of_ceiling", 0.38, "38 % of the measured ceiling"),
    Prediction(
        row="135m full, eager, 16384 tokens", field="of_ceiling", low=0.15, high=0.38,
        said="below the 0.5 B: widths of 576 fill fewer tiles",
    ),
    *(
        Prediction(
            row=f"memory of {name}", field="measured_of_predicted", low=0.75, high=1.0,
            said="no more than predicted, and at most a quarter less",
        )
        for name in ("135m full", "0.5b full", "0.5b lora", "0.5b lora, 8 runs", "7b lora")
    ),
)  # fmt: skip


def judge(rows: Sequence[Row]) -> list[Row]:
    """Return for each prediction what was measured and whether it was met."""
    found = {row["name"]: row for row in rows}
    judged = []
    for prediction in PREDICTIONS:
        measured = found.get(prediction.row, {}).get(prediction.field)
        verdict = "not measured"
        if measured is not None:
            is_hit = prediction.low <= measured <= prediction.high
            verdict = "hit" if is_hit else "missed"
        judged.append(
            {
                "about": f"{prediction.row}: {prediction.field}",
                "said": prediction.said,
                "range": [prediction.low, prediction.high],
                "measured": measured,
                "verdict": verdict,
            }
        )
    return judged


def merge(reports: Sequence[Mapping[str, Any]]) -> Row:
    """Put reports of several calls into one; of a part that was run twice the later counts."""
    parts: dict[str, Any] = {}
    for report in reports:
        parts |= report["parts"]
    rows = [row for part in parts.values() for row in part["rows"]]
    smoke = any(report["is_smoke"] for report in reports)
    return {
        "is_smoke": smoke,
        "predictions": [] if smoke else judge(rows),
        "predicted": [] if not smoke else "not judged: figures of a smoke run mean nothing",
        "parts": parts,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Return a report as tables."""
    lines = ["# Training on a GPU", ""]
    if report["is_smoke"]:
        lines += ["**Smoke run with tiny shapes: its figures mean nothing.**", ""]
    lines += ["| part | end | seconds |", "|---|---|---|"]
    lines += [f"| {n} | {p['end']} | {p['seconds']:.0f} |" for n, p in report["parts"].items()]
    rows = [row for part in report["parts"].values() for row in part["rows"]]
    gates = [row for row in rows if "passed" in row]
    if gates:
        lines += ["", "| gate | passed | found |", "|---|---|---|"]
        words = {True: "yes", False: "**NO**", None: "not judged"}
        lines += [f"| {g['name']} | {words[g['passed']]} | {_figures(g)} |" for g in gates]
    if report["predictions"]:
        lines += ["", "| prediction | said before | measured | |", "|---|---|---|---|"]
        for p in report["predictions"]:
            lines.append(
                f"| {p['about']} | {p['said']} | {_shown(p['measured'])} | {p['verdict']} |"
            )
    lines += ["", "| measured | figures |", "|---|---|"]
    lines += [f"| {row['name']} | {_figures(row)} |" for row in rows if "passed" not in row]
    return "\n".join(lines) + "\n"


def _figures(row: Row) -> str:
    left_out = ("name", "passed", "quartiles_ms")
    return ", ".join(f"{key} {_shown(value)}" for key, value in row.items() if key not in left_out)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value).replace("|", "/")


def read_reports(texts: Sequence[str]) -> list[Row]:
    return [json.loads(text) for text in texts]
