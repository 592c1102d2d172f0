"""How are counts, shares and chances of a defect worded?

In: numbers. Out: short phrases for sentences that a reader understands who never saw the table.
"""

import math
from collections.abc import Sequence
from typing import Final

_LOG_TINY: Final = -300.0
"""Below this exponent a chance says no more than that it is tiny."""


def listed(names: Sequence[str], *, most: int = 12) -> str:
    """Join names with commas; beyond `most`, the rest are counted.

    >>> listed(["a", "b", "c", "d"], most=3), listed(["a", "b"])
    ('a, b and 2 others', 'a and b')
    """
    shown = list(names)
    if len(shown) > most:
        kept = shown[: most - 1]
        return f"{', '.join(kept)} and {len(shown) - len(kept)} others"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def counted(count: int, noun: str) -> str:
    """Say a number with its noun; the plural takes an s.

    >>> counted(1, "row"), counted(1027, "row")
    ('1 row', '1,027 rows')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """Write a fraction of 1 in percent; what is not all or nothing never reads 0 or 100.

    >>> percent(0.4712), percent(0.0004), percent(0.9996), percent(1.0)
    ('47 %', '0.04 %', '99.96 %', '100 %')
    """
    value = 100 * share
    if share in (0.0, 1.0) or 1 <= value <= 99:
        return f"{value:.0f} %"
    return f"{value:.2g} %" if value < 1 else f"{value:.4g} %"


def chance(log_chance: float) -> str:
    """Word a chance that is given by its natural logarithm.

    >>> chance(math.log(0.04)), chance(-100.0), chance(-math.inf)
    ('0.04', '1 in 10^43', 'less than 1 in 10^300')
    """
    exponent = log_chance / math.log(10)
    if exponent < _LOG_TINY:
        return "less than 1 in 10^300"
    if exponent > -3:
        return f"{10**exponent:.2g}"
    return f"1 in 10^{-math.ceil(exponent)}"
