"""Tables, keys and listeners' outputs, as databackends know them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Key = Any
"""A row's primary key: a scalar, a tuple of them where the key is composite, or on MongoDB a `DocumentKey`."""


class DocumentKey(dict[str, Any]):
    """A document as a key: it can be hashed, and equal are those whose fields have the same order, too."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(list(self.items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and list(self.items()) == list(other.items())

    def __ne__(self, other: object) -> bool:
        return not self == other


def as_key(value: Any) -> Key:
    """Return a key that was read from JSON as one that can be hashed."""
    if type(value) is list:
        return tuple(value)
    return DocumentKey(value) if type(value) is dict else value


Row = tuple[Any, ...]


MISSING_KEY = "id"
"""The primary key column of a table that asyncdl makes and that was given no other."""

ANY = "any"
"""The datatype of a column that may hold anything: no datatype of values, and none that a table is made with."""


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of a table.

    Parameters
    ----------
    name
        The table.
    columns
        Column name to datatype (`asyncdl.datatypes`: ``"int64"``, ``"string"``, ``"vector(float32, 384)"``, ...).
    primary_key
        The columns that identify a row; empty: rows cannot be identified, so listeners cannot be installed.
    open
        Whether rows may have other columns, too: what is not among ``columns`` need not be wrong.
    """

    name: str
    columns: Mapping[str, str]
    primary_key: tuple[str, ...]
    open: bool = False


@dataclass(frozen=True, slots=True)
class OutputTable:
    """Where a listener's outputs are: one row for each source row (for each element of a list, with ``flatten``).

    The stored columns are the key columns, then ``position`` with ``flatten``, ``value``, ``_as_of`` (the position in the
    event log up to which the source was known when it was read) and ``_error`` (null, or the JSON of a `RowError`).

    A row with an ``_error`` is no output: it says that the source row was tried. With ``flatten``, a source row that gave
    no elements, or an error, has one row at position -1.

    Parameters
    ----------
    name
        The physical table's name.
    identifier
        The listener's identifier, by which queries name the value: ``docs.outputs("length")`` has a column ``length``.
    root
        The primary key columns of the table that the chain of listeners starts from.
    key
        Column name to datatype of the listener's select's key: ``root``, then a position for each flattened listener
        that the select goes through (``"chunks_position": "int64"``).
    datatype
        The value's datatype; None until the first output has been written: then there is no physical table yet.
    flatten
        Whether the model returns a list for each row, whose elements are the outputs.
    """

    name: str
    identifier: str
    root: tuple[str, ...]
    key: Mapping[str, str]
    datatype: str | None
    flatten: bool = False

    @property
    def position(self) -> str:
        """The column that numbers a flattened listener's elements in queries."""
        return f"{self.identifier}_position"

    @property
    def output_key(self) -> dict[str, str]:
        """The key columns of the outputs themselves, as queries see them: with the own position, if flattened."""
        own = {self.position: "int64"} if self.flatten else {}
        return {**self.key, **own}


@dataclass(frozen=True, slots=True)
class Outputs:
    """The results of some source rows, by column: a row of its own for each would cost more than most models.

    Parameters
    ----------
    keys
        The select's key: for each of its columns the values of all rows.
    values
        What the model returned for each row (with ``flatten``: lists); ignored where there is an error.
    errors
        JSON of a `RowError` for each row that failed, by its place.
    new
        Whether none of the rows had outputs when they were read: a databackend may write as if that were still so, which is
        cheaper, and raise `asyncdl.errors.DuplicateKeyError` if it is not.
    """

    keys: Sequence[Sequence[Any]]
    values: Sequence[Any]
    errors: Mapping[int, str] = field(default_factory=dict)
    new: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def key(self, at: int) -> Row:
        """Return a row's key."""
        return tuple(column[at] for column in self.keys)
