"""Texts in PostgreSQL, which holds no NUL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_ODD = re.compile("[\0\1]")
_STORED = re.compile("\1([\1\2])")
_ESCAPES = {"\0": "\1\1", "\1": "\1\2"}
_ESCAPED = {"\1": "\0", "\2": "\1"}
_TEXTS = {str, type(None)}


def store_text(text: str) -> str:
    """Return a text with its NULs as two characters U+0001, and each U+0001 as U+0001 U+0002: their order stays."""
    if "\0" in text or "\1" in text:
        return _ODD.sub(lambda found: _ESCAPES[found[0]], text)
    return text


def read_text(text: str) -> str:
    """Return the text that `store_text` was given."""
    return _STORED.sub(lambda found: _ESCAPED[found[1]], text) if "\1" in text else text


def read_texts(values: Sequence[Any]) -> Sequence[Any]:
    """Return a column of texts as `store_text` was given them; what PostgreSQL has no text for is shown as one."""
    if set(map(type, values)) <= _TEXTS and not any("\1" in each for each in values if each is not None):
        return values
    return [None if each is None else read_text(each if isinstance(each, str) else str(each)) for each in values]
