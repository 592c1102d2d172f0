"""Real models, data and benchmark items go through the whole tool; skipped where they are absent.

The model is stories260K, which writes tales for small children: it can learn formats, and nothing
that HellaSwag, MMLU or GSM8K ask for. So chance and 0 are the expected scores, as numbers.
"""

import bz2
import csv
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import sft_atlas
import stories
from coordinators import run_command
from sft_atlas.model.load import load_base, load_cell
from sft_atlas.store.store import open_store

DATA = Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real data is absent")

STUDY = """
study: real
models: [{{name: stories, path: stories, family: llama, languages: [en]}}]
datasets:
  - {{name: alpaca, path: {data}/training/alpaca.jsonl.gz, drop_answers: [""], group: general}}
  - {{name: gsm8k-train, path: {data}/training/gsm8k_train.jsonl.gz, group: math}}
  - {{name: code-alpaca, path: {data}/training/code_alpaca_2k.json.gz, drop_answers: [""]}}
  - {{name: lima, path: {data}/training/lima.json.gz, first_turn_only: true, group: general}}
benchmarks:
  - {{file: hellaswag.yaml, limit: 24}}
  - {{file: mmlu.yaml, limit: 24}}
  - {{file: gsm8k.yaml, limit: 8}}
max_tokens: 512
precision: float32
methods:
  full: {{learning_rate: 1.0e-3, batch_samples: 8}}
  lora: {{learning_rate: 5.0e-3, batch_samples: 8, rank: 8, alpha: 16}}
blocks:
  single: {{data: each, samples: 24, schedule: constant, epochs: 2, keep: last}}
measures: {{likelihood_items: 8, texts: {{name: neutral, limit: 40}}}}
"""
CHOICE = """
name: {name}
version: 1
kind: choice
items: {{path: {name}.jsonl}}
prompt: "{{ctx}}"
wrap: false
choices: "{{endings}}"
label: label
metric: {metric}
"""
GSM8K = """
name: gsm8k
version: 1
kind: generate
items: {path: gsm8k.jsonl}
prompt: "{question}"
answer: "{answer}"
metric: numeric_match
max_new_tokens: 60
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    source = DATA / "models" / "stories260K"
    stories.convert(source / "stories260K.bin", source / "tok512.bin", folder / "stories")
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> tuple[Path, Path]:
    """The study file and its store, after everything ran."""
    write_benchmarks(folder)
    study = folder / "real.yaml"
    study.write_text(STUDY.format(data=DATA))
    ran = run_command("run", study, "--store", folder / "store")
    assert ran.returncode == 0, ran.stderr
    return study, folder / "store"


def write_benchmarks(folder: Path) -> None:
    lines = bz2.decompress((DATA / "benchmarks/hellaswag_val_full.txt.bz2").read_bytes()).decode()
    rows = lines.splitlines()
    tasks = [rows[i : i + 6] for i in range(0, 6 * 200, 6)]
    hellaswag = [{"ctx": t[0], "label": int(t[1]), "endings": t[2:]} for t in tasks]
    mmlu = []
    for path in sorted((DATA / "benchmarks/mmlu/test").glob("*.csv"))[:10]:
        with path.open(encoding="utf-8", newline="") as stream:
            rows_of_subject = list(csv.DictReader(stream))[:20]
        for row in rows_of_subject:
            options = [row[f"choice{i}"] for i in range(4)]
            asked = "\n".join(f"{letter}. {o}" for letter, o in zip("ABCD", options, strict=True))
            text = f"{row['question']}\n{asked}\nAnswer:"
            mmlu.append({"ctx": text, "label": int(row["answer"]), "endings": list("ABCD")})
    test_set = (DATA / "benchmarks/gsm8k_test.jsonl").read_text(encoding="utf-8")
    gsm8k = [json.loads(line) for line in test_set.splitlines()]
    for row in gsm8k:
        row["answer"] = row["answer"].rsplit("#### ", 1)[1]
    for name, items in {"hellaswag": hellaswag, "mmlu": mmlu, "gsm8k": gsm8k}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    for name, metric in {"hellaswag": "accuracy_bytes", "mmlu": "accuracy"}.items():
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, metric=metric))
    (folder / "gsm8k.yaml").write_text(GSM8K)


def test_the_converted_model_tells_its_known_story(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "stories")
    model = AutoModelForCausalLM.from_pretrained(folder / "stories")
    start = torch.tensor([[tokenizer.bos_token_id]])
    told = model.generate(start, max_new_tokens=70, do_sample=False, pad_token_id=0)[0]
    assert tokenizer.decode(told, skip_special_tokens=True).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball."
    )


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time, there was a little girl named Lily.",
        '"Look, a big dog!" said Tom.  He ran\nto it.',
        "caf\u00e9 \u732b 42 ###Question: x = 3.5",
    ],
)
def test_the_converted_tokenizer_merges_as_the_original(folder: Path, text: str) -> None:
    pieces = stories.read_vocabulary(DATA / "models/stories260K/tok512.bin")
    tokenizer = AutoTokenizer.from_pretrained(folder / "stories")
    ids = tokenizer(text)["input_ids"]
    assert ids == [1, *stories.encode_by_score(pieces, text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_cell_is_trained_scored_and_reported(done: tuple[Path, Path]) -> None:
    study, store = done
    status = sft_atlas.status(study, store=store)
    assert [(b.planned, b.done) for b in status.blocks] == [(8, 8), (1, 1)]
    page = sft_atlas.report(study, store=store, output=study.parent / "report.html")
    assert page.stat().st_size > 500_000


def test_loss_falls_on_every_dataset(done: tuple[Path, Path]) -> None:
    study, store = done
    curves = sft_atlas.tables(study, store=store).curves
    assert curves["trajectory"].nunique() == 8
    for _, curve in curves.groupby("trajectory"):
        by_epoch = curve.groupby("epoch")["loss"].mean()
        assert by_epoch[2] < by_epoch[1]


def test_scores_of_a_story_teller_are_chance_and_zero_never_null(done: tuple[Path, Path]) -> None:
    study, store = done
    table = sft_atlas.table(study, store=store)
    assert table["score"].notna().all()
    choice = table[table["benchmark"] != "gsm8k"]
    # Four options; five standard errors of 24 items.
    assert (choice["score"] - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 24)
    assert table[table["benchmark"] == "gsm8k"]["score"].max() <= 0.2


def test_weights_move_and_perplexity_is_finite(done: tuple[Path, Path]) -> None:
    study, store = done
    tables = sft_atlas.tables(study, store=store)
    totals = tables.drift[(tables.drift["kind"] == "total") & tables.drift["layer"].isna()]
    assert len(totals) == 8
    assert (totals["relative"] > 1e-3).all()
    perplexity = (tables.datasets["answer_nll"] / tables.datasets["answer_tokens"]).map(math.exp)
    assert perplexity.between(1, 5000).all()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapter_of_real_data_loads_in_peft(done: tuple[Path, Path]) -> None:
    study, store_folder = done
    store = open_store(store_folder)
    cells = [item.cell for item in sft_atlas.plan(study, store=store_folder).cells]
    cell = next(c for c in cells if c.trajectory and c.trajectory.method.lora)
    ids = torch.randint(3, 512, (2, 20), generator=torch.Generator().manual_seed(0))
    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(study.parent / "stories")
    theirs = PeftModel.from_pretrained(base, store.layout.cell(cell.fingerprint))
    ours = load_cell(load_base(cell.model), cell, store=store)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)


def test_gains_are_paired_with_the_base(done: tuple[Path, Path]) -> None:
    study, store = done
    tuned = sft_atlas.table(study, store=store).query("epoch > 0")
    expected = tuned["score"] - tuned["base_score"]
    pd.testing.assert_series_equal(tuned["gain"], expected, check_names=False)
