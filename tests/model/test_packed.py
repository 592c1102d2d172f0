"""Samples that stand end to end are computed as each is alone, and never reach each other."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from sft_atlas.data.batches import PackedBatch, pack
from sft_atlas.model.head_loss import head_losses, head_rule
from sft_atlas.model.packed import can_pack, packed_states
from sft_atlas.model.training_pass import summed_losses
from tiny import build_documents, build_model

_SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {
        **_SLIDING,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
        "attn_implementation": "eager",
    },
    "olmo2": {},
    "mistral": {"sliding_window": 5},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.1},
}
LENGTHS = [11, 1, 4, 17, 4, 2]
"""Some longer than the windows, one without a supervised token."""

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def build(name: str, **extra: Any) -> PreTrainedModel:
    return build_model(name, **ARCHITECTURES[name] | extra)


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_equal_but_for_rounding(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        error = float((found[name] - gradient).norm() / gradient.norm())
        assert error < 1e-5, f"{name}: {error:.1e}"


def states_of(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    with torch.no_grad():
        return packed_states(model, batch)


@every_architecture
def test_packed_samples_lose_and_teach_what_padded_ones_do(name: str) -> None:
    model, rows = build(name).train(), build_documents(LENGTHS)
    assert can_pack(model)
    members = [(rows, range(len(LENGTHS)))]
    packed = summed_losses(model, members, packed=True).sum()
    padded = summed_losses(model, members, packed=False).sum()
    assert packed.item() == pytest.approx(padded.item(), rel=1e-6)
    assert_equal_but_for_rounding(gradients(model, packed), gradients(model, padded))


@every_architecture
def test_runs_of_unlike_sizes_lose_what_each_loses_alone(name: str) -> None:
    model, rows = build(name), build_documents(LENGTHS)
    members = [(rows, [0, 1, 2]), (rows, [3]), (rows, []), (build_documents([3], seed=1), [0])]
    together = summed_losses(model, members)
    alone = [summed_losses(model, [member]) for member in members if len(member[1])]
    assert together.tolist() == pytest.approx(
        [alone[0].item(), alone[1].item(), 0.0, alone[2].item()], rel=1e-6
    )


@every_architecture
def test_another_documents_tokens_move_no_bit_of_a_document(name: str) -> None:
    model, rows = build(name), build_documents(LENGTHS)
    lines = [(rows, range(len(LENGTHS))), (rows, [2, 0])]
    batch = pack(lines)
    before = states_of(model, batch)
    lines_of = torch.arange(2)[:, None].expand_as(batch.samples)
    places = torch.stack([lines_of, batch.samples]).flatten(1)[:, batch.predictors]
    for line, sample in [(0, 0), (0, 3), (0, 5), (1, 0)]:
        is_own = (batch.samples == sample) & (lines_of == line)
        ids = torch.where(is_own, (batch.input_ids + 7) % 64, batch.input_ids)
        moved = PackedBatch(**vars(batch) | {"input_ids": ids})
        after = states_of(model, moved)
        of_others = (places != torch.tensor([[line], [sample]])).any(0)
        assert torch.equal(after[of_others], before[of_others])
        assert float((after[~of_others] - before[~of_others]).abs().max()) > 1e-2


def test_what_is_not_finite_in_one_run_stays_in_it() -> None:
    model, rows = build("llama").requires_grad_(False), build_documents(LENGTHS)
    batch = pack([(rows, [0, 2, 5]), (rows, [3, 4])])

    def losses_and_gradients(addend: float) -> tuple[Tensor, Tensor]:
        """With something to learn that belongs to each run: what is added to its embeddings."""
        added = torch.zeros(2, 1, 32)
        added[1] = addend
        added.requires_grad_()
        handle = model.get_input_embeddings().register_forward_hook(lambda _m, _i, x: x + added)
        with handle:
            losses = summed_losses(model, [(rows, [0, 2, 5]), (rows, [3, 4])], packed=True)
        losses.sum().backward()
        assert added.grad is not None
        return losses.detach(), added.grad

    assert (batch.samples[0] < 0).any() or (batch.samples[1] < 0).any(), "one line is padded"
    healthy, poisoned = losses_and_gradients(0.0), losses_and_gradients(float("nan"))
    for before, after in zip(healthy, poisoned, strict=True):
        assert torch.equal(before[0], after[0])
        assert after[1].isnan().all() and before.isfinite().all()


def test_a_pass_leaves_the_models_attention_as_it_was() -> None:
    model, rows = build("llama"), build_documents(LENGTHS)
    ids = torch.tensor([[2, 3, 4]])
    before = model(input_ids=ids).logits
    states_of(model, pack([(rows, [0, 1])]))
    broken = model.model.layers[1].register_forward_pre_hook(lambda _module, _inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError), broken:
        states_of(model, pack([(rows, [0, 1])]))
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(input_ids=ids).logits, before)


def test_attention_dropout_is_that_of_the_model() -> None:
    model, rows = build("llama", attention_dropout=0.5), build_documents(LENGTHS)
    batch = pack([(rows, range(6))])
    assert torch.equal(states_of(model, batch), states_of(model, batch))
    model.train()
    assert not torch.equal(states_of(model, batch), states_of(model, batch))


def test_mixed_precision_rounds_as_it_does_in_padded_samples() -> None:
    model, rows = build("llama"), build_documents(LENGTHS)
    members = [(rows, range(6))]
    exact = summed_losses(model, members, packed=True)
    with torch.autocast("cpu", torch.bfloat16):
        packed = summed_losses(model, members, packed=True)
        padded = summed_losses(model, members, packed=False)
    assert 1e-5 < abs(packed.item() / exact.item() - 1) < 0.02
    assert packed.item() == pytest.approx(padded.item(), rel=0.01)


class ScalesItsLogits(LlamaForCausalLM):
    """An architecture that does what no configuration says."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output


class AttendsTwice(LlamaForCausalLM):
    """An architecture whose attention looks at its neighbours without asking any interface."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(lambda _m, _i, x: x + x.roll(1, dims=1))


@pytest.mark.parametrize("kind", [ScalesItsLogits, AttendsTwice])
def test_a_model_with_code_of_its_own_is_not_packed(kind: type[LlamaForCausalLM]) -> None:
    config = build("llama").config
    torch.manual_seed(0)
    assert can_pack(build("llama"))
    assert not can_pack(kind(config))


def test_a_model_that_hides_its_window_from_the_attention_is_not_packed() -> None:
    """The window is longer than any text that one would try out."""
    assert can_pack(build("mistral", sliding_window=1000))
    model = build("mistral", sliding_window=1001)
    silent = copy.copy(model.config)
    silent.sliding_window = None
    model.model.layers[1].self_attn.config = silent
    assert not can_pack(model)


def test_trying_a_model_out_leaves_it_as_it_was_and_forgets_broken_weights() -> None:
    model = build("llama", rms_norm_eps=1.5e-5).train()
    weight = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert not can_pack(model)
    with torch.no_grad():
        model.lm_head.weight.copy_(weight)
    assert can_pack(model)
    assert model.training and model.config._attn_implementation == "sdpa"


def test_a_stacked_head_and_the_rule_of_the_logits_meet() -> None:
    """Two runs of a capped architecture, one head each: as two models with those heads."""
    model, rows = build("gemma2", tie_word_embeddings=False), build_documents(LENGTHS)
    batch = pack([(rows, [0, 2]), (rows, [3])])
    own = model.lm_head.weight.detach()
    head = torch.nn.Module()
    head.weight = torch.nn.Parameter(torch.stack([own, own.flip(0)]))
    states = states_of(model, batch)
    rule, sizes = head_rule(model), batch.num_supervised
    together = head_losses(head, rule, states, batch.targets, sizes)
    first = summed_losses(model, [(rows, [0, 2])])
    with torch.no_grad():
        model.lm_head.weight.copy_(own.flip(0).clone())
    second = summed_losses(model, [(rows, [3])])
    assert together.tolist() == pytest.approx([first.item(), second.item()], rel=1e-6)
