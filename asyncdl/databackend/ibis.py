"""Databases that only ibis knows: queries are ibis expressions, which ibis' own connection runs, and rows come by Arrow.

What these databases lack is done here, within the turn to write: keys are looked up before rows are inserted, outputs are
written by their keys. They have no transactions that asyncdl could use: a write that fails half-way is not undone, it is
looked at again (an intent goes before it), and two processes do not see each other's keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Literal, TypeVar

from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.ibis_catalog import IbisCatalog
from asyncdl.databackend.ibis_literals import with_plain_literals
from asyncdl.databackend.ibis_outputs import IbisOutputs
from asyncdl.databackend.ibis_values import IbisStorage, IbisValues, NativeStorage
from asyncdl.databackend.ibis_writes import LISTED, IbisWriter, fetched, named
from asyncdl.databackend.requests import Built, ReadQuery, WriteRequest, Written
from asyncdl.databackend.sql_expressions import ResultColumn, result_columns, without_order
from asyncdl.databackend.tables import Key, Outputs, OutputTable, Row, TableSchema
from asyncdl.databackend.warmup import load_ibis
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.ibis import IbisDatabase, IbisTransaction
from asyncdl.drivers.ibis_changes import either, listed
from asyncdl.errors import DatatypeError, QueryError, UnknownColumnError

T = TypeVar("T")

_YEARS = {"clickhouse": (1900, 2299)}
"""The years that a database's dates and timestamps hold, where those are not all."""


class IbisDataBackend(DataBackend):
    """The user's rows in a database that ibis connects to.

    Parameters
    ----------
    database
        The database.
    datatypes
        How asyncdl's own datatypes become bytes.
    """

    language: Literal["ibis", "mongodb"] = "ibis"
    tables_with_rows = False

    def __init__(self, database: IbisDatabase, datatypes: Datatypes) -> None:
        self.database = database
        self.url = database.url
        self.datatypes = datatypes
        storage = IbisStorage(_YEARS.get(database.backend, (1, 9999)))
        self._values = IbisValues(storage, datatypes)
        self._catalog = IbisCatalog(database, storage)
        native = IbisValues(NativeStorage(), datatypes)
        self._writer = IbisWriter(database, self._catalog, self._values, native)

    @property
    def atomic(self) -> bool:
        """Whether a transaction that fails leaves nothing of what was written in it."""
        return False

    async def open(self) -> None:
        """Connect."""
        await asyncio.to_thread(load_ibis)
        await self.database.open()

    async def aclose(self) -> None:
        """Close what `open` opened."""
        await self.database.aclose()

    def transaction(self) -> AbstractAsyncContextManager[IbisTransaction]:
        """Wait for the turn to write; what is written is written at once, and not undone."""
        return self.database.transaction()

    async def _call(self, function: Callable[[Any], T]) -> T:
        """Run a function with ibis' connection; once more, where another program may have changed the tables."""
        try:
            return await self.database.call(function)
        except QueryError:
            self._catalog.forget()
            raise

    async def _reading(self, function: Callable[[Any], T]) -> T:
        """Run a function that only reads; once more, where another program may have changed the tables meanwhile."""
        try:
            return await self._call(function)
        except QueryError:
            return await self._call(function)

    # tables

    async def tables(self) -> list[str]:
        """Return the names of the user's tables and views."""
        return await self._call(self._catalog.names)

    async def schema(self, table: str) -> TableSchema | None:
        """Return a table's schema, None when there is no such table."""
        found = await self._call(lambda raw: self._catalog.table(raw, table))
        return found.schema if found is not None else None

    async def create_table(self, schema: TableSchema, tx: IbisTransaction) -> None:
        """Create a table, if there is none of that name."""
        await self._call(lambda raw: self._catalog.create(raw, schema))

    async def drop_table(self, name: str, tx: IbisTransaction) -> None:
        """Drop a table, if there is one."""
        await self._call(lambda raw: self._catalog.drop(raw, name))

    # queries

    def _built(
        self,
        raw: Any,
        query: ReadQuery,
        outputs: Mapping[str, OutputTable],
        planned: Mapping[str, TableSchema] | None = None,
    ) -> tuple[Built, list[ResultColumn]]:
        from ibis.common.exceptions import IbisError  # noqa: PLC0415 - heavy: only where a query is built

        catalog = self._catalog.snapshot(raw, query.tables(), outputs, planned)
        try:
            built = query.build(catalog)
            built = Built(with_plain_literals(built.expression), built.key)
            return built, result_columns(built.expression, catalog)
        except (IbisError, NotImplementedError) as error:
            raise QueryError(f"{self.url} cannot run this query: {type(error).__name__}: {error}") from error

    async def check(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable], tables: Mapping[str, TableSchema] | None = None
    ) -> TableSchema:
        """Build a query, have the database run it for no row where its tables are there, and return its columns and key."""

        def check(raw: Any) -> TableSchema:
            built, columns = self._built(raw, query, outputs, tables)
            if all(self._catalog.table(raw, name) is not None for name in query.tables()):
                fetched(raw, built.expression.as_table().limit(0))
            return TableSchema(query.root(), {each.name: each.datatype for each in columns}, built.key)

        return await self._reading(check)

    async def read(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable], *, size: int = 1000
    ) -> AsyncIterator[tuple[tuple[str, ...], list[Row]]]:
        """Run a query and yield its column names with at most ``size`` rows at a time, at least once."""
        yielded = retried = False
        while not yielded:
            built, columns = await self._reading(lambda raw: self._built(raw, query, outputs))
            expression = built.expression.as_table()
            names = tuple(each.name for each in columns)
            decode = self._values.rows([(each.name, each.datatype, each.computed) for each in columns])
            try:
                async with aclosing(self.database.stream(named(expression), size=size)) as batches:  # type: ignore[type-var]
                    async for rows in batches:
                        yield names, await asyncio.to_thread(decode, rows) if decode is not None else rows
                        yielded = True
            except QueryError:
                if yielded or retried:
                    raise
                self._catalog.forget()
                retried = True
                continue
            if not yielded:
                yield names, []
                yielded = True

    async def write(self, request: WriteRequest, outputs: Mapping[str, OutputTable], tx: IbisTransaction) -> Written:
        """Insert, upsert, update or delete."""
        return await self._call(lambda raw: self._writer.write(raw, request, outputs))

    async def put_rows(self, table: str, rows: Sequence[Mapping[str, Any]], tx: IbisTransaction) -> None:
        """Write rows as they are into a table that is there; which cannot be held is looked for without writing any."""
        schema = await self._call(lambda raw: self._catalog.existing(raw, table).schema)
        if not rows:
            return
        try:
            await self.write(WriteRequest("upsert" if schema.primary_key else "insert", table, rows), {}, tx)
        except DatatypeError:
            for row in rows:
                error = await self._call(lambda raw, row=row: self._writer.refusal(raw, table, row))  # type: ignore[misc]
                if error is not None:
                    key = ", ".join(f"{name} = {row.get(name)!r:.100}" for name in schema.primary_key)
                    raise DatatypeError(f"{self.url} cannot hold the row {key} of {table!r}: {error}") from error
            raise

    # a listener's work

    def _select(
        self,
        raw: Any,
        select: ReadQuery,
        outputs: Mapping[str, OutputTable],
        columns: Sequence[str],
        missing: OutputTable | None = None,
    ) -> tuple[Any, tuple[str, ...], list[ResultColumn]]:
        """Return a listener's select, its key, and what is asked of its columns, key columns first."""
        built, there = self._built(raw, select, outputs)
        if not built.key:
            raise QueryError("the select of a listener must keep the primary key of its table, and this one has none")
        by_name = {each.name: each for each in there}
        lost = [name for name in (*built.key, *columns) if name not in by_name]
        if lost:
            raise UnknownColumnError(f"the select has no column {lost[0]!r}; it has {', '.join(by_name)}")
        expression = without_order(built.expression)
        if missing is not None:
            expression = self._outputs(missing).missing(expression, built.key)
        return expression, built.key, [by_name[name] for name in (*built.key, *columns)]

    def _outputs(self, table: OutputTable) -> IbisOutputs:
        return IbisOutputs(self.database, self._catalog, self._values, self._writer, table)

    def _rows(self, raw: Any, expression: Any, columns: Sequence[ResultColumn]) -> list[Row]:
        # by their places: a column may be asked for as key and as value
        rows = fetched(raw, expression.select(**{f"c{at}": expression[each.name] for at, each in enumerate(columns)}))
        decode = self._values.rows([(each.name, each.datatype, each.computed) for each in columns])
        return decode(rows) if decode is not None else rows

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
        """Return the next rows of a select in the order of its key: key columns first, then ``columns``."""

        def scan(raw: Any) -> list[Row]:
            expression, key, found = self._select(raw, select, outputs, columns, missing)
            if after is not None:
                expression = expression.filter(_beyond(expression, key, self._encoded(found, [after])[0]))
            return self._rows(raw, expression.order_by(list(key)).limit(limit), found)

        return await self._reading(scan)

    def _encoded(self, columns: Sequence[ResultColumn], keys: Sequence[Row]) -> list[Row]:
        """Return keys as they are stored."""
        encoded = [
            self._values.encode(each.datatype, column, lambda at, name=each.name: f"id {at}, column {name!r}")  # type: ignore[misc]
            for each, column in zip(columns, zip(*keys, strict=True), strict=False)
        ]
        return list(zip(*encoded, strict=True))

    async def fetch(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], columns: Sequence[str], ids: Sequence[Key]
    ) -> list[Row]:
        """Return a select's rows that come from these rows of its root table."""

        def fetch(raw: Any) -> list[Row]:
            expression, key, taken = self._select(raw, select, outputs, columns)
            root = self._catalog.existing(raw, select.root()).schema.primary_key
            rows = [(each,) for each in ids] if len(root) == 1 else [tuple(each) for each in ids]
            found: list[Row] = []
            for at in range(0, len(rows), LISTED):
                some = self._encoded(taken, rows[at : at + LISTED])
                condition = listed(expression, key[: len(root)], some)
                found += self._rows(raw, expression.filter(condition), taken)
            return found

        return await self._reading(fetch)

    async def count_missing(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], missing: OutputTable | None
    ) -> int:
        """Return how many rows `scan` would yield in all."""

        def count(raw: Any) -> int:
            expression, _, _ = self._select(raw, select, outputs, (), missing)
            return int(raw.to_pyarrow(expression.count()).as_py())

        return await self._reading(count)

    async def create_outputs(self, table: OutputTable, tx: IbisTransaction) -> None:
        """Create an output table whose datatype is known, if there is none of that name."""
        self._outputs(table)
        await self._call(lambda raw: self._catalog.create_outputs(raw, table))

    async def drop_outputs(self, table: OutputTable, tx: IbisTransaction) -> None:
        """Drop an output table, if there is one."""
        await self._call(lambda raw: raw.drop_table(table.name, force=True))

    async def put_outputs(
        self,
        table: OutputTable,
        results: Outputs,
        *,
        as_of: int,
        replaced: Sequence[Key] | None,
        tx: IbisTransaction,
    ) -> None:
        """Write outputs; one that is there with a larger ``_as_of`` is left as it is."""
        outputs = self._outputs(table)
        await self._call(lambda raw: outputs.put(raw, outputs.encode(results, as_of), as_of, replaced))

    def encode_error(self, table: OutputTable, value: Any) -> Exception | None:
        """Return why a value cannot be stored in an output table, None if it can."""
        return self._outputs(table).encode_error(value)

    async def sweep(
        self,
        select: ReadQuery,
        outputs: Mapping[str, OutputTable],
        table: OutputTable,
        *,
        ids: Sequence[Key] | None,
        tx: IbisTransaction,
    ) -> list[Key]:
        """Delete the outputs whose source row the select no longer has; return the ids of their root rows."""

        def sweep(raw: Any) -> list[Key]:
            expression, key, _ = self._select(raw, select, outputs, ())
            return self._outputs(table).sweep(raw, expression, key, ids)

        return await self._reading(sweep)

    async def current(self, table: OutputTable, ids: Sequence[Key], as_of: int) -> set[Key]:
        """Return those of these root ids all of whose rows here are of ``as_of`` or later, those with errors among them."""
        outputs = self._outputs(table)
        return await self._reading(lambda raw: outputs.current(raw, ids, as_of))

    async def failed(self, table: OutputTable, *, limit: int = 1000) -> list[tuple[Key, str]]:
        """Return the root ids and errors of source rows that the model failed on."""
        if table.datatype is None:
            return []
        outputs = self._outputs(table)
        return await self._reading(lambda raw: outputs.failed(raw, limit))


def _beyond(table: Any, key: Sequence[str], last: Row) -> Any:
    """Return the condition that a row comes behind a key."""
    import ibis  # noqa: PLC0415 - heavy: only where a query is built

    literals = [ibis.literal(value, table[name].type()) for name, value in zip(key, last, strict=True)]
    conditions = []
    for at, (name, value) in enumerate(zip(key, literals, strict=True)):
        condition = table[name] > value
        for other, equal in zip(key[:at], literals[:at], strict=True):
            condition &= table[other] == equal
        conditions.append(condition)
    return either(conditions)
