"""What a verb found reaches a file, or the user is told why not."""

from pathlib import Path

import pytest

from sft_atlas.cli.output import write_file
from sft_atlas.errors import StudyError


def test_a_file_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "t.csv"
    with pytest.raises(StudyError) as caught:
        write_file(path, b"")
    assert str(caught.value) == (
        f"{path}: cannot be written (No such file or directory); expected a file in a folder that "
        "exists. Choose another --output."
    )
