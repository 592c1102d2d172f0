"""Say what a Record is: what was measured, written once, sealed, and readable without this package.

A record is the file `record.json` in a folder of its own, beside its artefacts (weights, tables).
`digest` covers schema, spec, result and the artefacts' SHA-256: two runs of one wish agree on it.
`provenance` (when, where, how long) differs between runs, so it stands outside the digest; `seal`
covers both, so that no byte of the file can change unnoticed. docs/records.md lists every field of
every schema.
"""

import hashlib
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sft_atlas import files
from sft_atlas.errors import DamagedError, StoreError
from sft_atlas.identity import canonical_json

RECORD_NAME: Final = "record.json"

SCHEMAS: Final = (
    "prepared/1",
    "trajectory/1",
    "cell/1",
    "requests/1",
    "probe/1",
    "answers/1",
    "scores/1",
    "overlap/1",
    "extension/1",
    "drift/2",
    "spectrum/1",
    "likelihood/1",
    "forgetting/1",
    "representation/1",
    "dataset/2",
    "description/1",
    "similarity/1",
    "updates/1",
    "map/1",
    "profile/1",
    "evidence/1",
    "failure/1",
)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file beside a record."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """One published result; `spec` and `result` are plain JSON."""

    schema: str
    spec: dict[str, Any]
    result: dict[str, Any]
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    """By file name relative to the record's folder."""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of what two runs of the same wish must agree on."""
        content = {
            "schema": self.schema,
            "spec": self.spec,
            "result": self.result,
            "artifacts": {name: asdict(artifact) for name, artifact in self.artifacts.items()},
        }
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def make_provenance(started: float, **facts: Any) -> dict[str, Any]:
    """Return when, where and with which versions a result was made; `started` is a Unix time."""
    return {
        "started": _utc(started),
        "seconds": round(time.time() - started, 3),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **facts,
    }


def write_record(folder: Path, record: Record) -> None:
    """Write `record.json` into a folder that is not published yet."""
    if record.schema not in SCHEMAS:
        raise StoreError(f"{folder}: schema {record.schema!r} is not known; one of {SCHEMAS}.")
    content = asdict(record) | {"digest": record.digest}
    files.write_json(folder / RECORD_NAME, content | {"seal": _seal(content)})


def read_record(folder: Path) -> Record:
    """Read a published record and check its seal.

    Raises:
        StoreError: if it is absent, or whole but of a schema that this version does not read.
        DamagedError: if it is not JSON, or altered since it was written.
    """
    path = folder / RECORD_NAME
    try:
        content = files.read_json(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error}); expected a record.") from error
    except ValueError as error:
        raise DamagedError(f"{path}: is not JSON ({error}). {REPAIR}", folder) from error
    seal = content.pop("seal", None) if isinstance(content, dict) else None
    if seal is None or seal != _seal(content):
        text = "was altered after it was written (its seal differs)"
        raise DamagedError(f"{path}: {text}. {REPAIR}", folder)
    if content.get("schema") not in SCHEMAS:
        raise StoreError(
            f"{path}: is a record of schema {content.get('schema')!r}; this version reads "
            f"{', '.join(SCHEMAS)}. Read it with the version that wrote it."
        )
    content.pop("digest")
    artifacts = {name: Artifact(**facts) for name, facts in content.pop("artifacts").items()}
    return Record(artifacts=artifacts, **content)


def check_artifact(folder: Path, record: Record, name: str) -> Path:
    """Return the path of an artefact after comparing its bytes with the record's digest.

    Raises:
        StoreError: if the record has no such artefact.
        DamagedError: if its file is missing or differs.
    """
    path = folder / name
    expected = record.artifacts.get(name)
    if expected is None:
        raise StoreError(f"{folder}: its record names no artefact {name!r}.")
    if not path.is_file():
        raise DamagedError(f"{path}: is missing. {REPAIR}", folder)
    if path.stat().st_size != expected.num_bytes or files.sha256_file(path) != expected.sha256:
        raise DamagedError(f"{path}: differs from the digest in its record. {REPAIR}", folder)
    return path


REPAIR = "Run the study again: the damaged folder is moved to quarantine/ and made anew."


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
