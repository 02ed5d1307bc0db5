"""The databackend: the user's rows, and the model outputs beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from asyncdl.errors import DatatypeError, TableNotFoundError

if TYPE_CHECKING:
    from asyncdl.datatypes import Datatypes

T = TypeVar("T")

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


@runtime_checkable
class Following(Protocol):
    """The ability of a databackend to tell what other programs change; what asyncdl writes itself is not among it."""

    def why_no_changes(self) -> str | None:
        """Return why this one cannot tell, None if it can."""

    def changes(self, since: str | None) -> AsyncIterator[RowChanges]:
        """Yield changes from a token on (None: from now), and every second or so an empty one with a newer token."""


class Transaction(Protocol):
    """A transaction that several stores on one database can take part in."""


class DataBackend(ABC):
    """The user's database.

    Every method that writes takes a transaction from `transaction`, and none commits it: the Datalayer does, together
    with the events about it where the metadata store is in the same database. What is queued on a transaction may fail as
    late as its commit.
    """

    url: str
    """Where it is, without a password: fit for messages."""

    language: Literal["ibis", "mongodb"]
    """What its queries are written in."""

    datatypes: Datatypes
    """The datatypes that it can store; a `Datatype` component that is installed is registered here."""

    tables_with_rows: bool = True
    """Whether a table is made, and dropped, in the transaction that it is asked in: else right before it, or after."""

    @property
    def atomic(self) -> bool:
        """Whether a transaction that fails leaves nothing of what was written in it."""
        return True

    @abstractmethod
    async def open(self) -> None:
        """Connect."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close what `open` opened; closing twice is allowed."""

    def elsewhere(self) -> Callable[[Datatypes], DataBackend] | None:
        """Return what makes this databackend, not open yet, in another process, with datatypes; None: nothing does.

        It is to be pickled, and holds what is needed to connect, a password too; its repr shows none.
        """
        return None

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Begin a transaction; at the end of the block it is committed, by an exception rolled back."""

    async def retrying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run what makes a transaction, from its beginning to its end; again, where the database undid it for another's sake."""
        return await attempt()

    def as_made(self, schema: TableSchema) -> TableSchema:
        """Return a declared table as `create_table` would make it; raises where it cannot."""
        return schema

    async def prepare(self, request: Any) -> tuple[Any, list[Key] | None]:
        """Return a write as it will be made, and the ids of the rows that it may concern, None where those are not known.

        Asked before a write that is announced, where rows and events are not one commit.
        """
        return request, None

    # tables

    @abstractmethod
    async def tables(self) -> list[str]:
        """Return the names of the user's tables, sorted; asyncdl's own are left out."""

    @abstractmethod
    async def schema(self, table: str) -> TableSchema | None:
        """Return a table's schema, None when there is no such table. Cheap: kept until something here changes it."""

    @abstractmethod
    async def create_table(self, schema: TableSchema, tx: Any) -> None:
        """Create a table, if there is none of that name."""

    @abstractmethod
    async def drop_table(self, name: str, tx: Any) -> None:
        """Drop a table, if there is one."""

    # the user's queries

    @abstractmethod
    async def check(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable], tables: Mapping[str, TableSchema] | None = None
    ) -> TableSchema:
        """Compile a query without running it and return its columns and key.

        Parameters
        ----------
        tables
            Tables that are still to be made, which the query may name. None: those and the output tables are all there, and
            the database itself is asked whether it can run the query.

        Raises
        ------
        TableNotFoundError, UnknownColumnError, QueryError
        """

    @abstractmethod
    def read(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable], *, size: int = 1000
    ) -> AsyncIterator[tuple[tuple[str, ...], list[Row]]]:
        """Run a query and yield its column names with at most ``size`` rows at a time, at least once (perhaps empty).

        Values are Python's own, exactly as they were written. A query that is a scalar has one column and row. Documents,
        which have no columns in common, are yielded as they are, without column names.
        """

    @abstractmethod
    async def write(self, request: Any, outputs: Mapping[str, OutputTable], tx: Any) -> Written:
        """Insert, upsert, update or delete, as a `WriteRequest` says; a table that is missing is made from the rows.

        A backend with another language than ibis has requests of its own, with a ``kind`` and a ``table``.

        Rows without a primary key get one (time-ordered UUIDs in a table that asyncdl made).

        Raises
        ------
        TableNotFoundError, UnknownColumnError, InvalidRowError, DatatypeError, DuplicateKeyError, ConstraintError
            The latter two as late as the transaction's commit.
        """

    # moving

    async def rows(
        self, table: str, *, after: Row | None = None, size: int = 1000
    ) -> AsyncIterator[list[Mapping[str, Any]]]:
        """Yield a table's rows, as they are: what `put_rows` takes, here or in another database of the language.

        At most ``size`` at once, in the order of the primary key and from behind the key ``after`` on; of a table without a
        key, all in any order.

        Raises
        ------
        TableNotFoundError
            There is none.
        """
        schema = await self.schema(table)
        if schema is None:
            raise TableNotFoundError(f"{self.url} has no table {table!r}")
        query, key = WholeTable(table), schema.primary_key
        if not key:
            async for names, some in self.read(query, {}, size=size):
                if some:
                    yield [dict(zip(names, row, strict=True)) for row in some]
            return
        rest = [name for name in schema.columns if name not in key]
        while found := await self.scan(query, {}, rest, after=after, limit=size, missing=None):
            yield [dict(zip((*key, *rest), row, strict=True)) for row in found]
            after = found[-1][: len(key)]

    async def put_rows(self, table: str, rows: Sequence[Mapping[str, Any]], tx: Any) -> None:
        """Write rows as they are into a table that is there; where a row with their key is, in its place.

        Raises
        ------
        TableNotFoundError
            There is none.
        DatatypeError
            A value cannot be held exactly. The message names table, key, column and the value's type.
        """
        schema = await self.schema(table)
        if schema is None:
            raise TableNotFoundError(f"{self.url} has no table {table!r}")
        if not rows:
            return
        kind: WriteKind = "upsert" if schema.primary_key else "insert"
        try:
            await self.write(WriteRequest(kind, table, rows), {}, tx)
        except DatatypeError:
            for row in rows:  # which is it? the transaction has failed already
                try:
                    await self.write(WriteRequest(kind, table, [row]), {}, tx)
                except DatatypeError as error:
                    key = ", ".join(f"{name} = {row.get(name)!r:.100}" for name in schema.primary_key)
                    raise DatatypeError(f"{self.url} cannot hold the row {key} of {table!r}: {error}") from error
            raise

    # a listener's work

    @abstractmethod
    async def scan(
        self,
        select: ReadQuery,
        outputs: Mapping[str, OutputTable],
        columns: Sequence[str],
        *,
        after: Row | None,
        limit: int,
        missing: OutputTable | None,
    ) -> list[Row]:
        """Return the next rows of a select in the order of its key: key columns first, then ``columns``.

        Parameters
        ----------
        after
            The key of the last row of the page before; None: from the start.
        missing
            Only the rows that have neither output nor error there.
        """

    @abstractmethod
    async def fetch(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], columns: Sequence[str], ids: Sequence[Key]
    ) -> list[Row]:
        """Return a select's rows that come from these rows of its root table: key columns first, then ``columns``."""

    @abstractmethod
    async def count_missing(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], missing: OutputTable | None
    ) -> int:
        """Return how many rows `scan` would yield in all."""

    @abstractmethod
    async def create_outputs(self, table: OutputTable, tx: Any) -> None:
        """Create an output table whose datatype is known, if there is none of that name."""

    @abstractmethod
    async def drop_outputs(self, table: OutputTable, tx: Any) -> None:
        """Drop an output table, if there is one."""

    @abstractmethod
    async def put_outputs(
        self, table: OutputTable, results: Outputs, *, as_of: int, replaced: Sequence[Key] | None, tx: Any
    ) -> None:
        """Write outputs; one that is there with a larger ``_as_of`` is left as it is.

        Parameters
        ----------
        replaced
            Ids of root rows of which ``results`` are all the outputs: others that they have here are deleted (where their
            ``_as_of`` is not larger). None: nothing is deleted.

        Raises
        ------
        DuplicateKeyError
            The results are said to be `Outputs.new`, and one is there; the transaction has failed.
        """

    @abstractmethod
    def encode_error(self, table: OutputTable, value: Any) -> Exception | None:
        """Return why a value cannot be stored in an output table, None if it can."""

    @abstractmethod
    async def sweep(
        self,
        select: ReadQuery,
        outputs: Mapping[str, OutputTable],
        table: OutputTable,
        *,
        ids: Sequence[Key] | None,
        tx: Any,
    ) -> list[Key]:
        """Delete the outputs whose source row the select no longer has; return the ids of their root rows.

        Parameters
        ----------
        ids
            Look only at the outputs of these root rows; None: at all.
        """

    @abstractmethod
    async def current(self, table: OutputTable, ids: Sequence[Key], as_of: int) -> set[Key]:
        """Return those of these root ids whose outputs are all of ``as_of`` or later; one without outputs is not."""

    @abstractmethod
    async def failed(self, table: OutputTable, *, limit: int = 1000) -> list[tuple[Key, str]]:
        """Return the root ids and errors (JSON of `RowError`) of source rows that the model failed on."""


@runtime_checkable
class SplitsScans(Protocol):
    """What a databackend may be able to do besides: cut a scan into ranges of keys, for several workers to read at once."""

    async def boundaries(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], *, size: int, missing: OutputTable | None
    ) -> list[Row]:
        """Return the key of every ``size``-th row that `scan` would yield, in order."""

    async def scan(
        self,
        select: ReadQuery,
        outputs: Mapping[str, OutputTable],
        columns: Sequence[str],
        *,
        after: Row | None,
        limit: int,
        missing: OutputTable | None,
        until: Row | None = None,
    ) -> list[Row]:
        """Scan, but not beyond the key ``until``."""
