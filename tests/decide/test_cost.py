"""GPU-hours from cards and names."""

import pandas as pd
import pytest

from sft_atlas.decide.cost import model_card, training_price
from sft_atlas.errors import CatalogError


def _choices(**changes: object) -> pd.DataFrame:
    row = {"data": "lima", "method_kind": "full", "samples": 1000, "epoch": 10} | changes
    return pd.DataFrame([row])


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("Qwen2.5-7B", "qwen2.5-7b"),
        ("Gemma2-9B", None),
        ("allenai/OLMo-7B-hf", "olmo-7b"),
        ("Meta-Llama-3-8B", "llama-3-8b"),
    ],
)
def test_a_model_is_found_by_its_repository_or_priced_by_its_size(
    name: str, card: str | None
) -> None:
    found = model_card(name)
    assert found is not None
    assert found.name == (card or found.name)
    assert 6e9 < found.parameters < 11e9


def test_a_name_without_a_size_has_no_price() -> None:
    price = training_price("somebody", _choices())
    assert price.gpu_hours[0] != price.gpu_hours[0]
    assert price.basis == "not known: no card and no name tells the model's size"


def test_cost_grows_with_samples_epochs_and_weights_and_lora_is_cheaper() -> None:
    plain = training_price("ours-7b", _choices()).gpu_hours[0]
    assert training_price("ours-7b", _choices(samples=20_000)).gpu_hours[0] > 10 * plain
    assert training_price("ours-7b", _choices(epoch=1)).gpu_hours[0] < plain
    assert training_price("ours-70b", _choices()).gpu_hours[0] > 9 * plain
    assert training_price("ours-7b", _choices(method_kind="lora")).gpu_hours[0] < plain


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(CatalogError, match="has no card"):
        training_price("ours-7b", _choices(), device="abacus")


def test_a_name_that_states_no_parameters_has_no_card() -> None:
    assert model_card("x-0b") is None
