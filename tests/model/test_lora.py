"""Our adapters are PEFT's: same start, same step, same file, same logits."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import PreTrainedModel

from sft_atlas.errors import StoreError, StudyError
from sft_atlas.files import read_json, write_json
from sft_atlas.model.lora import (
    LoraLinear,
    add_lora,
    load_adapter,
    lora_state,
    merge,
    merged,
    read_factors,
    remove_lora,
    save_adapter,
)
from sft_atlas.study.spec import LoraSpec
from tiny import LORA, build_model

# peft reads a property of transformers that the latter has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

IDS = torch.arange(2, 26).view(2, 12)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def adapted(architecture: str = "llama", lora: LoraSpec = LORA) -> PreTrainedModel:
    """A model whose adapter does something: B is random instead of zero."""
    model = build_model(architecture)
    add_lora(model, lora, seed=3)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in lora_state(model).items():
        if "lora_B" in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def test_a_fresh_adapter_changes_nothing() -> None:
    model = build_model()
    before = logits(model)
    add_lora(model, LORA, seed=0)
    assert torch.equal(logits(model), before)


def test_all_linear_is_every_linear_layer_but_the_head() -> None:
    model = build_model(tie_word_embeddings=False)
    add_lora(model, LORA, seed=0)
    adapted_names = {name for name, m in model.named_modules() if isinstance(m, LoraLinear)}
    assert len(adapted_names) == 2 * 7
    assert not any("lm_head" in name for name in adapted_names)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"{n}.lora_{ab}" for n in adapted_names for ab in "AB"}


def test_initial_factors_follow_pefts_distribution_and_depend_on_seed_and_name_alone() -> None:
    model, again, other = build_model(), build_model(seed=9), build_model()
    add_lora(model, LORA, seed=0)
    add_lora(again, LoraSpec(rank=4, alpha=8.0, targets=("up_proj",)), seed=0)
    add_lora(other, LORA, seed=1)
    all_factors, some, of_other = lora_state(model), lora_state(again), lora_state(other)
    assert set(some) < set(all_factors)
    assert all(torch.equal(some[name], all_factors[name]) for name in some)
    for name, tensor in all_factors.items():
        if "lora_B" in name:
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert 0.9 * bound < tensor.abs().max() <= bound
            assert not torch.equal(tensor, of_other[name])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "olmo2"])
def test_the_saved_adapter_loads_in_peft_with_equal_logits(
    tmp_path: Path, architecture: str
) -> None:
    model = adapted(architecture)
    save_adapter(tmp_path, model, LORA, base_name="owner/name")
    loaded = peft.PeftModel.from_pretrained(build_model(architecture), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_pefts_adapter_loads_here_with_equal_logits(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    theirs = peft.get_peft_model(build_model(), config)
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path)
    ours = build_model()
    load_adapter(tmp_path, ours)
    torch.testing.assert_close(logits(ours), logits(theirs.eval()), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_a_gradient_step_equals_pefts(tmp_path: Path) -> None:
    ours = adapted()
    save_adapter(tmp_path, ours, LORA, base_name="b")
    theirs = peft.PeftModel.from_pretrained(build_model(), tmp_path, is_trainable=True)
    for model in (ours, theirs):
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
    of_theirs = peft.get_peft_model_state_dict(theirs)
    for name, tensor in lora_state(ours).items():
        torch.testing.assert_close(tensor, of_theirs[name], rtol=0, atol=1e-6)


def test_an_adapter_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(tmp_path, model, LORA, base_name="b")
    again = build_model()
    load_adapter(tmp_path, again)
    assert torch.equal(logits(model), logits(again))


def test_merging_is_lent_and_the_base_comes_back_bit_for_bit() -> None:
    model = adapted()
    with_adapter = logits(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with merged(model):
        assert not any(isinstance(m, LoraLinear) for m in model.modules())
        torch.testing.assert_close(logits(model), with_adapter, rtol=1e-4, atol=1e-5)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(model), with_adapter)


def test_the_base_comes_back_even_if_the_borrower_fails() -> None:
    model = adapted()
    before = logits(model)
    with pytest.raises(KeyError), merged(model):
        raise KeyError
    assert torch.equal(logits(model), before)


def test_merged_for_good_and_removed_are_plain_models() -> None:
    with_adapter = adapted()
    merge(with_adapter)
    torch.testing.assert_close(logits(with_adapter), logits(adapted()), rtol=1e-4, atol=1e-5)
    without = adapted()
    remove_lora(without)
    assert torch.equal(logits(without), logits(build_model()))


def test_factors_are_found_by_the_weight_that_they_change(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(tmp_path, model, LORA, base_name="b")
    factors = read_factors(tmp_path)
    base = dict(build_model().named_parameters())
    with merged(model):
        for name, weight in model.named_parameters():
            if name in factors:
                up, down, scale = factors[name]
                torch.testing.assert_close(weight, base[name] + scale * up @ down)
    assert len(factors) == 14


def test_targets_that_fit_nothing_are_refused_with_what_there_is() -> None:
    with pytest.raises(StudyError, match=r"'wq'.*selects no layer of LlamaForCausalLM.*'q_proj'"):
        add_lora(build_model(), LoraSpec(rank=2, alpha=2.0, targets=("wq",)), seed=0)


def test_an_adapter_that_does_not_fit_its_configuration_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path, adapted(), LORA, base_name="b")
    config = read_json(tmp_path / "adapter_config.json")
    write_json(tmp_path / "adapter_config.json", config | {"target_modules": ["q_proj"]})
    with pytest.raises(StoreError, match="other layers than its configuration"):
        load_adapter(tmp_path, build_model())
