"""Make the tables of measures that go with planted scores: what data is, what layers did."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

KINDS = ("attention.query", "attention.output", "mlp.up", "mlp.down")
POOLINGS = ("last", "mean")


def similarity_table(
    cosines: np.ndarray, datasets: Sequence[str], benchmarks: Sequence[str], samples: int
) -> pd.DataFrame:
    """One row per dataset and benchmark; `cosines` is (datasets, benchmarks)."""
    rows = [
        {
            "data": data,
            "samples": samples,
            "benchmark": benchmark,
            "embedder": "words",
            "model": "",
            "num_rows": samples,
            "num_items": 200,
            "mean_cosine": float(cosines[d, b]),
            "item_coverage": float(0.8 * cosines[d, b] + 0.1),
            "row_coverage": float(0.7 * cosines[d, b]),
            "mmd2": float(1 - cosines[d, b]),
            "mmd_p": 0.001,
        }
        for d, data in enumerate(datasets)
        for b, benchmark in enumerate(benchmarks)
    ]
    return pd.DataFrame(rows)


def description_table(
    datasets: Sequence[str], groups: Sequence[str], samples: int, rng: np.random.Generator
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "data": datasets,
            "samples": samples,
            "data_group": groups,
            "num_rows": samples,
            "distinct_2": rng.uniform(0.4, 0.9, len(datasets)),
            "compression_ratio": rng.uniform(2.0, 5.0, len(datasets)),
            "embedding_spread": rng.uniform(0.3, 0.8, len(datasets)),
        }
    )


def forgetting_table(
    cells: pd.DataFrame, gains: dict[str, float], slope: float, rng: np.random.Generator
) -> pd.DataFrame:
    """KL that LoRA keeps at three tenths; its logarithm grows by `slope` times the gain."""
    trained = cells[cells["is_trained"] & (cells["method"] != "base")]
    gain = np.array([gains[cell] for cell in trained["cell"]])
    method = np.where(trained["method_kind"] == "lora", np.log(0.3), 0.0)
    epochs = np.log(trained["epoch"].to_numpy(dtype=float))
    kl = 0.05 * np.exp(method + 0.5 * epochs + slope * gain + 0.2 * rng.normal(size=len(trained)))
    return pd.DataFrame(
        {
            "cell": trained["cell"].to_numpy(),
            "kl_per_token": kl,
            "kl_se": 0.05 * kl,
            "reverse_kl_per_token": 1.1 * kl,
            "agreement_fraction": np.exp(-1.5 * kl),
            "agreement_se": 0.01,
            "base_nll_per_token": 2.5,
            "cell_nll_per_token": 2.5 + 0.5 * kl,
            "num_texts": 200,
            "num_tokens": 40_000,
            "num_kept": 1024,
            "is_exact": False,
        }
    )


def representation_table(
    cells: pd.DataFrame, num_layers: int, rise: float, rng: np.random.Generator
) -> pd.DataFrame:
    """A hump over the depth for every model; tuned cells lie `rise` higher from 0.6 on."""
    shown = _last_and_bases(cells)
    position = np.arange(num_layers + 1) / num_layers
    hump = 8.0 + 10.0 * np.exp(-(((position - 0.35) / 0.25) ** 2))
    above = np.clip((position - 0.5) / 0.1, 0.0, 1.0)
    frames = []
    for row in shown.to_dict("records"):
        is_tuned = row["method"] != "base"
        level = len(str(row["model"])) % 3
        for number, pooling in enumerate(POOLINGS):
            noise = 0.1 * rng.normal(size=(3, position.size))
            gride = hump + level + 2.0 * number + is_tuned * rise * above + noise[0]
            nothing = np.full(position.size, np.nan)
            cka = 1.0 - 0.3 * position**2 + 0.02 * noise[1]
            frames.append(
                pd.DataFrame(
                    {
                        "cell": row["cell"],
                        "layer": np.arange(num_layers + 1),
                        "num_layers": num_layers,
                        "position": position,
                        "pooling": pooling,
                        "num_points": 500,
                        "num_duplicates": 0,
                        "two_nn": gride * 1.2,
                        "two_nn_low": gride * 1.1,
                        "two_nn_high": gride * 1.3,
                        "mle": gride * 0.9,
                        "gride": gride,
                        "gride_low": gride - 0.5,
                        "gride_high": gride + 0.5,
                        "gride_n1": 8,
                        "cka": cka if is_tuned else nothing,
                        "procrustes": 1.0 - cka if is_tuned else nothing,
                        "num_clusters": np.round(9.0 - 4.0 * is_tuned * above),
                        "within_dimension": gride * 0.7,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def scan_table(representations: pd.DataFrame) -> pd.DataFrame:
    """Estimates that fall from a noisy small scale to a plateau."""
    columns = ["cell", "layer", "position", "pooling", "num_points"]
    frames = []
    for n1 in (1, 2, 4, 8, 16, 32, 64):
        gride = representations["gride"] * (1.0 + 1.5 / (1.0 + n1))
        bounds = {"gride": gride, "gride_low": gride - 0.4, "gride_high": gride + 0.4}
        frames.append(representations[columns].assign(n1=n1, n2=2 * n1, **bounds))
    return pd.concat(frames, ignore_index=True)


def spectrum_table(cells: pd.DataFrame, num_layers: int, rng: np.random.Generator) -> pd.DataFrame:
    """LoRA's change has few directions and intruders; full fine-tuning's has many and none."""
    shown = _last_and_bases(cells)
    rows = []
    for cell, kind_of in shown.loc[shown["method"] != "base", ["cell", "method_kind"]].to_numpy():
        is_lora = kind_of == "lora"
        for layer in range(num_layers):
            for number, kind in enumerate(KINDS):
                rank = (12.0 if is_lora else 90.0) + number + rng.normal()
                rows.append(
                    {
                        "cell": cell,
                        "tensor": f"model.layers.{layer}.{kind}",
                        "layer": layer,
                        "num_layers": num_layers,
                        "position": (layer + 0.5) / num_layers,
                        "kind": kind,
                        "rows": 128,
                        "columns": 128,
                        "rank_bound": 16 if is_lora else 128,
                        "spectral_norm": 0.3,
                        "stable_rank": rank / 4,
                        "effective_rank": rank,
                        "nuclear_norm": 2.0,
                        "top_share": 4 / rank,
                        "num_vectors": 10,
                        "intruders_03": 1 if is_lora else 0,
                        "intruders_05": 2 if is_lora else 0,
                        "intruders_06": 3 if is_lora else 0,
                        "intruders_08": 4 if is_lora else 1,
                    }
                )
    return pd.DataFrame(rows)


def update_table(cells: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Cosine 0.6 where data agree, 0.3 where the method does, 0.1 elsewhere."""
    shown = _last_and_bases(cells)
    shown = shown[shown["method"] != "base"]
    rows = []
    for _, part in shown.groupby("model", sort=False):
        facts = part[["cell", "data", "method"]].to_numpy()
        for i, (cell_a, data_a, method_a) in enumerate(facts):
            for cell_b, data_b, method_b in facts[i + 1 :]:
                cosine = 0.6 if data_a == data_b else 0.3 if method_a == method_b else 0.1
                cosine += 0.03 * rng.normal()
                place = {"cell_a": cell_a, "cell_b": cell_b, "scope": "model", "cosine": cosine}
                rows.append(place | {"inner": cosine, "norm_a": 1.0, "norm_b": 1.0})
    return pd.DataFrame(rows)


def _last_and_bases(cells: pd.DataFrame) -> pd.DataFrame:
    """Base models, and the last kept epoch of every trajectory that was trained."""
    last = cells.groupby("trajectory")["epoch"].transform("max")
    is_last = (cells["epoch"] == last).fillna(False).astype(bool)
    return cells[cells["is_trained"].astype(bool) & ((cells["method"] == "base") | is_last)]
