"""Which perplexity? Form every variant of it from a dataset's stored sums.

In: a row of the table `datasets`, or the result of a `dataset/2` record. Out: numbers by name
`<part>_<average>_<unit>`:

* part: `answer` (what training supervises, the end-of-sequence token included), `prompt`, or
  `whole` (both). The first token of a sample is predicted from nothing and counts nowhere.
* average: `token` sums nats over all samples and divides once, so long samples weigh more;
  `sample` takes each sample's own mean first, so that all weigh the same. Of perplexities, that
  is their geometric mean.
* unit: `perplexity`, exp(nats per token), which depends on the tokenizer; `bits_per_byte`, nats /
  (ln 2 * UTF-8 bytes), which can be compared across tokenizers.

The paper does not say which variant it takes (section 4, "perplexity is key").
"""

import math
from collections.abc import Mapping
from typing import Any, Final

PARTS: Final = ("answer", "prompt", "whole")
AVERAGES: Final = ("token", "sample")
UNITS: Final = ("perplexity", "bits_per_byte")


def perplexities(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return all 12 variants by name; None where nothing was scored.

    >>> row = {"answer_nll": 4.0, "answer_tokens": 2, "answer_bytes": 8,
    ...     "prompt_nll": 0.0, "prompt_tokens": 0, "prompt_bytes": 0}
    >>> found = perplexities(row)
    >>> round(found["answer_token_perplexity"], 3), found["prompt_token_perplexity"]
    (7.389, None)
    """
    found: dict[str, float | None] = {}
    for part in PARTS:
        nll, num_tokens, num_bytes = (
            _total(row, part, name) for name in ("nll", "tokens", "bytes")
        )
        found[f"{part}_token_perplexity"] = _exp(_ratio(nll, num_tokens))
        found[f"{part}_token_bits_per_byte"] = _ratio(nll / math.log(2), num_bytes)
        found[f"{part}_sample_perplexity"] = _exp(row.get(f"{part}_nll_per_token_mean"))
        found[f"{part}_sample_bits_per_byte"] = row.get(f"{part}_bits_per_byte_mean")
    return found


def _total(row: Mapping[str, Any], part: str, name: str) -> float:
    if part == "whole":
        return float(row[f"answer_{name}"]) + float(row[f"prompt_{name}"])
    return float(row[f"{part}_{name}"])


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(value)
