"""What a sample learns from does not depend on what it stands beside in a padded batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from sft_atlas.data.batches import TrainingRows, collate
from sft_atlas.data.prepared import PreparedRows
from sft_atlas.train.loop import supervised_logits
from tiny import VOCAB_SIZE, build_model, build_prepared

NUM_SAMPLES = 6


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    extra = {"sliding_window": 5, "attn_logit_softcapping": 3.0, "attn_implementation": "eager"}
    return build_model(request.param, **(extra if request.param == "gemma2" else {}))


def sample_losses(model: PreTrainedModel, rows: PreparedRows, pad_id: int = 0) -> torch.Tensor:
    """Summed cross-entropy of each sample of one batch, as training forms it."""
    batch = collate(TrainingRows([rows]), range(len(rows)), pad_id=pad_id)
    with torch.no_grad():
        logits, targets, lines = supervised_logits(model, batch)
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return torch.zeros(len(rows)).index_add(0, lines, losses)


def perturbed(rows: PreparedRows, sample: int) -> PreparedRows:
    tokens = np.array(rows.tokens)
    begin, end = rows.offsets[sample : sample + 2]
    tokens[begin:end] = (tokens[begin:end] + 7) % VOCAB_SIZE
    return replace(rows, tokens=tokens)


@pytest.mark.parametrize("sample", range(NUM_SAMPLES))
def test_another_sample_moves_no_samples_loss_but_its_own(
    model: PreTrainedModel, sample: int
) -> None:
    rows = build_prepared(NUM_SAMPLES)
    before = sample_losses(model, rows)
    after = sample_losses(model, perturbed(rows, sample))
    others = torch.arange(NUM_SAMPLES) != sample
    torch.testing.assert_close(after[others], before[others], rtol=1e-6, atol=1e-6)
    assert abs(after[sample] - before[sample]) > 1e-2


def test_padding_moves_no_loss(model: PreTrainedModel) -> None:
    rows = build_prepared(NUM_SAMPLES)
    assert len(set(rows.lengths().tolist())) > 3, "samples of one length would not be padded"
    losses = sample_losses(model, rows)
    torch.testing.assert_close(sample_losses(model, rows, pad_id=9), losses, rtol=1e-6, atol=1e-6)
    alone = [sample_losses(model, _only(rows, i)) for i in range(NUM_SAMPLES)]
    torch.testing.assert_close(losses, torch.cat(alone), rtol=1e-5, atol=1e-5)


def _only(rows: PreparedRows, sample: int) -> PreparedRows:
    begin, end = rows.offsets[sample : sample + 2]
    return replace(
        rows,
        tokens=rows.tokens[begin:end],
        offsets=np.array([0, end - begin]),
        prompt_lengths=rows.prompt_lengths[sample : sample + 1],
        rows=rows.rows[sample : sample + 1],
        positions=rows.positions[sample : sample + 1],
    )
