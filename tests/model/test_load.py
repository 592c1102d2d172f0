"""Only complete models without code are loaded, and a used model becomes the base again."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft_atlas.errors import StoreError, StudyError
from sft_atlas.files import read_json, sha256_tree, write_json
from sft_atlas.model.load import load_base, load_cell
from sft_atlas.model.lora import add_lora
from sft_atlas.store.store import open_store
from sft_atlas.study.spec import CellSpec, ModelSpec, Source
from sft_atlas.train.loop import train
from tiny import LORA, build_job, build_model, build_rows, save_base

IDS = torch.arange(2, 12)[None]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "olmo2"])
def test_a_loaded_base_is_the_model_that_transformers_loads(
    tmp_path: Path, architecture: str
) -> None:
    base = load_base(save_base(tmp_path, architecture))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(base.model(IDS).logits, reference(IDS).logits)
    expected = "eager" if architecture == "gemma2" else "sdpa"
    assert base.model.config._attn_implementation == expected
    assert not base.model.training


def test_stored_bfloat16_is_loaded_as_the_same_values_in_float32(tmp_path: Path) -> None:
    stored = build_model().to(torch.bfloat16)
    stored.save_pretrained(tmp_path)
    base = load_base(ModelSpec(name="m", source=Source(path=tmp_path)))
    assert base.model.dtype is torch.float32
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, stored.get_parameter(name).float())


@pytest.mark.parametrize("is_adapted", [False, True])
def test_reset_makes_the_base_again_bit_for_bit(tmp_path: Path, is_adapted: bool) -> None:
    base = load_base(save_base(tmp_path))
    with torch.no_grad():
        before = base.model(IDS).logits
    if is_adapted:
        add_lora(base.model, LORA, seed=0)
    base.model.train()
    base.model(IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.add_(0.1)
    base.reset()
    assert all(p.grad is None and p.requires_grad for p in base.model.parameters())
    with torch.no_grad():
        assert torch.equal(base.model(IDS).logits, before)


def test_a_folder_that_changed_since_the_study_was_read_is_refused(tmp_path: Path) -> None:
    save_base(tmp_path)
    spec = ModelSpec(name="m", source=Source(path=tmp_path, sha256=sha256_tree(tmp_path)))
    load_base(spec)
    (tmp_path / "notes.txt").write_text("changed")
    with pytest.raises(StudyError, match=r"model m: the files in .* changed since the study was"):
        load_base(spec)


@pytest.mark.parametrize(
    "extra",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
        {"_attn_implementation_internal": "someone/kernel"},
        {"attn_implementation": "someone/kernel"},
        {"text_config": {"auto_map": {}}},
    ],
)
def test_a_configuration_that_asks_for_code_is_refused(
    tmp_path: Path, extra: dict[str, object]
) -> None:
    spec = save_base(tmp_path)
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | extra)
    with pytest.raises(StudyError, match=r"model llama: its config.json has .* code from outside"):
        load_base(spec)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    spec = save_base(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(build_model().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(StudyError, match=r"model llama: .* cannot be loaded .* safetensors"):
        load_base(spec)


def test_a_model_with_missing_weights_is_refused(tmp_path: Path) -> None:
    spec = save_base(tmp_path)
    model = build_model()
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp.up" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(StudyError, match=r"1 tensors, such as model.layers.1.mlp.up_proj.weight"):
        load_base(spec)


@pytest.mark.parametrize("content", [None, "{", '{"model_type": "nobody-knows-it"}'])
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(StudyError, match=r"model m: .* cannot be (read|loaded)"):
        load_base(ModelSpec(name="m", source=Source(path=tmp_path)))


def test_a_missing_folder_and_an_unreachable_hub_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"model m: .*gone is no folder"):
        load_base(ModelSpec(name="m", source=Source(path=tmp_path / "gone")))
    with pytest.raises(StudyError, match="model m: nobody/nothing cannot be downloaded"):
        load_base(ModelSpec(name="m", source=Source(hub="nobody/nothing", revision="0" * 40)))


def test_a_damaged_cell_is_not_loaded(tmp_path: Path) -> None:
    base = load_base(save_base(tmp_path / "base"))
    store = open_store(tmp_path / "store", create=True)
    job = build_job(base.spec, keep_epochs=(1,), lora=LORA)
    train(job, store=store, base=base, rows=build_rows())
    path = store.layout.cell(job.cells[0].fingerprint) / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"adapter_model.safetensors: differs from the digest"):
        load_cell(base, job.cells[0], store=store)


def test_the_base_cell_is_the_base(tmp_path: Path) -> None:
    base = load_base(save_base(tmp_path / "base"))
    store = open_store(tmp_path / "store", create=True)
    with torch.no_grad():
        next(base.model.parameters()).zero_()
    cell = CellSpec(model=base.spec, trajectory=None, epoch=0)
    model = load_cell(base, cell, store=store)
    live = dict(model.named_parameters())
    assert all(torch.equal(live[name], base.pristine[name]) for name in live)
