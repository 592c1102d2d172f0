"""Be the child process of `chat`: limit itself, then render; it imports nothing of this package.

In: one JSON object on standard input. Out: a JSON list of texts on standard output, or a traceback,
whose last line the parent shows. The environment, filters and globals are those that transformers
gives a chat template (`transformers.utils.chat_template_utils`), so templates render the same.
"""

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

_NOW = datetime(2024, 7, 26)


def main() -> None:
    """Read a request, give up what the template must not have, and write the rendered texts."""
    sys.path.extend(sys.argv[1:])
    import jinja2
    import jinja2.debug

    environment = _environment()
    # Python loads codecs and jinja2 its error handling when first used; soon no file can be opened.
    environment.from_string("{{ ['a'] | tojson }}{{ strftime_now('%d') }}").render()
    request = json.load(sys.stdin.buffer)
    _limit(request["limits"])
    try:
        template = environment.from_string(request["template"])
        texts = [
            template.render(messages=messages, **request["variables"])
            for messages in request["conversations"]
        ]
        sys.stdout.write(json.dumps(texts))
        sys.stdout.flush()
    except MemoryError:
        sys.exit(f"used more than {request['limits']['memory_bytes'] >> 20} MiB of memory")
    except OSError:
        # Only writing can fail so: nothing else is open.
        sys.exit(f"wrote more than {request['limits']['output_bytes'] >> 20} MiB")
    except jinja2.TemplateError as error:
        sys.exit(f"failed with {type(error).__name__}: {' '.join(str(error).split())}")


def _limit(limits: dict[str, int]) -> None:
    seconds = limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["output_bytes"], limits["output_bytes"]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS does not know a limit on address space.
    if sys.platform != "darwin":
        memory = limits["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _environment() -> Any:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node, Scope
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        # Marks the assistant's text for transformers; the text itself is what stands inside.
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _NOW.strftime
    environment.globals["dict"] = _Dict()
    return environment


class _Dict:
    """Make dictionaries, without handing a template the type itself."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(str(message))


if __name__ == "__main__":
    main()
