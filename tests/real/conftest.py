"""Real files, read where they lie; every test of this folder is skipped where they are absent."""

from pathlib import Path

import pytest

from real.stories import convert

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of public data files beside the repository."""
    if not DATA.is_dir():
        pytest.skip("needs the public data files in ../shared/data, which are not here")
    return DATA


@pytest.fixture(scope="session")
def stories(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pretrained model of 260,032 weights as a transformers folder."""
    folder = tmp_path_factory.mktemp("models") / "stories260k"
    source = data / "models" / "stories260K"
    convert(source / "stories260K.bin", source / "tok512.bin", folder)
    return folder
