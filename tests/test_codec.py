"""JSON of stored values: with tags and without, where decoding takes a shorter way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from asyncdl import codec
from asyncdl.errors import DatatypeError


@pytest.mark.parametrize(
    "value",
    [
        {"ids": [1, 2, 3], "table": "docs"},
        {"ids": ["a", "b"], "note": "costs $5", "$": 1},
        {"$": "decimal", "v": "1.5"},  # of the user's own
        {"inner": [{"deep": ({1, 2}, Decimal("1.50"))}]},
        [datetime(2026, 1, 1), UUID(int=7), b"\x00"],
        '"$"',
        "\\u0024",
        {'"$"': '\\"$\\"'},
        None,
    ],
)
def test_what_is_decoded_equals_what_was_encoded(value: Any) -> None:
    encoded = codec.dumps(value)
    assert codec.loads(encoded) == value
    assert codec.loads(encoded.decode()) == value
    assert type(codec.loads(encoded)) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        {"_id": {"$in": [1, 2]}, "note": "costs $5"},
        ({"a": [{"b": (1, [2.5, None])}]}, True, b"\x00"),
        {"$": "decimal", "v": "1.5"},
        {1: {"inner": [Decimal("1.50")]}, "zoned": datetime(2026, 1, 1)},
        [2**70, float("inf"), {3, 4}],
    ],
)
def test_a_copy_is_what_is_decoded_and_shares_nothing_that_can_change(value: Any) -> None:
    copy = codec.copied(value)
    assert copy == value == codec.from_plain(codec.to_plain(value))
    assert repr(copy) == repr(value)
    shared = {id(each) for each in _containers(copy)} & {id(each) for each in _containers(value)}
    assert not shared


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list, set)):
        yield value
    if isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _containers(each)


def test_a_copy_of_what_cannot_be_stored_is_an_error_that_says_where() -> None:
    with pytest.raises(DatatypeError, match=r"at a\[1\]"):
        codec.copied({"a": [1, object()]})
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(DatatypeError, match="nested too deeply"):
        codec.copied(circle)


@pytest.mark.parametrize("text", ['{"$":"decimal","v":"1.50"}', '{"\\u0024":"decimal","v":"1.50"}'])
def test_a_tag_is_one_however_its_dollar_is_written(text: str) -> None:
    assert codec.loads(text) == Decimal("1.50")
    assert codec.loads(text.encode()) == Decimal("1.50")


def test_a_tag_that_is_not_known_is_an_error() -> None:
    with pytest.raises(DatatypeError, match="does not know"):
        codec.loads('[{"$": "spell", "v": 1}]')
