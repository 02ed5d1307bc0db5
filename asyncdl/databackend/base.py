"""The databackend: the user's rows, and the model outputs beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from asyncdl.databackend.requests import ReadQuery, RowChanges, WholeTable, WriteKind, WriteRequest, Written
from asyncdl.databackend.tables import Key, Outputs, OutputTable, Row, TableSchema
from asyncdl.errors import DatatypeError, TableNotFoundError

if TYPE_CHECKING:
    from asyncdl.datatypes import Datatypes

T = TypeVar("T")


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
