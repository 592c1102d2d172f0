"""Say what a worker is handed at once: one job, or training runs that may share a model.

It crosses the pipe to a worker as one line of JSON.
"""

from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from sft_atlas.study.job import Job


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Jobs that one worker does before it is asked again, each of which ends for itself."""

    jobs: tuple[Job, ...]
    """One job of any kind, or several train jobs with equal stack keys."""
    stack_runs: int = 1
    """Most runs that train at the same time; further ones enter as others end."""
    micro_batch_tokens: int | None = None
    """Tokens of a training pass where the placement's did not fit; None: the placement's."""


ASSIGNMENT: Final = TypeAdapter(Assignment)
"""Reads and writes assignments: `dump_json(assignment)`, `validate_json(line)`."""
