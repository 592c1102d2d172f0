"""What does the package offer in Python? Writes docs/api.md from signatures and docstrings.

Run `python -m sft_atlas.api_reference docs` after a public function changed; a test compares the
file with what this module would write.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any, Final

import sft_atlas
from sft_atlas import files

_HEAD: Final = """# Python

Every verb of the [command line](cli.md) is a function of `sft_atlas`; tables are pandas frames, all
else frozen dataclasses. This page is made from the code: `python -m sft_atlas.api_reference docs`.
"""


def render_api() -> str:
    """Return the page: one section per public name, in alphabetical order."""
    values = {name: getattr(sft_atlas, name) for name in sft_atlas.__all__}
    sections = [
        _section(name, value) for name, value in values.items() if inspect.isfunction(value)
    ]
    others = [_other(name, value) for name, value in values.items() if not callable(value)]
    errors = [_error(name, value) for name, value in values.items() if inspect.isclass(value)]
    return "\n".join([_HEAD, *sections, *errors, *others])


def _section(name: str, function: Any) -> str:
    text = inspect.cleandoc(function.__doc__ or "")
    lines = [f"## `{name}`", "", "```python", f"{name}{_signature(function)}", "```", ""]
    return "\n".join([*lines, *_paragraphs(text), ""])


def _signature(function: Any) -> str:
    """Return the signature without quotes around names, one parameter per line where it is long."""
    found = inspect.signature(function)
    text = _plain(str(found))
    if len(text) <= 100:
        return text
    parameters, is_keyword = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword:
            parameters.append("*")
            is_keyword = True
        parameters.append(_plain(str(parameter)))
    end = text[text.rindex(") ->") :]
    return "(\n    " + ",\n    ".join(parameters) + ",\n" + end


def _plain(signature: str) -> str:
    """Name types by their last part, as an import would."""
    unquoted = re.sub(r"(?:Posix|Windows)Path\('([^']*)'\)", r'Path("\1")', signature)
    return re.sub(r"\b(?:[a-z_]+\.)+([A-Z])", r"\1", unquoted.replace("'", ""))


def _paragraphs(text: str) -> list[str]:
    """Turn the sections `Args:` and `Raises:` of a docstring into lists."""
    lines: list[str] = []
    for line in text.splitlines():
        if line in ("Args:", "Raises:", "Returns:"):
            lines += [f"**{line[:-1]}**", ""]
        elif line.startswith("        "):
            lines[-1] += f" {line.strip()}"
        elif line.startswith("    "):
            name, _, meaning = line.strip().partition(": ")
            lines.append(f"* `{name}`: {meaning}")
        else:
            lines.append(line)
    return lines


def _error(name: str, value: type) -> str:
    return f"## `{name}`\n\n{inspect.cleandoc(value.__doc__ or '')}\n"


def _other(name: str, value: object) -> str:
    return f"## `{name}`\n\n`{value!s}`\n"


def main() -> None:
    """Write the page into the folder that the command line names."""
    files.write_atomic(Path(sys.argv[1]) / "api.md", render_api().encode())


if __name__ == "__main__":
    main()
