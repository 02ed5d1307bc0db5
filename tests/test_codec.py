"""JSON of stored values: with tags and without, where decoding takes a shorter way."""

from __future__ import annotations

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


@pytest.mark.parametrize("text", ['{"$":"decimal","v":"1.50"}', '{"\\u0024":"decimal","v":"1.50"}'])
def test_a_tag_is_one_however_its_dollar_is_written(text: str) -> None:
    assert codec.loads(text) == Decimal("1.50")
    assert codec.loads(text.encode()) == Decimal("1.50")


def test_a_tag_that_is_not_known_is_an_error() -> None:
    with pytest.raises(DatatypeError, match="does not know"):
        codec.loads('[{"$": "spell", "v": 1}]')
