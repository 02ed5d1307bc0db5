"""Names that users give: checked before they reach SQL, MongoDB or a path."""

from __future__ import annotations

import re

from asyncdl.errors import InvalidIdentifierError

COMPONENT_LIMIT = 48
"""Characters in a component's identifier: with prefix and version it still fits PostgreSQL's 63 bytes."""
NAME_LIMIT = 63
"""Characters in a table's or column's name: PostgreSQL's limit, the smallest of our databases."""
RESERVED = "_asyncdl"
"""What the names of asyncdl's own tables begin with."""

_COMPONENT = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")
_COLUMN = re.compile(r"[\w][\w -]*")


def check_component_identifier(name: object, what: str) -> str:
    """Return a component's identifier.

    Raises
    ------
    InvalidIdentifierError
        It is not a letter or ``_`` followed by letters, digits, ``_`` and ``-``, or longer than `COMPONENT_LIMIT`.
    """
    if not isinstance(name, str) or not _COMPONENT.fullmatch(name) or len(name) > COMPONENT_LIMIT:
        raise InvalidIdentifierError(
            f"{_shown(name)} cannot be the identifier of {what}: it needs a letter or '_', then letters, digits, '_' and "
            f"'-', all ASCII, at most {COMPONENT_LIMIT} in all"
        )
    return name


def check_table(name: object) -> str:
    """Return a table's name.

    Raises
    ------
    InvalidIdentifierError
        It is not a letter or ``_`` followed by letters, digits and ``_`` (with one dot behind a schema's name), is longer
        than `NAME_LIMIT`, or begins as asyncdl's own tables do.
    """
    if not isinstance(name, str) or not _TABLE.fullmatch(name) or len(name) > NAME_LIMIT:
        raise InvalidIdentifierError(
            f"{_shown(name)} cannot be the name of a table: it needs a letter or '_', then letters, digits and '_', all "
            f"ASCII, at most {NAME_LIMIT} in all"
        )
    if name.lower().startswith(RESERVED):
        raise InvalidIdentifierError(f"{_shown(name)} cannot be the name of a table: {RESERVED}... is asyncdl's own")
    return name


def check_column(name: object) -> str:
    """Return a column's name.

    Raises
    ------
    InvalidIdentifierError
        It is not made of letters and digits of any script, ``_``, ``-`` and spaces, or is longer than `NAME_LIMIT`
        bytes of UTF-8.
    """
    if (
        not isinstance(name, str)
        or not _COLUMN.fullmatch(name)
        or name.endswith(" ")
        or len(name.encode()) > NAME_LIMIT
    ):
        raise InvalidIdentifierError(
            f"{_shown(name)} cannot be the name of a column: it needs letters, digits, '_', '-' and spaces, starting with "
            f"none of the last two, at most {NAME_LIMIT} bytes"
        )
    return name


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
