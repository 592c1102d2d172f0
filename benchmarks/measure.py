"""Time the measures against what one would use without them: same inputs, machine and threads.

    make bench-measure

Weights, points and likelihoods are random and seeded, so that anyone can run it without data; files
go to a temporary folder (about 3 GB) and are removed. Before two ways are timed they must give the
same numbers. Every part runs in a process of its own, whose peak memory is that of the part; arms
take turns, and the file gets medians and ranges.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import sft_atlas

RESULT: Final = Path(__file__).parent / "results" / "measure.json"
MIB: Final = 2**20
READ_BYTES: Final = 8 * MIB

HIDDEN, LAYERS, INTERMEDIATE, KEY_VALUE, VOCABULARY = 896, 24, 4864, 128, 151_936
"""The shape of a model of 0.5 B weights (Qwen2.5), its head tied."""


def pair_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        matrices = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (KEY_VALUE, HIDDEN),
            "self_attn.v_proj": (KEY_VALUE, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in matrices.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{prefix}.{name}.weight": (HIDDEN,) for name in norms}
    return shapes | {"model.norm.weight": (HIDDEN,)}


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Write a base and a tuned model of 0.5 B weights in bfloat16."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    base, tuned = {}, {}
    for name, shape in pair_shapes().items():
        weight = 0.02 * torch.randn(shape, generator=generator)
        base[name] = weight.bfloat16()
        tuned[name] = (weight + 2e-4 * torch.randn(shape, generator=generator)).bfloat16()
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "tie_word_embeddings": True,
    }
    folders = (folder / "base", folder / "tuned")
    for path, weights in zip(folders, (base, tuned), strict=True):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    os.sync()
    return folders


def forget_files(folders: Sequence[Path]) -> None:
    """Ask the kernel to drop the files from its cache."""
    for folder in folders:
        descriptor = os.open(folder / "model.safetensors", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_files(folders: Sequence[Path]) -> int:
    """Read all bytes one after another into one buffer, as fast as the disk or the cache gives."""
    buffer = bytearray(READ_BYTES)
    total = 0
    for folder in folders:
        with (folder / "model.safetensors").open("rb", buffering=0) as file:
            while num_read := file.readinto(buffer):
                total += num_read
    return total


def drift(folder: Path) -> dict[str, Any]:
    """Norms of a pair from disk: bytes per second against those of reading alone."""
    from safetensors.torch import load_file

    from sft_atlas.measure.weight_pair import measure_pair

    command = [sys.executable, __file__, "--write-pair", str(folder)]
    subprocess.run(command, check=True)
    folders = (folder / "base", folder / "tuned")
    num_bytes = read_files(folders)
    before = peak_bytes()
    found = measure_pair(*folders)
    rise = peak_bytes() - before

    def load_both() -> float:
        base, tuned = (load_file(path / "model.safetensors") for path in folders)
        squares = [((tuned[n].float() - base[n].float()) ** 2).sum().item() for n in base]
        return float(np.sqrt(sum(squares)))

    def cold(run: Callable[[], Any]) -> float:
        forget_files(folders)
        return seconds_of(run)

    arms: dict[str, Callable[[], float]] = {
        "reading, from disk": lambda: cold(lambda: read_files(folders)),
        "norms, from disk": lambda: cold(lambda: measure_pair(*folders)),
        "reading, cached": lambda: seconds_of(lambda: read_files(folders)),
        "norms, cached": lambda: seconds_of(lambda: measure_pair(*folders)),
        "both models in memory, cached": lambda: seconds_of(load_both),
    }
    dense = load_both()
    total = found.rows[-1].frobenius
    assert abs(total - dense) < 1e-3 * dense, (total, dense)
    seconds = take_turns(arms, rounds=3)
    median = {name: part["median"] for name, part in seconds.items()}
    return {
        "num_bytes": num_bytes,
        "largest_tensor_bytes": 2 * VOCABULARY * HIDDEN,
        "memory_rise_bytes": rise,
        "memory_over_largest_tensor": round(rise / (2 * VOCABULARY * HIDDEN), 2),
        "seconds": seconds,
        "share_of_reading_speed_from_disk": round(
            median["reading, from disk"] / median["norms, from disk"], 2
        ),
        "share_of_reading_speed_cached": round(
            median["reading, cached"] / median["norms, cached"], 2
        ),
        "times_faster_than_both_in_memory": round(
            median["both models in memory, cached"] / median["norms, cached"], 2
        ),
    }


def lora(folder: Path) -> dict[str, Any]:
    """Norm and singular values of a rank-16 change from its factors, and from the product."""
    from sft_atlas.measure.drift import squared_product_norm
    from sft_atlas.measure.singular_values import spectrum_of
    from sft_atlas.model.lora import LoraFactors

    rows = []
    for size, rounds in ((1024, 3), (4096, 1)):
        generator = torch.Generator().manual_seed(size)
        up = torch.randn(size, 16, generator=generator)
        factors = LoraFactors(up, torch.randn(16, size, generator=generator), 2.0)

        def product(factors: LoraFactors = factors) -> torch.Tensor:
            return factors.scale * (factors.up @ factors.down)

        ours, dense = spectrum_of(factors), torch.linalg.svdvals(product())
        assert abs(ours.spectral_norm - dense[0].item()) < 1e-4 * ours.spectral_norm
        norm = squared_product_norm(factors) ** 0.5
        assert abs(norm - torch.linalg.vector_norm(dense).item()) < 1e-4 * norm
        arms: dict[str, Callable[[], float]] = {
            "norm, factors": lambda f=factors: repeated(lambda: squared_product_norm(f), 50),
            "norm, product": lambda: repeated(lambda: torch.linalg.vector_norm(product()), 3),
            "spectrum, factors": lambda f=factors: repeated(lambda: spectrum_of(f), 50),
        }
        seconds = take_turns(arms, rounds=5)
        slow = {"spectrum, product": lambda: seconds_of(lambda: torch.linalg.svdvals(product()))}
        seconds |= take_turns(slow, rounds=rounds)
        median = {name: part["median"] for name, part in seconds.items()}
        rows.append(
            {
                "size": size,
                "rank": 16,
                "seconds": seconds,
                "norm_times_faster": round(median["norm, product"] / median["norm, factors"], 1),
                "spectrum_times_faster": round(
                    median["spectrum, product"] / median["spectrum, factors"]
                ),
            }
        )
    return {"rows": rows}


def dimension(folder: Path) -> dict[str, Any]:
    """Intrinsic dimension of 10,000 points in 1,024 dimensions, with every scale of Gride."""
    warnings.simplefilter("ignore")
    import skdim.id

    from sft_atlas.measure.dimension import (
        find_distinct,
        gride_scan,
        local_mle,
        scan_depth,
        two_nn,
        two_nn_fit,
    )

    rng = np.random.default_rng(0)
    points = rng.normal(size=(10_000, 10)) @ rng.normal(size=(10, 1024))
    points = (points + 0.01 * rng.normal(size=points.shape)).astype(np.float32)

    def ours() -> tuple[float, float, float, int]:
        cloud = find_distinct(points, scan_depth(len(points)))
        distances = cloud.neighbours.distances
        fit = two_nn_fit(distances)
        return fit, two_nn(distances).value, local_mle(distances), len(gride_scan(distances))

    def theirs() -> float:
        return float(skdim.id.TwoNN().fit(points).dimension_)

    before = peak_bytes()
    found = ours()
    rise = peak_bytes() - before
    arms = {
        "neighbours, TwoNN, MLE and all scales of Gride": lambda: seconds_of(ours),
        "scikit-dimension, TwoNN alone": lambda: seconds_of(theirs),
    }
    reference = theirs()
    assert abs(found[0] - reference) < 1e-3 * reference, (found[0], reference)
    return {
        "num_points": len(points),
        "num_dimensions": points.shape[1],
        "two_nn_fit": round(found[0], 4),
        "two_nn_fit_of_scikit_dimension": round(reference, 4),
        "two_nn": round(found[1], 3),
        "mle": round(found[2], 3),
        "num_scales": found[3],
        "memory_rise_bytes": rise,
        "seconds": take_turns(arms, rounds=3),
    }


def world_map(folder: Path) -> dict[str, Any]:
    """From the stored raw sums of 1,070 models on 1,950 questions to the coordinates."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from sklearn.manifold import TSNE, trustworthiness

    from planted_vectors import MEASURE, planted_world, publish_vector
    from sft_atlas.analyze.likelihood_map import default_steps, map_tables
    from sft_atlas.render.map_chart import model_map
    from sft_atlas.render.map_payload import map_payload
    from sft_atlas.store.store import open_store
    from sft_atlas.store.vectors import load_vectors

    vectors, cells = planted_world(models=10, data=27, epochs=(1, 2, 4, 8), num_texts=1950)
    store = open_store(folder / "store", create=True)
    names = list(vectors.cells[:1070])
    for name, row in zip(names, vectors.prompt, strict=False):
        publish_vector(store, name, row.tolist())
    cells = cells[cells["cell"].isin(names)].assign(trajectory=lambda t: t["model"] + t["data"])
    steps = default_steps()[:1]

    def load() -> Any:
        return load_vectors(store, names, MEASURE)

    def whole() -> Any:
        return map_tables(load(), cells, steps=steps)

    def picture() -> str:
        index = {name: place for place, name in enumerate(names)}
        return json.dumps([model_map().to_dict(), map_payload(whole(), cells, index)])

    def sklearn_tsne() -> np.ndarray[Any, Any]:
        loaded = load()
        values = np.maximum(loaded.prompt, np.quantile(loaded.prompt, 0.02))
        values = values - values.mean(axis=1, keepdims=True)
        values = (values - values.mean(axis=0)) / np.sqrt(values.shape[1])
        return np.asarray(TSNE(init="pca", random_state=0).fit_transform(values)), values

    made = whole()
    quality = {
        str(row["method"]): {
            key: round(float(row[key]), 4) for key in ("trustworthiness", "stress")
        }
        for row in made.quality.to_dict("records")
    }
    places, values = sklearn_tsne()
    size = int(made.quality["num_neighbours"].iloc[0]) if "num_neighbours" in made.quality else 15
    theirs = float(trustworthiness(values, places, n_neighbors=size))
    arms = {
        "raw sums from the store": lambda: seconds_of(load),
        "raw sums to PCA, MDS and t-SNE with their quality, drawn": lambda: seconds_of(picture),
        "scikit-learn, raw sums to t-SNE alone": lambda: seconds_of(sklearn_tsne),
    }
    return {
        "num_cells": len(names),
        "num_texts": 1950,
        "quality": quality,
        "trustworthiness_of_scikit_learn": round(theirs, 4),
        "seconds": take_turns(arms, rounds=3),
    }


def likelihood(folder: Path) -> dict[str, Any]:
    """The likelihood vector of one cell: 200 questions under a Llama of 10.5 M weights."""
    from evaluate import SIZES, build_model, build_tokenizer
    from sft_atlas.model.score import sample_log_likelihoods

    size = SIZES["M"]
    model, tokenizer = build_model(size), build_tokenizer(size)
    rng = np.random.default_rng(0)
    lengths = rng.integers(30, 90, size=200)
    texts = [[1, *rng.integers(2, size.vocab_size, size=n).tolist()] for n in lengths]
    del tokenizer

    def ours() -> list[float]:
        return [s.answer for s in sample_log_likelihoods(model, [(ids, 1) for ids in texts])]

    @torch.inference_mode()
    def one_by_one() -> list[float]:
        sums = []
        for ids in texts:
            row = torch.tensor([ids])
            logits = model(row).logits[0, :-1].log_softmax(-1)
            sums.append(logits.gather(1, row[0, 1:, None]).sum().item())
        return sums

    largest = max(abs(a - b) for a, b in zip(ours(), one_by_one(), strict=True))
    assert largest < 1e-2, largest
    arms = {
        "ours": lambda: seconds_of(ours),
        "one text at a time": lambda: seconds_of(one_by_one),
    }
    seconds = take_turns(arms, rounds=5)
    ratio = seconds["one text at a time"]["median"] / seconds["ours"]["median"]
    return {
        "num_texts": len(texts),
        "largest_difference_nats": largest,
        "seconds": seconds,
        "times_faster": round(ratio, 2),
    }


PARTS: Final[dict[str, Callable[[Path], dict[str, Any]]]] = {
    "drift": drift,
    "lora": lora,
    "dimension": dimension,
    "map": world_map,
    "likelihood": likelihood,
}


def seconds_of(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def repeated(run: Callable[[], Any], times: int) -> float:
    return seconds_of(lambda: [run() for _ in range(times)]) / times


def take_turns(arms: dict[str, Callable[[], float]], *, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            seconds[name].append(arm())
    return {
        name: {
            "median": round(statistics.median(values), 6),
            "min": round(min(values), 6),
            "max": round(max(values), 6),
            "n": len(values),
        }
        for name, values in seconds.items()
    }


def peak_bytes() -> int:
    """Return the largest resident size that this process ever had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine() -> dict[str, Any]:
    packages = ("torch", "numpy", "scikit-learn", "openTSNE", "scikit-dimension", "safetensors")
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "num_cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "sft_atlas": sft_atlas.__name__ and metadata.version("sft-atlas"),
        **{name: metadata.version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="be the process of one part")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="measure these parts alone")
    parser.add_argument("--write-pair", type=Path, help="write the pair of models and end")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.write_pair:
        write_pair(arguments.write_pair)
        return
    if arguments.part:
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
            print(json.dumps(PARTS[arguments.part](Path(folder))))
        return
    results: dict[str, Any] = {}
    if arguments.only and arguments.output.is_file():
        results = json.loads(arguments.output.read_text())
    results["machine"] = machine()
    for name in arguments.only or PARTS:
        started = time.time()
        command = [sys.executable, __file__, "--part", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {time.time() - started:.0f} s", file=sys.stderr)
        arguments.output.parent.mkdir(exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
