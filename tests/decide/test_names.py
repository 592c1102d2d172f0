"""Names that mean the same model or dataset."""

import pytest

from sft_atlas.decide.names import name_in


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen2.5-7B", "Qwen2.5-7B"),
        ("qwen2.5_7b", "Qwen2.5-7B"),
        ("llama-3-8b", "Meta-Llama-3-8B"),
        ("llama-3-9b", "llama-3-9b"),
        ("qwen", "qwen"),
    ],
)
def test_models_go_by_case_hyphens_and_their_repository(name: str, found: str) -> None:
    assert name_in(["Qwen2.5-7B", "Meta-Llama-3-8B"], name, "model") == found


def test_datasets_go_by_their_repository_too() -> None:
    assert name_in(["alpaca_cleaned", "lima"], "alpaca", "dataset") == "alpaca_cleaned"


def test_what_could_be_two_is_neither() -> None:
    assert name_in(["a-b", "a_b"], "A-B", "model") == "A-B"
