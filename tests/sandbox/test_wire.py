"""Plain values cross the pipe as they are; nothing that a program wrote takes part in it."""

import enum
import os
from collections import Counter, OrderedDict, deque, namedtuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_atlas.sandbox.inside.wire import NO_VALUE, Ended, decode, encode, receive, send

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.binary().map(bytearray)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.timedeltas()
    | st.sampled_from([int, str, list, type(None), range(3), range(9, 1, -2)])
)
hashables = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers())
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.lists(inner).map(deque)
        | st.dictionaries(hashables, inner)
        | st.sets(hashables)
        | st.frozensets(hashables)
    ),
    max_leaves=20,
)


def shape(value: Any) -> Any:
    """A value with the type of each of its parts: 1, 1.0 and True are three things."""
    if isinstance(value, dict):
        return dict, [(shape(key), shape(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, map(shape, value)))
    if isinstance(value, (list, tuple, deque)):
        return type(value), [shape(item) for item in value]
    return type(value), repr(value)


@given(values)
def test_every_plain_value_returns_as_it_was(value: Any) -> None:
    reader, writer = os.pipe()
    try:
        message = encode(value, refer=pytest.fail)
        if len(repr(message)) < 10_000:
            send(writer, message)
            message = receive(reader, 1 << 20)
        assert shape(decode(message, resolve=pytest.fail)) == shape(value)
    finally:
        os.close(reader)
        os.close(writer)


class Liar(str):
    def __eq__(self, other: object) -> bool:
        return True

    def __str__(self) -> str:
        return "what you want to hear"

    __repr__ = __str__
    __hash__ = str.__hash__


class LyingList(list[int]):
    def __iter__(self) -> Any:
        return iter([21])

    def __len__(self) -> int:
        return 1


class LyingInt(int):
    def __index__(self) -> int:
        return 21

    __int__ = __index__


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Liar("a"), "a"),
        ([Liar("a")], ["a"]),
        (LyingList([1, 2]), [1, 2]),
        (LyingInt(3), 3),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (namedtuple("P", "x y")(1, 2), (1, 2)),
        (enum.IntEnum("E", "A").A, 1),
    ],
    ids=repr,
)
def test_a_subclass_crosses_as_the_type_below_it(value: Any, plain: Any) -> None:
    found = decode(encode(value, refer=pytest.fail), resolve=pytest.fail)
    assert shape(found) == shape(plain)


def test_views_of_a_dict_keep_their_order_and_their_equality() -> None:
    original = {"b": 1, "a": 2}
    for view in (original.keys(), original.values(), original.items()):
        found: Any = decode(encode(view, refer=pytest.fail), resolve=pytest.fail)
        assert (type(found), list(found)) == (type(view), list(view))


@pytest.mark.parametrize(
    "value",
    [object(), len, lambda: 1, os, ValueError, iter([])],
    ids=["object", "builtin", "function", "module", "class", "iterator"],
)
def test_what_is_not_plain_stays_and_is_referred_to(value: Any) -> None:
    seen = []
    assert encode([value], refer=lambda it: seen.append(it) or "reference") == ["reference"]
    assert seen == [value]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"a": 1},
        {"tuple": [], "list": []},
        {"tuple": 1},
        {"set": [[]]},
        {"dict": [1]},
        {"dict": [[[], 1]]},
        {"int": "x"},
        {"int": 5},
        {"bytes": "0"},
        {"decimal": "x"},
        {"fraction": [1, 0]},
        {"date": "x"},
        {"timedelta": [10**20, 0, 0]},
        {"type": "Exception"},
        {"range": [1, 2, 0]},
        {"complex": ["x"]},
    ],
    ids=str,
)
def test_a_message_that_stands_for_no_value_is_refused(message: Any) -> None:
    with pytest.raises(NO_VALUE):
        decode(message, resolve=pytest.fail)


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"", "killed"),
        (b"\0\0\0\5ab", "killed"),
        (b"\0\0\0\2[x", "forged"),
        (b"\0\0\0\2\xff\xff", "forged"),
        (b"\x7f\0\0\0", "output"),
        (b"\0\0\xea\x60" + b"[" * 60_000, "forged"),
    ],
    ids=["end", "cut", "not JSON", "not UTF-8", "too long", "too deep"],
)
def test_a_stream_that_is_no_message_ends(sent: bytes, kind: str) -> None:
    reader, writer = os.pipe()
    assert os.write(writer, sent) == len(sent)
    os.close(writer)
    with pytest.raises(Ended) as caught:
        receive(reader, 1 << 20)
    os.close(reader)
    assert caught.value.kind == kind
