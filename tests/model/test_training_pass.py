"""A pass of training: what it returns, what it refuses, and what it recomputes."""

import re

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sft_atlas.model.training_pass import checkpoint_activations, summed_losses
from tiny import build_documents, build_model, build_rows


@pytest.mark.parametrize("architecture", ["bloom", "mamba"])
def test_a_model_that_cannot_be_packed_gets_padded_samples(architecture: str) -> None:
    small = {"bloom": {"n_layer": 2, "n_head": 4}, "mamba": {"state_size": 4}}
    model, rows = build_model(architecture, **small[architecture]), build_rows(4)
    (loss,) = summed_losses(model, [(rows, [2, 0, 3])])
    expected = 0.0
    for index in [2, 0, 3]:
        tokens, prompt_length = rows.example(index)
        ids = torch.tensor([tokens.tolist()])
        logits = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
        targets = ids[0, prompt_length:]
        places = torch.arange(prompt_length - 1, len(tokens) - 1)
        expected -= logits[places, targets].sum().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_padded_samples_of_several_runs_are_refused() -> None:
    model, rows = build_model(), build_rows(4)
    message = (
        "LlamaForCausalLM: 2 runs in one pass of padded samples; expected one. Several runs train "
        "together only in a model that packs."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        summed_losses(model, [(rows, [0]), (rows, [1])], packed=False)


def gradients(model: PreTrainedModel, *, packed: bool) -> list[Tensor]:
    loss = summed_losses(model, [(build_documents([9, 4, 12]), [0, 1, 2])], packed=packed).sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("packed", [True, False])
def test_layers_that_are_recomputed_teach_the_same(packed: bool) -> None:
    """In the backward pass nothing says any more how samples lie, but for what was kept."""
    model = build_model("mistral", sliding_window=5).train()
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = gradients(model, packed=packed)
    assert len(calls) == 1
    checkpoint_activations(model)
    found = gradients(model, packed=packed)
    assert len(calls) == 3, "the layer was computed twice"
    for own, reference in zip(found, expected, strict=True):
        assert torch.equal(own, reference)
    assert model.config._attn_implementation == "sdpa"
