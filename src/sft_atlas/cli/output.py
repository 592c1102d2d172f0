"""How does what a verb found reach the terminal, or a file?

In: a sentence, lines, plain data or something that Rich lays out. Out: standard output; data is
JSON. Only results go there: progress and errors go to standard error.
"""

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from sft_atlas.errors import StudyError


def print_content(content: Any) -> None:
    """Print text as it is, lists of lines line by line, data as JSON, all else by Rich."""
    if isinstance(content, str):
        typer.echo(content)
    elif isinstance(content, list) and all(isinstance(line, str) for line in content):
        for line in content:
            typer.echo(line)
    elif isinstance(content, (dict, list)):
        typer.echo(json_text(content))
    else:
        Console().print(content, crop=False)


def json_text(content: Any) -> str:
    """Write plain data as JSON for people and programs."""
    return json.dumps(content, indent=1, ensure_ascii=False, default=str)


def write_file(path: Path, content: bytes) -> None:
    """Write a file; raises StudyError where that cannot be done."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StudyError(
            f"{path}: cannot be written ({error.strerror}); expected a file in a folder that "
            "exists. Choose another --output."
        ) from error
