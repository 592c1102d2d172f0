"""Chat templates render as transformers renders them, and cannot harm the process that asked."""

import time
from collections.abc import Callable

import pytest

from sft_atlas.data.chat import ChatLimits, render_chats
from sft_atlas.data.encoding import load_tokenizer
from sft_atlas.data.shapes import Turn
from sft_atlas.errors import DataError
from sft_atlas.study.spec import ModelSpec

MakeModel = Callable[..., ModelSpec]

# The idioms of templates in use: loop control, namespaces, filters, slices, generation marks.
TEMPLATES = {
    "loops": (
        "{{ bos_token }}{% for m in messages %}\n"
        "  {% if m['role'] == 'system' %}\n    {% continue %}\n  {% endif %}\n"
        "[{{ m['role'] | upper }}] {{ m['content'] | trim }}\n{% endfor %}\n"
        "{%- if add_generation_prompt %}[ASSISTANT]{% endif %}"
    ),
    "namespace": (
        "{% set ns = namespace(system='none', n=0) %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.system }}/{{ ns.n }}"
        "{% if messages[-1]['role'] == 'user' %}{{ messages[-1].content }}{% endif %}"
    ),
    "json": (
        "{{ messages | tojson }}{{ {'b': '<é>', 'a': [1, none]} | tojson(indent=2) }}"
        "{{ dict(x=1) }}{{ tools is none }}{{ documents is defined }}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{{ eos_token }}{% endgeneration %}{% else %}<{{ m.content }}>{% endif %}{% endfor %}"
    ),
    "macro": (
        "{% macro turn(m) %}{{ m.role ~ ': ' ~ m.content.strip().split(' ')[0] }}{% endmacro %}"
        "{% for m in messages[1:] %}{{ turn(m) }}{{ ', ' if not loop.last }}{% endfor %}"
    ),
}
CONVERSATIONS = [
    [Turn("user", " What is <b>é</b>? ")],
    [Turn("system", "S"), Turn("user", "a b"), Turn("assistant", "2 中文 🎈"), Turn("user", "3")],
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_texts_equal_those_of_transformers(
    make_model: MakeModel, name: str, add_generation_prompt: bool
) -> None:
    tokenizer = load_tokenizer(make_model(chat_template=TEMPLATES[name], adds_bos=True))
    expected = [
        tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        for turns in CONVERSATIONS
    ]
    found = render_chats(tokenizer, CONVERSATIONS, add_generation_prompt=add_generation_prompt)
    assert found == expected


def render(
    make_model: MakeModel, template: str | None, limits: ChatLimits | None = None
) -> list[str]:
    tokenizer = load_tokenizer(make_model(chat_template=template))
    return render_chats(tokenizer, [[Turn("user", "Q")]], limits=limits)


def test_the_day_of_rendering_changes_nothing(make_model: MakeModel) -> None:
    assert render(make_model, "{{ strftime_now('%d %b %Y') }}") == ["26 Jul 2024"]


@pytest.mark.parametrize("template", ["{{ 'a' * 10**9 }}", "{% set x = 'a' %}{{ x * 10**9 }}"])
def test_a_text_of_a_gigabyte_is_stopped(make_model: MakeModel, template: str) -> None:
    with pytest.raises(DataError) as caught:
        render(make_model, template)
    assert str(caught.value) == (
        "chat template: used more than 512 MiB of memory; expected text for each conversation. "
        "Use template question-answer, or a tokenizer with another template."
    )


def test_an_endless_loop_is_stopped(make_model: MakeModel) -> None:
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    started = time.monotonic()
    with pytest.raises(DataError, match="used more than 1 seconds of processor time"):
        render(make_model, loop, ChatLimits(cpu_seconds=1))
    assert time.monotonic() - started < 30


def test_more_output_than_allowed_is_stopped(make_model: MakeModel) -> None:
    with pytest.raises(DataError, match="wrote more than 1 MiB"):
        render(make_model, "{{ 'a' * 2000000 }}", ChatLimits(output_bytes=1 << 20))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "TemplateError: roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/hostname' %}", "no loader for this environment"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ unknown.field }}", "UndefinedError: 'unknown' is undefined"),
    ],
)
def test_a_failing_template_is_a_user_error_with_its_reason(
    make_model: MakeModel, template: str, problem: str
) -> None:
    with pytest.raises(DataError, match=r"^chat template: ") as caught:
        render(make_model, template)
    assert problem in str(caught.value)


def test_a_tokenizer_without_template_is_a_user_error(make_model: MakeModel) -> None:
    with pytest.raises(
        DataError, match="the tokenizer has none; expected `chat_template` beside it"
    ):
        render(make_model, None)


def test_the_environment_does_not_reach_the_template(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    monkeypatch.setenv("PYTHONSTARTUP", "/nonexistent/startup.py")
    assert render(make_model, "{{ messages[0].content }}") == ["Q"]
