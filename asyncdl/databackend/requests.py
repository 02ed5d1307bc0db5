"""What a databackend is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from asyncdl.databackend.tables import Key, OutputTable, TableSchema


class Catalog(Protocol):
    """What a query needs in order to be built: the schemas of what it names. Loaded beforehand, so building is pure."""

    def table(self, name: str) -> Any:
        """Return the backend's expression for a table; raises `TableNotFoundError`."""

    def primary_key(self, name: str) -> tuple[str, ...]:
        """Return a table's primary key columns."""

    def outputs(self, identifier: str) -> OutputTable:
        """Return a listener's output table; raises `ComponentNotFoundError`."""

    def outputs_table(self, identifier: str) -> Any | None:
        """Return the backend's expression for it, None while there is none."""


@dataclass(frozen=True, slots=True)
class Built:
    """A query's expression in the backend's own language, and the columns that identify its rows (empty: none do)."""

    expression: Any
    key: tuple[str, ...]


class ReadQuery(Protocol):
    """What a databackend needs of a query."""

    def tables(self) -> frozenset[str]:
        """Return the tables that it reads."""

    def listeners(self) -> frozenset[str]:
        """Return the identifiers of the listeners whose outputs it reads."""

    def root(self) -> str:
        """Return the table that it starts from."""

    def build(self, catalog: Catalog) -> Built:
        """Return the backend's own expression; raises `QueryError` and its kin."""


@dataclass(frozen=True, slots=True)
class WholeTable:
    """The query for all of a table, in every language whose catalog's tables are expressions."""

    name: str

    def tables(self) -> frozenset[str]:
        """Return the table."""
        return frozenset([self.name])

    def listeners(self) -> frozenset[str]:
        """Return none."""
        return frozenset()

    def root(self) -> str:
        """Return the table."""
        return self.name

    def build(self, catalog: Catalog) -> Built:
        """Return the table's own expression."""
        return Built(catalog.table(self.name), catalog.primary_key(self.name))

    def equals(self, other: object) -> bool:
        """Return whether another query is for the same table."""
        return self == other


WriteKind = Literal["insert", "upsert", "update", "delete"]


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One write, as the query asks for it.

    Parameters
    ----------
    kind
        What is done. An upsert replaces the columns that its rows name.
    table
        Where.
    rows
        The rows of an insert or upsert.
    changes
        The values of an update: literals, or queries of one column over the same table.
    where
        The rows that an update or delete concerns, as a query over the table; None: all.
    """

    kind: WriteKind
    table: str
    rows: Sequence[Mapping[str, Any]] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    where: ReadQuery | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did: the primary keys of the rows it inserted, changed or deleted.

    ``created`` is the schema of the table if this write made it. An upsert's ids are divided into those ``inserted`` and
    the rest, as far as the backend can tell; otherwise all are in ``ids`` alone.

    ``done`` divides the ids by what was done to them, in order, where one write does several things. ``document`` and
    ``counts`` are what else the backend's own language returns.
    """

    ids: list[Key]
    created: TableSchema | None = None
    done: Sequence[tuple[WriteKind, list[Key]]] | None = None
    document: Any = None
    counts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowChanges:
    """What other programs changed.

    Parameters
    ----------
    token
        From where to go on after it.
    rows
        Table, what was done, and the keys, in order.
    tables
        Tables that went, or came, as a whole.
    lost
        Whether more was changed, and what is not known any more.
    """

    token: str
    rows: Sequence[tuple[str, Literal["insert", "update", "delete"], Sequence[Key]]] = ()
    tables: Sequence[str] = ()
    lost: bool = False
