"""Read rows of a dataset from JSONL, JSON, CSV or Parquet files (or gzip of the first three) or the hub.

Every row comes with where it stands (`file:line`, or `file[index]` where lines mean nothing). A row that cannot
be read does not end the reading: `load_examples` collects it with its reason, and the dataset's `on_bad_rows`
decides whether the reader is told or the row is put aside.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from sft_atlas import files
from sft_atlas.data.shapes import Example, RowError, check_parts, split_row
from sft_atlas.errors import DataError
from sft_atlas.study.spec import DatasetSpec, Source

NUM_SHOWN: Final = 20
"""How many malformed rows an error lists; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A malformed row, put aside."""

    where: str
    reason: str
    row: Any
    """The row as read, or its text where it could not be parsed."""


@dataclass(frozen=True, kw_only=True)
class LoadedRows:
    """A dataset as examples, in file order."""

    examples: list[Example]
    indices: list[int]
    """Source row of each example, counted from 0 over all rows, malformed and filtered ones included."""
    rejects: list[Reject]
    num_rows: int
    """Rows read: examples, rejects and filtered together."""
    num_filtered: int


def iter_rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of a source in file order, one at a time.

    Raises:
        DataError: if the source is missing or damaged, changed since its digest was taken, or at the first
            row that is not an object.
    """
    for item in _iter_source(source):
        if isinstance(item, Reject):
            raise DataError(
                f"{item.where}: {item.reason}; expected one object per row. Correct the file."
            )
        yield item


def load_examples(dataset: DatasetSpec) -> LoadedRows:
    """Read a whole dataset; malformed rows are rejects under `quarantine` and an error under `fail`.

    Raises:
        DataError: under `fail`, naming the first 20 malformed rows and their total; under either, if the
            source cannot be read or no row is left.
    """
    loaded = _load(dataset)
    if loaded.rejects and dataset.on_bad_rows == "fail":
        raise DataError(_describe_rejects(dataset, loaded))
    if not loaded.examples:
        raise DataError(
            f"dataset {dataset.name}: no usable row among {loaded.num_rows:,} "
            f"({loaded.num_filtered:,} filtered, {len(loaded.rejects):,} malformed); expected at least one. "
            f"Check `where`, `drop_answers` and `shape`."
        )
    return loaded


def count_quarantined(dataset: DatasetSpec) -> int:
    """Count the rows that `quarantine` would leave out."""
    return len(_load(dataset).rejects)


def _load(dataset: DatasetSpec) -> LoadedRows:
    examples: list[Example] = []
    indices: list[int] = []
    rejects: list[Reject] = []
    num_rows = num_filtered = 0
    for index, item in enumerate(_iter_source(dataset.source)):
        num_rows += 1
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        where, row = item
        if not _is_wanted(row, dataset):
            num_filtered += 1
            continue
        try:
            parts = split_row(row, dataset)
            if parts.answer in dataset.drop_answers:
                num_filtered += 1
                continue
            examples.append(check_parts(parts))
        except RowError as error:
            rejects.append(Reject(where, str(error), row))
            continue
        indices.append(index)
    return LoadedRows(
        examples=examples,
        indices=indices,
        rejects=rejects,
        num_rows=num_rows,
        num_filtered=num_filtered,
    )


def _is_wanted(row: dict[str, Any], dataset: DatasetSpec) -> bool:
    return all(_plain(row.get(column)) in values for column, values in dataset.where)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _describe_rejects(dataset: DatasetSpec, loaded: LoadedRows) -> str:
    shown = [f"  {reject.where}: {reject.reason}" for reject in loaded.rejects[:NUM_SHOWN]]
    more = len(loaded.rejects) - len(shown)
    if more:
        shown.append(f"  and {more:,} more")
    head = f"dataset {dataset.name}: {len(loaded.rejects):,} of {loaded.num_rows:,} rows are malformed:"
    tail = "Correct them, or set `on_bad_rows: quarantine` to go on without them."
    return "\n".join([head, *shown, tail])


def _iter_source(source: Source) -> Iterator[tuple[str, dict[str, Any]] | Reject]:
    if source.path is not None:
        yield from _iter_file(source.path, source.sha256)
    elif source.file is not None:
        yield from _iter_file(_download(source), None)
    else:
        yield from _iter_hub(source)


def _iter_file(path: Path, sha256: str | None) -> Iterator[tuple[str, dict[str, Any]] | Reject]:
    if not path.is_file():
        raise DataError(f"{path}: is not a file; expected a data file. Correct the path.")
    if sha256 is not None and files.sha256_file(path) != sha256:
        raise DataError(f"{path}: changed since the study was read. Run the study again.")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_gzip = suffixes[-1:] == [".gz"]
    kind = (suffixes[-2:-1] if is_gzip else suffixes[-1:]) or [""]
    if kind[0] == ".parquet" and not is_gzip:
        yield from _iter_parquet(path)
        return
    readers = {".jsonl": _iter_json_lines, ".json": _iter_json, ".csv": _iter_csv}
    if kind[0] not in readers:
        raise DataError(
            f"{path}: ends in {''.join(suffixes) or 'nothing'}; expected .jsonl, .json or .csv (each also "
            f"with .gz) or .parquet. Convert or rename the file."
        )
    try:
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as stream:
            yield from readers[kind[0]](path.name, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is a damaged gzip file ({error}). Fetch it again.") from error


def _iter_json_lines(name: str, stream: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]] | Reject]:
    for number, line in enumerate(stream, 1):
        where = f"{name}:{number}"
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if content.strip():
            yield _parse_line(where, content)


def _parse_line(where: str, line: bytes) -> tuple[str, dict[str, Any]] | Reject:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Reject(
            where, f"is not UTF-8 at byte {error.start}", line.decode(errors="backslashreplace")
        )
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Reject(where, f"is not JSON ({error})", text.rstrip("\n"))
    if not isinstance(row, dict):
        return Reject(where, f"is a JSON {type(row).__name__}, not an object", row)
    return where, row


def _iter_json(name: str, stream: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]] | Reject]:
    content = stream.read().removeprefix(b"\xef\xbb\xbf")
    if not content.lstrip().startswith(b"["):
        # Many files called .json hold one object per line.
        yield from _iter_json_lines(name, io.BytesIO(content))
        return
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: is not UTF-8; expected UTF-8. Convert the file."
        ) from error
    yield from _iter_json_list(name, text)


def _iter_json_list(name: str, text: str) -> Iterator[tuple[str, dict[str, Any]] | Reject]:
    decoder = json.JSONDecoder()
    position = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    is_first = True
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        if not is_first:
            if text[position : position + 1] != ",":
                raise _broken_list(name, line, "has no comma between two rows")
            position = _skip_space(text, position + 1)
            line, counted = line + text.count("\n", counted, position), position
        is_first = False
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _broken_list(
                name, line, f"the row that begins here is not JSON ({error})"
            ) from error
        position = _skip_space(text, position)
        where = f"{name}:{line}"
        if isinstance(row, dict):
            yield where, row
        else:
            yield Reject(where, f"is a JSON {type(row).__name__}, not an object", row)


def _broken_list(name: str, line: int, problem: str) -> DataError:
    return DataError(
        f"{name}:{line}: {problem}; expected a JSON list of objects. Correct the file."
    )


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _iter_csv(name: str, stream: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]] | Reject]:
    # A byte that is not UTF-8 becomes half a surrogate pair, which the shapes reject row by row.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)
    header = next(reader, [])
    line = reader.line_num
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{name}:{line + 1}: is not CSV ({error}). Correct the file."
            ) from error
        if cells is None:
            return
        where, line = f"{name}:{line + 1}", reader.line_num
        if len(cells) == len(header):
            yield where, dict(zip(header, cells, strict=True))
        elif cells:
            yield Reject(where, f"has {len(cells)} cells, but the header has {len(header)}", cells)


def _iter_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            index = 0
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path.name}[{index}]", row
                    index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: is not a readable Parquet file ({error}). Fetch it again."
        ) from error


def _download(source: Source) -> Path:
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(
            str(source.hub), str(source.file), repo_type="dataset", revision=source.revision
        )
    except (OSError, ValueError) as error:
        raise _unreachable(source, error) from error
    return Path(path)


def _iter_hub(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    split = source.split or "train"
    try:
        table = datasets.load_dataset(
            str(source.hub), source.config, split=split, revision=source.revision
        )
    except (OSError, ValueError) as error:
        raise _unreachable(source, error) from error
    for index, row in enumerate(table):
        yield f"{source.hub}/{split}[{index}]", dict(row)


def _unreachable(source: Source, error: Exception) -> DataError:
    return DataError(
        f"{source.hub} at {source.revision or 'its newest revision'}: cannot be loaded ({error}). "
        f"Check the id, the revision and the network, or use a local file."
    )
