"""What a sample learns from does not depend on what it stands beside, end to end or padded."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from sft_atlas.data.batches import TrainingRows, collate, pack
from sft_atlas.data.prepared import PreparedRows
from sft_atlas.model.head_loss import head_rule
from sft_atlas.model.packed import packed_states
from sft_atlas.model.training_pass import padded_logits
from tiny import VOCAB_SIZE, build_model, build_prepared

Layout = Literal["packed", "padded"]
NUM_SAMPLES = 6

every_layout = pytest.mark.parametrize("layout", ["packed", "padded"])


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    extra = {"sliding_window": 5, "attn_logit_softcapping": 3.0, "attn_implementation": "eager"}
    return build_model(request.param, **(extra if request.param == "gemma2" else {}))


@torch.no_grad()
def sample_losses(
    model: PreTrainedModel, rows: PreparedRows, layout: Layout, pad_id: int = 0
) -> torch.Tensor:
    """Summed cross-entropy of each sample of one batch, as training forms it."""
    samples = TrainingRows([rows])
    if layout == "padded":
        batch = collate(samples, range(len(rows)), pad_id=pad_id)
        logits, targets, lines = padded_logits(model, batch)
    else:
        packed = pack([(samples, range(len(rows)))])
        head = model.get_output_embeddings()
        logits = head_rule(model).logits(head(packed_states(model, packed)))
        targets, lines = packed.targets, packed.samples.flatten()[packed.predictors]
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return torch.zeros(len(rows)).index_add(0, lines, losses)


def perturbed(rows: PreparedRows, sample: int) -> PreparedRows:
    tokens = np.array(rows.tokens)
    begin, end = rows.offsets[sample : sample + 2]
    tokens[begin:end] = (tokens[begin:end] + 7) % VOCAB_SIZE
    return replace(rows, tokens=tokens)


@every_layout
@pytest.mark.parametrize("sample", range(NUM_SAMPLES))
def test_another_sample_moves_no_bit_of_a_samples_loss(
    model: PreTrainedModel, sample: int, layout: Layout
) -> None:
    rows = build_prepared(NUM_SAMPLES)
    before = sample_losses(model, rows, layout)
    after = sample_losses(model, perturbed(rows, sample), layout)
    others = torch.arange(NUM_SAMPLES) != sample
    assert torch.equal(after[others], before[others])
    assert abs(after[sample] - before[sample]) > 1e-2


@every_layout
def test_company_moves_a_samples_loss_by_rounding_only(
    model: PreTrainedModel, layout: Layout
) -> None:
    rows = build_prepared(NUM_SAMPLES)
    assert len(set(rows.lengths().tolist())) > 3, "samples of one length would not be padded"
    losses = sample_losses(model, rows, layout)
    alone = [sample_losses(model, _only(rows, i), layout) for i in range(NUM_SAMPLES)]
    torch.testing.assert_close(losses, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_padding_moves_no_loss(model: PreTrainedModel) -> None:
    rows = build_prepared(NUM_SAMPLES)
    losses = sample_losses(model, rows, "padded")
    assert torch.equal(sample_losses(model, rows, "padded", pad_id=9), losses)
    packed = sample_losses(model, rows, "packed")
    torch.testing.assert_close(packed, losses, rtol=1e-5, atol=1e-5)


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
