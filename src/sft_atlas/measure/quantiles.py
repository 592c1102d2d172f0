"""How is a number spread over the samples of a dataset: which quantiles stand in a record?

In: a name and one value per sample. Out: five quantiles by names such as `answer_words_05`, from
the same five fractions wherever a record tells of a spread.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_FRACTIONS: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


def name_quantiles(name: str, values: NDArray[Any]) -> dict[str, float | None]:
    """Return quantiles, linear between values, as `<name>_<percent>`; None of no values.

    >>> name_quantiles("words", np.arange(5))
    {'words_05': 0.2, 'words_25': 1.0, 'words_50': 2.0, 'words_75': 3.0, 'words_95': 3.8}
    """
    names = [f"{name}_{round(100 * fraction):02d}" for fraction in _FRACTIONS]
    if not len(values):
        return dict.fromkeys(names)
    return dict(zip(names, np.quantile(values, _FRACTIONS).tolist(), strict=True))
