"""Where on this disk are the results that a user names by a path or an address?

In: a path, or an http(s) address. Out: a local file. Nothing is kept: what was read is stored as
tables with the digest of the file, so that a later download can be told from this one.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2

from sft_atlas.errors import DataError
from sft_atlas.evidence.csv_table import MAX_BYTES

TIMEOUT_SECONDS: Final = 60.0


def is_address(source: str) -> bool:
    """Tell whether a source is to be downloaded.

    >>> is_address("https://example.org/a.csv"), is_address("results/a.csv")
    (True, False)
    """
    return source.lower().startswith(("http://", "https://"))


@contextlib.contextmanager
def fetched(source: str) -> Iterator[Path]:
    """Give the path of a source for the length of a `with` block; an address is downloaded.

    Raises:
        DataError: if an address cannot be reached, answers with an error, or sends too much.
    """
    if not is_address(source):
        yield Path(source)
        return
    name = Path(urlsplit(source).path).name or "download"
    with tempfile.TemporaryDirectory(prefix="sft-atlas-") as folder:
        path = Path(folder) / name
        _download(source, path)
        yield path


def _download(address: str, path: Path) -> None:
    try:
        with (
            httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True) as client,
            client.stream("GET", address) as response,
            path.open("wb") as stream,
        ):
            if response.status_code != 200:
                raise DataError(
                    f"{address}: the server answers HTTP {response.status_code}; expected the "
                    f"file. Check the address, or download the file and name its path."
                )
            num_bytes = 0
            for chunk in response.iter_bytes():
                num_bytes += len(chunk)
                if num_bytes > MAX_BYTES:
                    raise DataError(
                        f"{address}: sends more than {MAX_BYTES >> 30} GiB; expected a table of "
                        f"scores."
                    )
                stream.write(chunk)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{address}: cannot be downloaded ({reason}); expected a file. Download it on a "
            f"machine with a network and name its path."
        ) from error
