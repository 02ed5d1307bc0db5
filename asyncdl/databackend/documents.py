"""What a databackend of documents is asked to do: queries and writes as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from asyncdl.databackend.requests import ReadQuery, WriteKind

Method = Literal[
    "insert_one",
    "insert_many",
    "update_one",
    "update_many",
    "replace_one",
    "delete_one",
    "delete_many",
    "find_one_and_update",
    "find_one_and_replace",
    "find_one_and_delete",
]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the driver's: a method with its arguments."""

    method: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DocumentPlan:
    """A query of documents: what `Built.expression` is.

    Parameters
    ----------
    collection
        Where it starts.
    stages
        The pipeline that it comes to.
    by_row
        Whether each document is dealt with by itself, and their order kept: then conditions on the key may go first.
    call
        The driver's own call that gives the same, where it is one.
    decoded
        Fields whose values are to be decoded by a datatype.
    """

    collection: str
    stages: tuple[Mapping[str, Any], ...]
    by_row: bool
    call: Call | None = None
    decoded: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One write.

    Parameters
    ----------
    method
        The driver's name for it.
    where
        Which documents; None for an insert.
    what
        The documents, the replacement, or the update.
    options
        The driver's: ``upsert``, ``array_filters``, ``sort``, ...
    """

    method: Method
    where: Mapping[str, Any] | None = None
    what: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


class StoredDocument(dict[str, Any]):
    """A document as it was read, with the bytes that it is stored as: written again, it is the same in every bit."""

    def __init__(self, document: Mapping[str, Any], raw: Any) -> None:
        super().__init__(document)
        self.raw = raw


_KINDS: dict[str, WriteKind] = {
    "insert_one": "insert",
    "insert_many": "insert",
    "delete_one": "delete",
    "delete_many": "delete",
    "find_one_and_delete": "delete",
}


@dataclass(frozen=True, slots=True)
class DocumentWrite:
    """Writes on one collection, in order."""

    table: str
    operations: Sequence[Operation]

    @property
    def kind(self) -> WriteKind:
        """What is done; several things: an update."""
        kinds = {kind_of(each) for each in self.operations}
        return kinds.pop() if len(kinds) == 1 else "update"

    def queries(self) -> Sequence[ReadQuery]:
        """Return the queries that it reads: none, a filter is no query of its own."""
        return ()


def kind_of(operation: Operation) -> WriteKind:
    """Return what a write does to the documents that it concerns."""
    return _KINDS.get(operation.method, "update")
