"""Make tables with planted effects, shaped exactly like those that `store.tables` reads from a
store.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

import planted_measures as measured
from sft_atlas.store.tables import LABELS, Tables

SKILLS = ("knowledge", "math", "code", "comprehension", "reasoning", "instruction")
WHOLE = ("samples", "num_samples", "horizon_epochs", "epoch", "seed")
FAMILIES = ("llama", "qwen2", "gemma2", "olmo2")


@dataclass(frozen=True, kw_only=True)
class World:
    """What is true in the made study; gains are fractions."""

    num_models: int = 4
    num_datasets: int = 7
    num_benchmarks: int = 8
    methods: tuple[str, ...] = ("full", "lora")
    samples: tuple[int, ...] = (200,)
    schedule: str = "constant"
    epochs: tuple[int, ...] = (1, 3, 5)
    own: float = 0.3
    other: float = -0.02
    lora: float = 0.0
    per_epoch: float = 0.0
    perplexity: float = 0.0
    """Added per standard deviation of log perplexity."""
    length: float = 0.0
    """Added per standard deviation of log length; a decoy without an effect by default."""
    similarity: float = 0.0
    """Added per standard deviation of a dataset's cosine to a benchmark; a decoy by default."""
    layer: float = 0.0
    """How much the change of the layer at 0.6 follows the gain."""
    rise: float = 3.0
    """Dimensions that tuned models gain from 0.6 of the depth on."""
    forgetting: float = 0.0
    """How much log KL follows the gain."""
    noise: float = 0.02
    num_items: int = 200
    num_failed: int = 0
    num_layers: int = 6
    num_steps: int = 40
    seed: int = 0


def make_tables(world: World = World()) -> Tables:
    rng = np.random.default_rng(world.seed)
    models = [f"{FAMILIES[i % 4]}-{chr(97 + i)}" for i in range(world.num_models)]
    groups = [
        SKILLS[i % 6] if i < world.num_datasets - 1 else "general"
        for i in range(world.num_datasets)
    ]
    datasets = [f"{group}-set{i // 6 or ''}" for i, group in enumerate(groups)]
    skills = [SKILLS[i % 6] for i in range(world.num_benchmarks)]
    benchmarks = [f"{skill}-test{i // 6 or ''}" for i, skill in enumerate(skills)]
    level = rng.normal(size=(len(models), 1)) * 0.3 + rng.normal(size=(1, len(datasets))) * 0.5
    log_perplexity = 1.5 + level + 0.2 * rng.normal(size=(len(models), len(datasets)))
    z = (log_perplexity - log_perplexity.mean()) / log_perplexity.std()
    own_rng = np.random.default_rng([world.seed, 1])
    log_length = np.log(60) + 0.6 * own_rng.normal(size=(1, len(datasets)))
    log_length = log_length + 0.05 * own_rng.normal(size=(len(models), 1))
    log_length = log_length + 0.02 * own_rng.normal(size=(len(models), len(datasets)))
    z_length = (log_length - log_length.mean()) / log_length.std()
    cosines = own_rng.uniform(0.1, 0.7, size=(len(datasets), len(benchmarks)))
    z_cosine = (cosines - cosines.mean()) / cosines.std()
    base = rng.uniform(0.1, 0.5, size=(len(models), len(benchmarks)))
    taste = rng.normal(size=(len(models), len(datasets), len(benchmarks))) * world.noise
    cells, scores, drift, curves = [], [], [], []
    mean_gains: dict[str, float] = {}
    for m, model in enumerate(models):
        label = {"cell": f"base{m:028d}", "block": "", "model": model, "family": FAMILIES[m % 4]}
        label |= {"languages": "en", "data": "base", "data_kind": "base", "method": "base"}
        label |= {"method_kind": "base", "epoch": 0}
        cells.append(label | _done())
        for b, benchmark in enumerate(benchmarks):
            scores.append(label | _score(benchmark, skills[b], base[m, b], base[m, b], world))
    place = [
        (m, d, method, size)
        for m in range(len(models))
        for d in range(len(datasets))
        for method in world.methods
        for size in world.samples
    ]
    for number, (m, d, method, size) in enumerate(place):
        trajectory = f"t{number:031d}"
        wobble = rng.normal(size=len(benchmarks)) * world.noise
        failed = number < world.num_failed
        kind = "lora" if method.startswith("lora") else "full"
        for e, epoch in enumerate(world.epochs):
            cell = f"c{number:025d}e{epoch:05d}"
            label = {"cell": cell, "trajectory": trajectory, "block": "single", "model": models[m]}
            label |= {"family": FAMILIES[m % 4], "languages": "en", "data": datasets[d]}
            label |= {
                "data_kind": "each",
                "data_group": groups[d],
                "samples": size,
                "num_samples": size,
            }
            label |= {"method": method, "method_kind": kind, "schedule": world.schedule}
            label |= {"horizon_epochs": None, "epoch": epoch, "seed": 0}
            if failed:
                label |= {"state": "failed", "is_trained": False, "failure_kind": "diverged"}
                label |= {
                    "failure_message": "loss is not finite at step 17; lower the learning rate."
                }
            else:
                label |= _done()
            cells.append(label)
            own = np.array([world.own if skill == groups[d] else world.other for skill in skills])
            effect = own + taste[m, d] + wobble + world.perplexity * z[m, d] + world.per_epoch * e
            effect = effect + world.length * z_length[m, d] + world.similarity * z_cosine[d]
            effect = effect + (world.lora if kind == "lora" else 0.0)
            for b, benchmark in enumerate(benchmarks):
                if failed:
                    row = {"benchmark": benchmark, "skill": skills[b], "language": "en"}
                    row |= {
                        "in_mean": True,
                        "metric": "exact_match",
                        "reason": label["failure_message"],
                    }
                    scores.append(label | row)
                    continue
                value = float(np.clip(base[m, b] + effect[b], 0, 1))
                scores.append(label | _score(benchmark, skills[b], value, base[m, b], world))
            mean_gains[cell] = float(effect.mean())
            if not failed:
                drift += _drift(cell, effect.mean(), world, rng)
        if not failed:
            curves += _curve(trajectory, world, rng)
    rows = [
        {
            "model": models[m],
            "data": datasets[d],
            "samples": world.samples[0],
            "data_group": groups[d],
            "answer_nll": float(log_perplexity[m, d] * 5000),
            "answer_tokens": 5000,
            "prompt_nll": 9000.0,
            "prompt_tokens": 9000,
            "num_samples": world.samples[0],
            "mean_tokens": float(np.exp(log_length[m, d])),
            "answer_bytes": int(20_000 * (1 + 0.1 * own_rng.uniform())),
            "ifd": float(own_rng.uniform(0.4, 0.9)),
            "prompt_bytes": 36_000,
            "answer_nll_per_token_mean": float(log_perplexity[m, d] + 0.1 * own_rng.normal()),
        }
        for m in range(len(models))
        for d in range(len(datasets))
    ]
    state = ["state", "is_trained", "failure_kind", "failure_message"]
    measured_columns = ["score", "standard_error", "num_items", "num_scored", "reason"]
    measured_columns += ["score_low", "score_high"]
    measured_columns += ["base_score", "gain", "gain_se", "gain_low", "gain_high", "num_paired"]
    named = ["cell", "benchmark", "skill", "language", "metric", "in_mean"]
    cell_frame = pd.DataFrame(cells, columns=["cell", *LABELS, *state]).astype(
        dict.fromkeys(WHOLE, "Int64")
    )
    states = measured.representation_table(cell_frame, world.num_layers, world.rise, own_rng)
    size = world.samples[0]
    return Tables(
        cells=cell_frame,
        scores=pd.DataFrame(scores, columns=[*named, *measured_columns, *LABELS, "state"]).astype(
            dict.fromkeys([*WHOLE, "num_items", "num_scored", "num_paired"], "Int64")
        ),
        drift=pd.DataFrame(drift),
        datasets=pd.DataFrame(rows),
        curves=pd.DataFrame(curves),
        spectra=measured.spectrum_table(cell_frame, world.num_layers, own_rng),
        descriptions=measured.description_table(datasets, groups, size, own_rng),
        similarities=measured.similarity_table(cosines, datasets, benchmarks, size),
        forgetting=measured.forgetting_table(cell_frame, mean_gains, world.forgetting, own_rng),
        representations=states,
        scans=measured.scan_table(states),
        updates=measured.update_table(cell_frame, own_rng),
    )


def _done() -> dict[str, object]:
    return {"state": "done", "is_trained": True, "failure_kind": None, "failure_message": None}


def _score(
    benchmark: str, skill: str, score: float, base: float, world: World
) -> dict[str, object]:
    n = world.num_items
    error = float(np.sqrt(score * (1 - score) / n))
    return {
        "benchmark": benchmark,
        "skill": skill,
        "language": "en",
        "metric": "exact_match",
        "in_mean": True,
        "score": score,
        "standard_error": error,
        "score_low": max(score - 1.959963984540054 * error, 0.0),
        "score_high": min(score + 1.959963984540054 * error, 1.0),
        "num_items": n,
        "num_scored": n,
        "reason": None,
        "base_score": base,
        "gain": score - base,
        "gain_se": 0.03 if score != base else 0.0,
        "gain_low": score - base - 1.959963984540054 * 0.03,
        "gain_high": score - base + 1.959963984540054 * 0.03,
        "num_paired": n,
    }


def _drift(
    cell: str, gain: float, world: World, rng: np.random.Generator
) -> list[dict[str, object]]:
    rows = []
    for layer in range(world.num_layers):
        position = (layer + 0.5) / world.num_layers
        near = np.exp(-(((position - 0.6) / 0.12) ** 2))
        change = 0.05 + 0.02 * position + world.layer * near * gain + rng.normal() * 0.002
        for kind in ("attention.query", "mlp.up", "total"):
            rows.append(
                {
                    "cell": cell,
                    "tensor": f"model.layers.{layer}.{kind}",
                    "layer": layer,
                    "num_layers": world.num_layers,
                    "position": position,
                    "kind": kind,
                    "frobenius": abs(change) * 8.0,
                    "relative": abs(change),
                    "rms": abs(change) * 0.02,
                    "num_weights": 4096,
                }
            )
    return rows


def _curve(trajectory: str, world: World, rng: np.random.Generator) -> list[dict[str, object]]:
    steps = np.arange(1, world.num_steps + 1)
    losses = 0.4 + 2.0 * np.exp(-steps / 12) + rng.normal(size=steps.size) * 0.05
    last = world.epochs[-1]
    return [
        {
            "trajectory": trajectory,
            "step": int(step),
            "epoch": int(1 + (step - 1) * last // world.num_steps),
            "loss": float(loss),
            "grad_norm": 1.0,
            "learning_rate": 3e-4,
        }
        for step, loss in zip(steps, losses, strict=True)
    ]
