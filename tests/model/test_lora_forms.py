"""rsLoRA, DoRA, trained biases and trained embeddings are PEFT's: same logits, gradients, steps."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sft_atlas.errors import StoreError, StudyError
from sft_atlas.files import read_json
from sft_atlas.model.dropout import dropout_seeds, dropped, place_tokens
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.model.lora import (
    LoraLinear,
    add_lora,
    load_adapter,
    lora_state,
    merge,
    merged,
    save_adapter,
)
from sft_atlas.study.spec import LoraSpec
from tiny import LORA, build_model, save_base

# peft reads a property of transformers that the latter has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

IDS = torch.arange(2, 26).view(2, 12)
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
EMBEDDINGS = replace(LORA, train_embeddings=True)
EVERYTHING = replace(EMBEDDINGS, rslora=True, dora=True, bias="all")

FORMS: dict[str, tuple[str, dict[str, Any], LoraSpec]] = {
    "rslora": ("llama", UNTIED, replace(LORA, rslora=True)),
    "dora": ("llama", TIED, replace(LORA, dora=True)),
    "dora beside biases": ("qwen2", UNTIED, replace(LORA, dora=True)),
    "biases of adapted layers": (
        "qwen2",
        TIED,
        replace(LORA, bias="lora_only", targets=("q_proj",)),
    ),
    "all biases": ("qwen2", UNTIED, replace(LORA, bias="all", targets=("q_proj",))),
    "embedding and head": ("llama", UNTIED, EMBEDDINGS),
    "tied embedding": ("llama", TIED, EMBEDDINGS),
    "tied embedding of another name": (
        "falcon",
        {**TIED, "multi_query": False, "alibi": False},
        replace(EMBEDDINGS, targets=("dense",)),
    ),
    "one layer": ("llama", UNTIED, replace(LORA, layers=(1,))),
    "everything": ("qwen2", UNTIED, EVERYTHING),
    "everything, tied": ("qwen2", TIED, EVERYTHING),
}
each_form = pytest.mark.parametrize("form", FORMS)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


def moved(model: PreTrainedModel, lora: LoraSpec) -> PreTrainedModel:
    """Give a model an adapter all of whose parts do something."""
    add_lora(model, lora, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(form: str) -> PreTrainedModel:
    architecture, extra, lora = FORMS[form]
    return moved(build_model(architecture, **extra), lora)


def load_in_peft(form: str, folder: Path, *, is_trainable: bool = False) -> peft.PeftModel:
    architecture, extra, _ = FORMS[form]
    base = build_model(architecture, **extra)
    with warnings.catch_warnings():
        # For names of embeddings that it does not know, PEFT warns, and loads both copies.
        warnings.filterwarnings("ignore", "You have requested `ensure_weight_tying`")
        return peft.PeftModel.from_pretrained(base, folder, is_trainable=is_trainable)


def parameters_of(ours: PreTrainedModel, theirs: peft.PeftModel) -> dict[str, tuple[Any, Any]]:
    """Return what trains in both, by the name in files; a tied head is the embedding."""
    names = {tensor.data_ptr(): name for name, tensor in reversed(lora_state(ours).items())}
    mine = {names[p.data_ptr()]: p for p in ours.parameters() if p.requires_grad}
    other = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            plain = name.replace(".default", "").replace(".modules_to_save", "")
            other[plain.replace("vector.weight", "vector")] = parameter
    assert mine.keys() == other.keys()
    return {name: (mine[name], other[name]) for name in mine}


@each_form
def test_files_mean_the_same_to_peft(tmp_path: Path, form: str) -> None:
    model = adapted(form)
    save_adapter(tmp_path, model, FORMS[form][2], base_name="owner/name")
    theirs = load_in_peft(form, tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(model), logits(build_model(FORMS[form][0], **FORMS[form][1])))
    theirs_merged = dict(theirs.merge_and_unload().named_parameters())
    with merged(model):
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight, theirs_merged[name], rtol=1e-5, atol=1e-6)


# PEFT trains two copies of a tied embedding whose name it does not know.
@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"tied embedding of another name"}))
def test_gradients_and_steps_are_pefts(tmp_path: Path, form: str) -> None:
    ours = adapted(form)
    save_adapter(tmp_path, ours, FORMS[form][2], base_name="b")
    theirs = load_in_peft(form, tmp_path, is_trainable=True)
    pairs = parameters_of(ours, theirs)
    for number, model in enumerate((ours.train(), theirs.train())):
        trained = [pair[number] for pair in pairs.values()]
        # A sign that rounding decides would make AdamW's first step another one.
        optimizer = torch.optim.AdamW(trained, lr=1e-3, eps=1e-4)
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in trained)
        optimizer.step()
    for name, (mine, other) in pairs.items():
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5, msg=name)


@each_form
def test_an_adapter_is_read_back_bit_for_bit(tmp_path: Path, form: str) -> None:
    architecture, extra, lora = FORMS[form]
    model = adapted(form)
    save_adapter(tmp_path, model, lora, base_name="b")
    again = build_model(architecture, **extra)
    load_adapter(tmp_path, again)
    assert torch.equal(logits(model), logits(again))
    save_adapter(tmp_path / "again", again, lora, base_name="b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@each_form
def test_the_adapter_comes_back_after_merging_and_the_base_after_a_reset(
    tmp_path: Path, form: str
) -> None:
    architecture, extra, lora = FORMS[form]
    base: BaseModel = load_base(save_base(tmp_path, architecture, **extra))
    pristine = logits(base.model)
    model = moved(base.model, lora)
    with_adapter = logits(model)
    with merged(model):
        assert not any(isinstance(m, LoraLinear) for m in model.modules())
        torch.testing.assert_close(logits(model), with_adapter, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), with_adapter)
    merge(model)
    torch.testing.assert_close(logits(model), with_adapter, rtol=1e-4, atol=1e-4)
    assert not torch.equal(logits(model), pristine)
    base.reset()
    assert torch.equal(logits(model), pristine)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, base.pristine[name])
        assert parameter.requires_grad


def test_a_fresh_adapter_of_any_form_changes_nothing() -> None:
    for architecture, extra, lora in FORMS.values():
        model = build_model(architecture, **extra)
        before = logits(model)
        add_lora(model, lora, seed=0)
        assert torch.equal(logits(model), before)


class SameDropout(nn.Module):
    """Our mask in PEFT's layer."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return dropped(x, rate=0.3, layer=self.layer)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_acts_where_pefts_does(tmp_path: Path, dora: bool) -> None:
    lora = replace(LORA, dropout=0.3, dora=dora)
    ours = moved(build_model("qwen2"), lora)
    save_adapter(tmp_path, ours, lora, base_name="b")
    theirs = peft.PeftModel.from_pretrained(build_model("qwen2"), tmp_path, is_trainable=True)
    mine = {name: m for name, m in ours.named_modules() if isinstance(m, LoraLinear)}
    for name, layer in mine.items():
        of_peft = theirs.get_submodule(f"base_model.model.{name}")
        of_peft.lora_dropout["default"] = SameDropout(layer.layer_key)
    losses = []
    for model in (ours.train(), theirs.train()):
        with dropout_seeds([(0, 5)]):
            place_tokens(torch.tensor([[3], [4]]), torch.arange(12)[None])
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(ours.eval()(input_ids=IDS, labels=IDS).loss.item(), rel=1e-3)
    for name, (one, other) in parameters_of(ours, theirs).items():
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_what_is_trained_is_what_was_asked_for() -> None:
    def trained(form: str) -> set[str]:
        names = [n for n, p in adapted(form).named_parameters() if p.requires_grad]
        return {name.removeprefix("model.") for name in names if "lora_" not in name}

    ends = {"embed_tokens.weight", "lm_head.weight"}
    biases = {
        f"layers.{layer}.self_attn.{part}.bias"
        for layer in (0, 1)
        for part in ("q_proj.base", "k_proj", "v_proj")
    }
    assert trained("rslora") == trained("dora") == set()
    assert trained("embedding and head") == ends
    assert trained("tied embedding") == {"embed_tokens.weight"}
    assert trained("all biases") == biases
    assert trained("biases of adapted layers") == {name for name in biases if "q_proj" in name}
    layers = {
        name.split(".")[2]
        for name, module in adapted("one layer").named_modules()
        if isinstance(module, LoraLinear)
    }
    assert layers == {"1"}


def test_a_tied_head_is_saved_as_such(tmp_path: Path) -> None:
    save_adapter(tmp_path, adapted("tied embedding"), EMBEDDINGS, base_name="b")
    config = read_json(tmp_path / "adapter_config.json")
    assert config["modules_to_save"] == ["lm_head", "model.embed_tokens"]
    assert config["ensure_weight_tying"] is True
    theirs = load_in_peft("tied embedding", tmp_path).merge_and_unload()
    assert theirs.get_input_embeddings().weight is theirs.get_output_embeddings().weight


def test_two_values_of_one_weight_are_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path, adapted("tied embedding"), EMBEDDINGS, base_name="b")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.weight"][0, 0] += 1
    save_file(tensors, path)
    with pytest.raises(StoreError) as caught:
        load_adapter(tmp_path, build_model(**TIED))
    assert "its adapter holds other values for" in str(caught.value)
    assert "than for the embedding, but the model ties both; expected one weight." in str(
        caught.value
    )


def test_a_form_that_would_change_nothing_is_refused() -> None:
    with pytest.raises(StudyError) as caught:
        add_lora(build_model(), replace(LORA, bias="all"), seed=0)
    assert str(caught.value) == (
        "lora.bias: 'all' selects no bias of LlamaForCausalLM, so it would change nothing; "
        "expected a model with biases there. Leave bias out for this model."
    )
    with pytest.raises(StudyError, match="'lora_only' selects no bias of Qwen2ForCausalLM"):
        add_lora(build_model("qwen2"), replace(LORA, bias="lora_only", targets=("o_proj",)), seed=0)
    with pytest.raises(StudyError) as caught:
        add_lora(build_model(), replace(LORA, layers=(0, 2)), seed=0)
    assert str(caught.value) == (
        "lora.layers: LlamaForCausalLM has no layer 2 to adapt; it has 0 to 1. Name layers of this "
        "model, counted from 0."
    )
