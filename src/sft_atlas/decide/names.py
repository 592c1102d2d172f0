"""Which name in the evidence is meant by this model or dataset?

In: a name, and those that the evidence has. Out: the one that is the same but for case, hyphens
and underscores, or that is the repository of the card with this name; else the name itself. Nothing
that is only similar is taken for the same.
"""

import re
from collections.abc import Iterable
from typing import Final, Literal

from sft_atlas.catalog.cards import find_dataset, find_model
from sft_atlas.errors import CatalogError

_ODD: Final = re.compile(r"[-_\s]+")


def name_in(known: Iterable[str], name: str, kind: Literal["model", "dataset"]) -> str:
    """Return the known name of a model or dataset, else the name as it is."""
    names = sorted(known)
    if name in names:
        return name
    wanted = {_plain(name), _plain(_repository(name, kind))}
    found = [other for other in names if _plain(other) in wanted]
    return found[0] if len(found) == 1 else name


def _repository(name: str, kind: str) -> str:
    """Last part of the repository that the card with this name states; else the name."""
    try:
        card = find_model(name) if kind == "model" else find_dataset(name)
    except CatalogError:
        return name
    return (card.source.hub or name).rsplit("/", 1)[-1]


def _plain(name: str) -> str:
    return _ODD.sub("", name.lower())
