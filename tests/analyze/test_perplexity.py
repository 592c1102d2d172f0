"""Every perplexity that a record gives is the one that its samples give."""

from typing import Any

import numpy as np
import pytest

from sft_atlas.analyze.perplexity import AVERAGES, PARTS, UNITS, perplexities

NLL = {"answer": np.array([2.0, 9.0, 5.0]), "prompt": np.array([1.0, 30.0, 4.0])}
TOKENS = {"answer": np.array([4, 3, 10]), "prompt": np.array([2, 10, 4])}
BYTES = {"answer": np.array([11, 9, 40]), "prompt": np.array([7, 33, 12])}
for values in (NLL, TOKENS, BYTES):
    values["whole"] = values["answer"] + values["prompt"]


def build_result() -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part in PARTS:
        result[f"{part}_nll_per_token_mean"] = float(np.mean(NLL[part] / TOKENS[part]))
        bits = NLL[part] / np.log(2) / BYTES[part]
        result[f"{part}_bits_per_byte_mean"] = float(np.mean(bits))
    for part in ("answer", "prompt"):
        for name, values in (("nll", NLL), ("tokens", TOKENS), ("bytes", BYTES)):
            result[f"{part}_{name}"] = values[part].sum().item()
    return result


@pytest.mark.parametrize("part", PARTS)
def test_variants_are_those_of_the_samples(part: str) -> None:
    found = perplexities(build_result())
    nll, tokens, num_bytes = NLL[part], TOKENS[part], BYTES[part]
    token_perplexity = np.exp(nll.sum() / tokens.sum())
    assert found[f"{part}_token_perplexity"] == pytest.approx(token_perplexity)
    geometric = np.prod(np.exp(nll / tokens)) ** (1 / 3)
    assert found[f"{part}_sample_perplexity"] == pytest.approx(geometric)
    bits = np.log2(np.exp(nll.sum())) / num_bytes.sum()
    assert found[f"{part}_token_bits_per_byte"] == pytest.approx(bits)
    sample_bits = np.mean(np.log2(np.exp(nll)) / num_bytes)
    assert found[f"{part}_sample_bits_per_byte"] == pytest.approx(sample_bits)


def test_names_are_part_average_and_unit() -> None:
    names = {f"{part}_{average}_{unit}" for part in PARTS for average in AVERAGES for unit in UNITS}
    assert set(perplexities(build_result())) == names


def test_bits_per_byte_do_not_depend_on_the_tokens() -> None:
    coarse = build_result()
    fine = coarse | {"answer_tokens": 2 * coarse["answer_tokens"]}
    found = perplexities(coarse), perplexities(fine)
    assert found[0]["answer_token_bits_per_byte"] == found[1]["answer_token_bits_per_byte"]
    assert found[0]["answer_token_perplexity"] != found[1]["answer_token_perplexity"]


def test_what_was_not_scored_has_no_perplexity() -> None:
    result = build_result() | {
        "prompt_nll": 0.0,
        "prompt_tokens": 0,
        "prompt_nll_per_token_mean": None,
    }
    found = perplexities(result)
    assert found["prompt_token_perplexity"] is None
    assert found["prompt_sample_perplexity"] is None
    assert found["answer_token_perplexity"] is not None
