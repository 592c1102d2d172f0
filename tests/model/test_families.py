"""Every family trains as transformers and PEFT say: same losses, gradients, weights and files."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from families import BEYOND, DROPOUTS, FAMILIES, PAPER, build_family, save_family
from sft_atlas.catalog.cards import card_names, find_model
from sft_atlas.data.batches import TrainingRows, iter_steps
from sft_atlas.data.prepared import PreparedRows
from sft_atlas.errors import StudyError
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.model.lora import add_lora, lora_state, save_adapter
from sft_atlas.model.packed import can_pack
from sft_atlas.model.stack import Stack, can_stack
from sft_atlas.model.training_pass import summed_losses
from sft_atlas.store.store import open_store
from sft_atlas.study.spec import LoraSpec, ModelSpec, Source
from sft_atlas.train.loop import train
from sft_atlas.weights.names import parse_weight_name
from tiny import LORA, build_job, build_model, build_rows

# peft reads a property of transformers that the latter has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

MAMBA_LORA = LoraSpec(rank=4, alpha=8.0, targets=("in_proj",))
"""Of the other layers of a Mamba block its code takes the weights and leaves the layers out."""

every_family = pytest.mark.parametrize("name", FAMILIES)
every_adapted_family = pytest.mark.parametrize("name", [n for n in FAMILIES if FAMILIES[n].adapts])

IN_SHORT = ["llama", "llama-tied", "olmo", "gemma2", "bloom"]

LIKE_OTHERS = [
    *("olmo2-tied", "olmo3", "llama-bias", "phi3", "smollm3"),
    *("seed_oss", "granite", "glm4", "starcoder2"),
]
"""Made of layers that families before them have, as far as several runs in one model go."""


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def lora_of(name: str) -> LoraSpec:
    return MAMBA_LORA if name == "mamba" else LORA


def transformers_losses(
    model: nn.Module, rows: TrainingRows, indices: list[int]
) -> Iterator[tuple[Tensor, int]]:
    """Yield summed loss and number of supervised tokens of each sample, in a pass of its own."""
    for index in indices:
        tokens, prompt_length = rows.example(index)
        ids = torch.tensor(tokens, dtype=torch.int64)[None]
        labels = ids.clone()
        labels[:, :prompt_length] = -100
        supervised = len(tokens) - prompt_length
        # transformers' own loss is the mean over the labels, which it shifts itself.
        yield model(input_ids=ids, labels=labels).loss * supervised, supervised


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of what trains, PEFT's names made ours."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            own_name = name.removeprefix("base_model.model.").replace(".default.weight", "")
            found[own_name] = parameter.grad
    return found


def assert_gradients_agree(
    found: dict[str, Tensor], expected: dict[str, Tensor], *, tolerance: float = 1e-5
) -> None:
    """Compare by tensor; one below 1 % of the largest may be zero but for rounding."""
    assert found.keys() == expected.keys()
    floor = 0.01 * max(float(gradient.norm()) for gradient in expected.values())
    assert floor > 0
    for name, gradient in expected.items():
        error = float((found[name] - gradient).norm()) / max(float(gradient.norm()), floor)
        assert error <= tolerance, f"{name}: {error:.1e}"


def add_working_lora(model: PreTrainedModel, lora: LoraSpec, *, seed: int = 0) -> None:
    """Adapt a model by factors that do something: B is random instead of zero."""
    add_lora(model, lora, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in lora_state(model).items():
        if "lora_B" in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


@every_family
def test_a_steps_loss_and_all_its_gradients_are_those_of_transformers(name: str) -> None:
    rows, indices = build_rows(6), [4, 0, 5, 2, 1, 3]
    ours, theirs = build_family(name).train(), build_family(name).train()
    assert can_pack(ours) == FAMILIES[name].packs
    losses = summed_losses(ours, [(rows, indices)])
    torch.autograd.backward(losses.sum())
    expected = torch.stack([loss for loss, _ in transformers_losses(theirs, rows, indices)]).sum()
    torch.autograd.backward(expected)
    assert losses.tolist() == pytest.approx([expected.item()], rel=1e-5)
    assert_gradients_agree(gradients(ours), gradients(theirs))


@every_adapted_family
def test_an_adapters_loss_and_gradients_are_those_of_peft(name: str, tmp_path: Path) -> None:
    rows, indices = build_rows(4), [0, 1, 2, 3]
    ours = build_family(name)
    add_working_lora(ours, lora_of(name))
    save_adapter(tmp_path, ours, lora_of(name), base_name="b")
    theirs = peft.PeftModel.from_pretrained(build_family(name), tmp_path, is_trainable=True)
    losses = summed_losses(ours.train(), [(rows, indices)])
    torch.autograd.backward(losses.sum())
    expected = sum(loss for loss, _ in transformers_losses(theirs.train(), rows, indices))
    assert isinstance(expected, Tensor)
    torch.autograd.backward(expected)
    assert losses.tolist() == pytest.approx([expected.item()], rel=1e-5)
    assert_gradients_agree(gradients(ours), gradients(theirs))


def test_gpt2_whose_layers_are_no_linear_layers_is_not_adapted_and_says_so() -> None:
    assert not FAMILIES["gpt2"].adapts
    with pytest.raises(StudyError, match=re.escape("selects no layer of GPT2LMHeadModel")):
        add_lora(build_family("gpt2"), LORA, seed=0)


def test_an_adapter_that_mambas_code_would_pass_by_is_refused() -> None:
    model = build_family("mamba").train()
    add_lora(model, LORA, seed=0)
    with pytest.raises(StudyError, match=r"takes the weight of backbone\.layers\.0\.mixer\.x_proj"):
        summed_losses(model, [(build_rows(1), [0])])


@pytest.mark.parametrize(
    ("name", "is_adapted"),
    [
        (name, is_adapted) if name in IN_SHORT else slow(name, is_adapted)
        for name in FAMILIES
        for is_adapted in (False, True)
        if FAMILIES[name].adapts or not is_adapted
    ],
)
def test_a_run_of_two_steps_is_a_plain_torch_loop_and_its_cell_loads(
    name: str, is_adapted: bool, tmp_path: Path
) -> None:
    lora = lora_of(name) if is_adapted else None
    rows = build_rows(12)
    spec = save_family(tmp_path / "base", name)
    # A larger epsilon than usual: with Adam's own, rounding decides about the smallest gradients.
    settings = {"batch_samples": 6, "epsilon": 1e-2, "clip_norm": 0.5, "weight_decay": 0.1}
    job = build_job(spec, keep_epochs=(1,), lora=lora, **settings)
    store = open_store(tmp_path / "store", create=True)
    train(job, store=store, base=load_base(spec), rows=rows)
    cell = store.layout.cell(job.cells[0].fingerprint)

    theirs = build_family(name)
    if lora is None:
        attention = theirs.config._attn_implementation
        stored = AutoModelForCausalLM.from_pretrained(cell, attn_implementation=attention)
    else:
        start = build_family(name)
        add_lora(start, lora, seed=job.trajectory.seed)
        save_adapter(tmp_path, start, lora, base_name="b")
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True)
        stored = peft.PeftModel.from_pretrained(build_family(name), cell)
    fit(theirs.train(), rows)
    expected = theirs.state_dict()
    assert stored.state_dict().keys() == expected.keys()
    for key, weight in stored.state_dict().items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=1e-5)


def fit(model: nn.Module, rows: TrainingRows) -> None:
    """Train a model for one epoch as the job of the test above asks, with torch alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1, eps=1e-2)
    for indices in iter_steps(rows, batch_samples=6, seed=0, epoch=1):
        losses, counts = zip(*transformers_losses(model, rows, indices), strict=True)
        optimizer.zero_grad()
        torch.autograd.backward(sum(losses) / sum(counts))
        nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()


TICKED = re.compile(r"`([^`]+)`")
RECURRENT = re.compile(r"^(backbone\.layers\.\d\.mixer|model\.layers\.0\.conv)\.")
POSITIONS = {"transformer.wpe.weight", "model.decoder.embed_positions.weight"}


@every_family
def test_every_weight_has_the_layer_and_the_kind_that_its_place_says(name: str) -> None:
    """Taken from the live modules: what is `other` is a bias, a position table, or recurrent."""
    model = build_family(name)
    stack = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    layers = {id(p): number for number, layer in enumerate(stack) for p in layer.parameters()}
    owners = {id(p): owner for owner in model.modules() for p in owner.parameters(recurse=False)}
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    for key, parameter in model.named_parameters():
        parsed, owner = parse_weight_name(key), owners[id(parameter)]
        assert parsed.layer == layers.get(id(parameter)), key
        if parameter is table.weight:
            role = "embedding"
        elif parameter is head.weight:
            role = "head"
        elif "Norm" in type(owner).__name__:
            role = "norm"
        elif key.endswith("bias") or key in POSITIONS or RECURRENT.match(key):
            role = "other"
        else:
            role = (
                "attention"
                if re.search(r"\.(self_attn|self_attention|attention|attn)\.", key)
                else "mlp"
            )
        assert parsed.kind.split(".")[0] == role, f"{key}: {parsed.kind}"


def build_short_rows() -> TrainingRows:
    """Samples of fewer tokens than a model has heads."""
    lengths = np.array([3, 2, 3])
    return TrainingRows(
        [
            PreparedRows(
                tokens=np.arange(2, 10, dtype=np.int32),
                offsets=np.concatenate([[0], np.cumsum(lengths)]),
                prompt_lengths=np.array([1, 1, 2], dtype=np.int32),
                rows=np.arange(3),
                positions=np.arange(3),
                result={},
            )
        ]
    )


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        *((name, None) for name in FAMILIES if name not in LIKE_OTHERS),
        *(slow(name, None) for name in LIKE_OTHERS),
        *((name, LORA) for name in PAPER),
        *(slow(name, LORA) for name in BEYOND if FAMILIES[name].adapts),
    ],
)
def test_runs_in_one_model_have_the_losses_and_gradients_of_each_alone(
    name: str, lora: LoraSpec | None
) -> None:
    seeds = range(3)
    base = base_of(build_family(name))
    stacks = FAMILIES[name].stacks if lora is None else FAMILIES[name].stacks_lora
    assert can_stack(base, lora) == stacks
    if not stacks:
        return
    models = [build_family(name, seed=0 if lora else seed).train() for seed in seeds]
    for seed, model in zip(seeds, models, strict=True):
        if lora is not None:
            add_working_lora(model, lora, seed=seed)
    stack = Stack(models[0])
    runs = [trained_copies(model) for model in models]
    stack.hold(runs)
    for members in (
        [(build_rows(6), [3, 0]), (build_rows(6, seed=1), [5]), (build_rows(6), [1, 2, 4])],
        [(build_short_rows(), [0]), (build_short_rows(), [1]), (build_short_rows(), [2])],
    ):
        stack.set_lengths([int(rows.lengths[indices].sum()) for rows, indices in members])
        stack.clear_gradients()
        together = summed_losses(stack.model, members)
        torch.autograd.backward(together.sum())
        stack.share_gradients()
        for loss, run, model, member in zip(together, runs, models, members, strict=True):
            model.zero_grad()
            alone = summed_losses(model, [member])
            torch.autograd.backward(alone.sum())
            assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
            found = {
                k: parameter.grad for k, parameter in run.items() if parameter.grad is not None
            }
            assert_gradients_agree(found, gradients(model), tolerance=1e-4)


@pytest.mark.parametrize(
    ("model_type", "dropout"),
    [("seed_oss", "residual_dropout"), ("seed_oss", "attention_dropout"), ("gpt2", "embd_pdrop")],
)
def test_a_model_with_dropout_of_its_own_trains_alone(model_type: str, dropout: str) -> None:
    settings = dict.fromkeys(DROPOUTS, 0.0) | FAMILIES[model_type].settings
    assert can_stack(base_of(build_model(model_type, **settings)), None)
    base = base_of(build_model(model_type, **settings | {dropout: 0.1}))
    state = torch.get_rng_state()
    assert not can_stack(base, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert not base.model.training


def base_of(model: PreTrainedModel) -> BaseModel:
    """A base model that was never in a folder."""
    pristine = {name: p.detach().clone() for name, p in model.named_parameters()}
    spec = ModelSpec(name="none", source=Source(sha256="0" * 64))
    return BaseModel(spec=spec, folder=Path(), model=model, pristine=pristine)


def trained_copies(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: nn.Parameter(parameter.detach().clone())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def test_the_page_of_models_says_what_is_checked_here() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    of_card = {
        card: row[1].strip("`") for row in rows if len(row) == 2 for card in TICKED.findall(row[0])
    }
    assert of_card.keys() == set(card_names("models"))
    for card_name, name in of_card.items():
        card, family = find_model(card_name), FAMILIES[name]
        config = build_family(name).config
        assert family.model_type == card.family, card_name
        assert config.tie_word_embeddings == card.tied_embeddings, card_name
        if card.num_kv_heads < card.num_heads:
            assert config.num_key_value_heads < config.num_attention_heads, card_name
    said = {row[0].strip("`"): row[2:] for row in rows if len(row) > 2}
    assert said == {
        name: [
            "packed" if family.packs else "padded",
            "together" if family.stacks else "one by one",
            "-" if not family.adapts else "together" if family.stacks_lora else "one by one",
        ]
        for name, family in FAMILIES.items()
    }


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("mistral", {"sliding_window": 128}),
        ("olmo", {"clip_qkv": None}),
        ("gemma2", {"sliding_window": 128}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma3", {"sliding_window": 128}),
        ("phi3", {"sliding_window": 128}),
        ("smollm3", {"no_rope_layers": [1, 1]}),
        ("granite", {"logits_scaling": 1.0}),
        ("cohere2", {"logit_scale": 1.0}),
    ],
)
def test_the_features_of_these_models_are_on(name: str, without: dict[str, Any]) -> None:
    """With the same weights and a feature off, the samples have another loss."""
    model, family = build_family(name), FAMILIES[name]
    plain = build_model(family.model_type, **(family.settings | without))
    plain.load_state_dict(model.state_dict())
    members = [(build_rows(6), list(range(6)))]
    with torch.no_grad():
        assert summed_losses(plain, members).tolist() != pytest.approx(
            summed_losses(model, members).tolist(), rel=1e-3
        )
