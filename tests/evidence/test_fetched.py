"""An address is downloaded and a path is left where it is."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import sft_atlas
from released_form import write_grid
from sft_atlas.errors import DataError
from sft_atlas.evidence import fetched as fetching
from sft_atlas.evidence.fetched import fetched


class Handler(BaseHTTPRequestHandler):
    """Serves one file, a redirect to it, and an error."""

    content = b""

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/table.csv")
            self.end_headers()
            return
        self.send_response(200 if self.path == "/table.csv" else 404)
        self.end_headers()
        self.wfile.write(self.content if self.path == "/table.csv" else b"no")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    Handler.content = write_grid(tmp_path / "served.csv").read_bytes()
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_path_is_given_as_it_is(tmp_path: Path) -> None:
    with fetched(str(tmp_path / "a.csv")) as path:
        assert path == tmp_path / "a.csv"


@pytest.mark.parametrize("name", ["table.csv", "moved"])
def test_a_download_is_there_for_the_time_of_the_block(address: str, name: str) -> None:
    with fetched(f"{address}/{name}") as path:
        assert path.read_bytes() == Handler.content
    assert not path.exists()


def test_the_origin_of_an_import_is_its_address(address: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    found = sft_atlas.import_results("massive-sft", f"{address}/table.csv", store=store)
    local = sft_atlas.import_results("massive-sft", tmp_path / "served.csv", store=store)
    assert found.origin == f"{address}/table.csv"
    assert (local.origin, local.sha256) == (str(tmp_path / "served.csv"), found.sha256)


def test_errors_of_the_server_are_said(address: str) -> None:
    with pytest.raises(DataError) as error, fetched(f"{address}/nothing"):
        pass
    assert str(error.value) == (
        f"{address}/nothing: the server answers HTTP 404; expected the file. Check the address, or "
        f"download the file and name its path."
    )


def test_a_server_that_is_not_there_is_said() -> None:
    with pytest.raises(DataError) as error, fetched("http://127.0.0.1:9/table.csv"):
        pass
    assert str(error.value).startswith("http://127.0.0.1:9/table.csv: cannot be downloaded (")
    assert str(error.value).endswith(
        "); expected a file. Download it on a machine with a network and name its path."
    )


def test_too_long_a_download_is_stopped(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MAX_BYTES", 10)
    message = "sends more than 0 GiB; expected a table of scores"
    with pytest.raises(DataError, match=message), fetched(f"{address}/table.csv"):
        pass


def test_nothing_is_stored_of_what_cannot_be_read(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(DataError):
        sft_atlas.import_results("massive-sft", tmp_path / "absent.csv", store=store)
    assert not store.exists()
