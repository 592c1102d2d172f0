"""A machine that kills what takes too much memory costs the jobs that need it, and no other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from sft_atlas.sandbox.cgroup import make_group
from sft_atlas.store.status import read_status
from sft_atlas.store.store import open_store
from sft_atlas.study.loader import load_study
from sft_atlas.study.plan import make_plan
from tiny import build_tokenizer

STUDY = """
study: short-of-memory
models: [{name: wide, path: wide}, mini-llama]
datasets: [{name: echo, path: echo.jsonl}]
benchmarks: [{name: mini-math, limit: 2}]
precision: float32
max_tokens: 48
methods:
  full: {learning_rate: 1.0e-3, batch_samples: 4}
  lora: {learning_rate: 1.0e-3, batch_samples: 4, rank: 2, alpha: 4}
blocks: {one: {data: each, samples: 8, schedule: constant, epochs: 1}}
measures:
  {dataset: false, description: false, overlap: false, similarity: [], drift: false,
   likelihoods: false, forgetting: false, representations: false}
"""

LIMIT_BYTES = 1_400 << 20
"""Both processes with the wide model fit into this, but not its gradients and moments."""


def save_wide(folder: Path) -> None:
    """Write a model of 100 million weights: 0.4 GB, and 1.6 GB while all of them train."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=1,
        num_attention_heads=16,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


@pytest.mark.slow
def test_a_job_that_needs_too_much_memory_is_recorded_and_the_others_are_done(
    tmp_path: Path,
) -> None:
    group = make_group(LIMIT_BYTES, num_processes=500)
    if group is None:
        pytest.skip("this host lets nobody make a control group")
    save_wide(tmp_path / "wide")
    rows = [{"prompt": f"w{i} w{i + 1}", "response": f"w{i}"} for i in range(2, 12)]
    (tmp_path / "echo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study, store = tmp_path / "study.yaml", tmp_path / "store"
    study.write_text(STUDY)
    words = ["-m", "sft_atlas", "run", study, "--store", store, "--workers", "1", "--memory", "64"]
    run = subprocess.Popen(
        ["sh", "-c", 'read go && exec "$@"', "sh", sys.executable, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    group.add(run.pid)
    output, _ = run.communicate("go\n")
    num_killed = group.num_killed()
    group.remove()
    assert num_killed == 3, output
    assert run.returncode == 1, output
    status = read_status(make_plan(load_study(study)), open_store(store))
    (failure,) = status.failures
    assert failure.kind == "killed"
    assert "its process ended with signal 9, 3 time(s)" in failure.message
    assert "use fewer --workers, a smaller --stack, LoRA or a smaller max_tokens" in failure.message
    assert len(list(store.glob("cells/*/record.json"))) == 3
    assert len(list(store.glob("scores/*/*/record.json"))) == 5
