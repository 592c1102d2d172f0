"""What is wrong with a released table, and what is done about it?"""

from dataclasses import dataclass
from typing import Literal

Treatment = Literal["exclude score", "exclude gain", "unmix", "note"]


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One thing that a general test found; every text is a sentence for a reader."""

    kind: str
    """Name of the test, such as `mixed definitions`."""
    columns: tuple[str, ...]
    """Columns of the source that it touches."""
    rows: tuple[int, ...]
    """Places in the source (`line` of the labels); empty: all."""
    where: str
    evidence: str
    effect: str
    """What an analysis that does not know of it would get wrong."""
    treatment: Treatment
    """`unmix` replaces the values; `exclude gain` keeps the score and forms no gain with it;
    `note` changes nothing."""
    what_is_done: str
