"""Names and weights as users type them."""

import pandas as pd
import pytest

from sft_atlas.decide.weights import parse_budget, parse_weights, resolve_weights
from sft_atlas.errors import DataError

KNOWN = pd.DataFrame(
    {
        "benchmark": ["gsm8k-0shot", "gsm8k-4shot", "mmlu-0shot", "cmmlu-0shot", "nq-1", "nq-2"],
        "in_mean": [True, False, True, True, True, True],
    }
)


def test_a_name_without_a_number_weighs_one() -> None:
    assert parse_weights("gsm8k=2, mmlu") == {"gsm8k": 2.0, "mmlu": 1.0}


@pytest.mark.parametrize("text", ["", "gsm8k=", "gsm8k=0", "gsm8k=-1", "gsm8k=nan", "=2", "a,,b"])
def test_what_is_no_weight_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="is no benchmark with a weight above 0"):
        parse_weights(text)


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(DataError, match="gsm8k is named twice"):
        parse_weights("gsm8k=1,gsm8k=2")


@pytest.mark.parametrize(("text", "hours"), [("20gpuh", 20.0), ("0.5", 0.5), (" 3 GPUh", 3.0)])
def test_a_budget_is_gpu_hours(text: str, hours: float) -> None:
    assert parse_budget(text) == hours


@pytest.mark.parametrize("text", ["", "much", "0", "-3gpuh", "inf", "20 EUR"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="is no number of GPU-hours above 0"):
        parse_budget(text)


def test_a_short_name_is_the_one_that_counts_in_means() -> None:
    found = resolve_weights({"gsm8k": 2, "MMLU": 1}, KNOWN)
    assert found == {"gsm8k-0shot": pytest.approx(2 / 3), "mmlu-0shot": pytest.approx(1 / 3)}


def test_a_full_name_is_itself_whether_or_not_it_counts() -> None:
    assert resolve_weights({"gsm8k-4shot": 3}, KNOWN) == {"gsm8k-4shot": 1.0}


def test_a_name_of_several_is_refused_with_the_list() -> None:
    with pytest.raises(DataError, match=r"benchmark 'nq': could be nq-1, nq-2; name one of them"):
        resolve_weights({"nq": 1}, KNOWN)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="not in the evidence; did you mean mmlu-0shot"):
        resolve_weights({"mmlu-0shto": 1}, KNOWN)


def test_two_names_of_one_benchmark_are_refused() -> None:
    with pytest.raises(DataError, match="means gsm8k-0shot, which is named before"):
        resolve_weights({"gsm8k": 1, "gsm8k-0shot": 1}, KNOWN)


def test_without_scores_nothing_can_be_named() -> None:
    with pytest.raises(DataError, match="the evidence has no scores"):
        resolve_weights({"gsm8k": 1}, KNOWN.iloc[:0])


def test_huge_and_tiny_weights_keep_their_proportions() -> None:
    assert resolve_weights({"nq-1": 1e308, "nq-2": 1e308}, KNOWN) == {"nq-1": 0.5, "nq-2": 0.5}
    assert resolve_weights({"nq-1": 1e-310, "nq-2": 1e-310}, KNOWN)["nq-1"] == pytest.approx(0.5)
