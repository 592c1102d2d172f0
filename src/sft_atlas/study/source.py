"""Say which bytes a source is: the digest of local files, or a hub repository at a revision."""

from pathlib import Path

from sft_atlas.catalog.cards import CardSource
from sft_atlas.files import sha256_file, sha256_tree
from sft_atlas.study.spec import Source


def local_source(path: Path) -> Source:
    """Return a local file or folder with its SHA-256; None while it does not exist."""
    absolute = path.absolute()
    return Source(sha256=_digest(absolute) if absolute.exists() else None, path=absolute)


def source_from_card(source: CardSource) -> Source:
    """Return what a card points to, digested where it lies in the package."""
    if source.path is not None:
        return local_source(source.path)
    return Source(
        hub=source.hub,
        revision=source.revision,
        config=source.config,
        split=source.split,
        file=source.file,
    )


def _digest(path: Path) -> str:
    return sha256_tree(path) if path.is_dir() else sha256_file(path)
