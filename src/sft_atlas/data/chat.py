"""Render a tokenizer's own chat template, which is somebody else's program, without trusting it.

A template comes with a downloaded tokenizer and may loop for ever or build a text of gigabytes. So
it runs in a child process that lives for one call, with limits on memory, processor time and
output, an empty environment and no open files (`chat_child`). Texts equal
`apply_chat_template(tokenize=False)` of transformers but for the date: `strftime_now` always tells
26 July 2024, the date that Llama 3.2's template itself falls back to, because data that changed
with the day could not be named by its content.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from sft_atlas.data.shapes import Turn
from sft_atlas.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHILD: Final = Path(__file__).with_name("chat_child.py")
_CHUNK: Final = 4096
"""Conversations per child: its start costs about as much as rendering this many."""


@dataclass(frozen=True, kw_only=True)
class ChatLimits:
    """What one child process may use."""

    memory_bytes: int = 512 << 20
    cpu_seconds: int = 60
    output_bytes: int = 256 << 20


def render_chats(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Sequence[Turn]],
    *,
    add_generation_prompt: bool = True,
    limits: ChatLimits | None = None,
) -> list[str]:
    """Render each conversation to text, as `apply_chat_template(tokenize=False)` would.

    Raises:
        DataError: if the tokenizer has no chat template, or the template fails or exceeds its
            limits.
    """
    request = {
        "template": chat_template(tokenizer),
        "variables": {
            **tokenizer.special_tokens_map,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        },
        "limits": asdict(limits or ChatLimits()),
    }
    texts: list[str] = []
    for start in range(0, len(conversations), _CHUNK):
        chunk = conversations[start : start + _CHUNK]
        messages = [[{"role": t.role, "content": t.content} for t in turns] for turns in chunk]
        texts.extend(_run_child({**request, "conversations": messages}))
    return texts


def chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of the (default) chat template; raises DataError if there is none."""
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str):
        raise DataError(
            "chat template: the tokenizer has none; expected `chat_template` beside it. "
            "Use template question-answer."
        )
    return found


def _run_child(request: dict[str, Any]) -> list[str]:
    limits = request["limits"]
    # -I -S: no environment, user packages or site hooks; the child is told where jinja2 is.
    command = [sys.executable, "-I", "-S", "-B", str(_CHILD), *_import_folders()]
    # A file and not a pipe: the kernel itself then stops a child that writes without end.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                command,
                input=json.dumps(request).encode(),
                stdout=output,
                stderr=errors,
                env={},
                cwd="/",
                check=False,
                timeout=2 * limits["cpu_seconds"] + 60,
            )
        except subprocess.TimeoutExpired as error:
            raise _failure(f"did not end within {error.timeout:.0f} seconds") from error
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise _failure(f"used more than {limits['cpu_seconds']} seconds of processor time")
        if done.returncode != 0:
            raise _failure(_last_line(errors) or f"ended with code {done.returncode}")
        output.seek(0)
        texts: list[str] = json.loads(output.read())
    return texts


def _import_folders() -> list[str]:
    origins = (find_spec(name) for name in ("jinja2", "markupsafe"))
    return sorted({str(Path(spec.origin).parents[1]) for spec in origins if spec and spec.origin})


def _last_line(stream: IO[bytes]) -> str:
    stream.seek(0)
    lines = stream.read(1 << 20).decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""


def _failure(problem: str) -> DataError:
    return DataError(
        f"chat template: {problem}; expected text for each conversation. "
        f"Use template question-answer, or a tokenizer with another template."
    )
