"""SQL databases: ibis is the query language and the compiler, and the database's own driver runs what it compiles.

So values are exact where ibis' own connections round them, results stream, and rows are written in the transactions of
the metadata store where both are in one database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.requests import ReadQuery, WriteRequest, Written
from asyncdl.databackend.sql_catalog import SQLCatalog
from asyncdl.databackend.sql_dialect import SQLDialect
from asyncdl.databackend.sql_duckdb import DuckDBDialect
from asyncdl.databackend.sql_mysql import MySQLDialect
from asyncdl.databackend.sql_outputs import OutputWriter, listed
from asyncdl.databackend.sql_postgresql import PostgreSQLDialect
from asyncdl.databackend.sql_queries import Compiled, QueryCompiler, Recent
from asyncdl.databackend.sql_sqlite import SQLiteDialect
from asyncdl.databackend.sql_values import Values, heavy
from asyncdl.databackend.sql_writes import SQLWriter
from asyncdl.databackend.tables import Key, Outputs, OutputTable, Row, TableSchema
from asyncdl.databackend.warmup import compile_something
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.elsewhere import Elsewhere
from asyncdl.drivers.sql import SQLDatabase, SQLTransaction, Statement
from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    ConfigurationError,
    QueryError,
    StoreError,
    TableNotFoundError,
    UnknownColumnError,
)

T = TypeVar("T")

_DIALECTS: dict[str, type[SQLDialect]] = {
    "sqlite": SQLiteDialect,
    "postgresql": PostgreSQLDialect,
    "mysql": MySQLDialect,
    "duckdb": DuckDBDialect,
    "frames": DuckDBDialect,
}
_THREADS = 4
_INLINE = 4096
"""Rows of plain values that are encoded on the event loop: some milliseconds."""


@dataclass(frozen=True, slots=True)
class _Page:
    """What a scan needs, made once for a select."""

    sql: str
    decode: Callable[[list[Row]], list[Row]] | None
    key: tuple[tuple[str, str], ...]
    heavy: bool


class SQLDataBackend(DataBackend):
    """The user's rows in a SQL database.

    Parameters
    ----------
    database
        The database; the metadata store may share it, and then takes part in its transactions.
    datatypes
        How asyncdl's own datatypes become bytes.
    """

    language: Literal["ibis", "mongodb"] = "ibis"

    def __init__(self, database: SQLDatabase, datatypes: Datatypes) -> None:
        self.database = database
        self.url = database.url
        self.datatypes = datatypes
        scheme = database.url.partition(":")[0]
        if scheme not in _DIALECTS:
            raise ConfigurationError(
                f"{database.url}: there are databackends for {', '.join(_DIALECTS)}, not for {scheme}"
            )
        self._dialect = _DIALECTS[scheme]()
        self.tables_with_rows = self._dialect.tables_with_rows
        self._values = Values(self._dialect, datatypes)
        self._catalog = SQLCatalog(database, self._dialect)
        self._compiler = QueryCompiler(database, self._catalog, self._dialect, self._call)
        self._writer = SQLWriter(self._catalog, self._values, self._compiler, self._call, self._run)
        self._executor: ThreadPoolExecutor | None = None
        self._pages: Recent[tuple[Compiled, _Page]] = Recent()
        self._outputs: Recent[OutputWriter] = Recent()

    async def open(self) -> None:
        """Connect."""
        if self._executor is None:
            await self.database.open()
            self._dialect.opened(self.database)
            self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="asyncdl-sql")
            # 0.3 s of imports and first compilation, here where they are expected, and not in the first query's way
            await self._call(lambda: compile_something(self._dialect.compile))

    async def aclose(self) -> None:
        """Close what `open` opened."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
            await self.database.aclose()

    def elsewhere(self) -> Callable[[Datatypes], DataBackend] | None:
        """Return what makes this databackend in another process, where its database is a server."""
        database = self.database.elsewhere()
        return None if database is None else partial(_on, database)

    def transaction(self) -> AbstractAsyncContextManager[SQLTransaction]:
        """Begin a transaction."""
        return self.database.transaction()

    async def _call(self, function: Callable[[], T]) -> T:
        """Run what would hold up the event loop on one of the backend's threads."""
        if self._executor is None:
            raise ClosedError(f"the databackend {self.url} is not open")
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    # tables

    async def tables(self) -> list[str]:
        """Return the names of the user's tables and views."""
        return await self._catalog.names()

    async def schema(self, table: str) -> TableSchema | None:
        """Return a table's schema, None when there is no such table."""
        found = await self._catalog.table(table)
        return found.schema if found is not None else None

    async def create_table(self, schema: TableSchema, tx: SQLTransaction) -> None:
        """Create a table, if there is none of that name."""
        await self._catalog.create(schema, tx)

    async def drop_table(self, name: str, tx: SQLTransaction) -> None:
        """Drop a table, if there is one."""
        await self._catalog.drop(name, tx)

    # queries

    def _refused(self, error: StoreError, sql: str) -> AsyncDLError:
        """Return the error of a query for one of the driver's."""
        if not self._dialect.is_query_error(error):
            return error
        return QueryError(f"{error}, in the query: {sql.replace(self._dialect.mark, '?')}")

    async def _fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        try:
            return await self.database.fetch(sql, params)
        except StoreError as error:
            raise self._refused(error, sql) from error

    async def _run(self, tx: SQLTransaction, statement: Statement) -> list[Row]:
        try:
            (outcome,) = await tx.run(statement)
        except StoreError as error:
            raise self._refused(error, statement.sql) from error
        return outcome.rows

    async def check(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable], tables: Mapping[str, TableSchema] | None = None
    ) -> TableSchema:
        """Compile a query, have the database prepare it where its tables are there, and return its columns and key."""
        if tables is None:
            try:
                compiled = await self._explained(query, outputs)
            except QueryError:  # another program may have changed the tables since they were looked at
                if not await self._catalog.refresh(force=True):
                    raise
                compiled = await self._explained(query, outputs)
        elif await self._catalog.present(query.tables()) == query.tables():
            compiled = await self._compiler.compile(query, outputs)
        else:
            compiled = await self._compiler.compile_provisionally(query, outputs, tables)
        return TableSchema(query.root(), {each.name: each.datatype for each in compiled.columns}, compiled.key)

    async def _explained(self, query: ReadQuery, outputs: Mapping[str, OutputTable]) -> Compiled:
        compiled = await self._compiler.compile(query, outputs)
        await self._fetch(f"EXPLAIN {compiled.sql}")
        return compiled

    async def read(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable], *, size: int = 1000
    ) -> AsyncIterator[tuple[tuple[str, ...], list[Row]]]:
        """Run a query and yield its column names with at most ``size`` rows at a time, at least once."""
        yielded = retried = False
        while not yielded:
            compiled = await self._compiler.compile(query, outputs)
            decode = self._values.rows([(each.name, each.datatype, each.computed) for each in compiled.columns])
            slow = heavy([each.datatype for each in compiled.columns]) or size > _INLINE
            try:
                async with aclosing(self.database.stream(compiled.sql, size=size)) as batches:  # type: ignore[type-var]
                    async for rows in batches:
                        yield compiled.names, await self._decode(decode, rows, slow)
                        yielded = True
            except StoreError as error:
                # The tables may have been changed by another process since they were looked at.
                if not yielded and not retried and await self._stale(error):
                    retried = True
                    continue
                raise self._refused(error, compiled.sql) from error
            if not yielded:
                yield compiled.names, []
                yielded = True

    async def _stale(self, error: StoreError) -> bool:
        return self._dialect.is_query_error(error) and await self._catalog.refresh(force=True)

    async def _decode(self, decode: Callable[[list[Row]], list[Row]] | None, rows: list[Row], slow: bool) -> list[Row]:
        if decode is None:
            return rows
        return await self._call(lambda: decode(rows)) if slow else decode(rows)

    async def write(self, request: WriteRequest, outputs: Mapping[str, OutputTable], tx: SQLTransaction) -> Written:
        """Insert, upsert, update or delete."""
        return await self._writer.write(request, outputs, tx)

    # a listener's work

    async def _page(
        self,
        select: ReadQuery,
        outputs: Mapping[str, OutputTable],
        columns: Sequence[str],
        kind: str,
        missing: OutputTable | None = None,
        *,
        bounded_above: bool = False,
    ) -> _Page:
        """Return the statement that reads pages (``kind`` first or next), counts, splits, or fetches (by what is added)."""
        compiled = await self._compiler.compile(select, outputs, use="work")
        cached = (compiled.sql, tuple(columns), kind, missing.name if missing else None, bounded_above)
        found = self._pages.get(cached)
        if found is not None and found[0] is compiled:
            return found[1]
        collations = await self._collations(select)
        page = self._make_page(compiled, columns, kind, missing, collations, bounded_above=bounded_above)
        self._pages.put(cached, (compiled, page))
        return page

    async def _collations(self, select: ReadQuery) -> Sequence[str]:
        """Return in which collation each key column of the root table is that does not compare with ours by itself."""
        table = (await self._catalog.existing(select.root())).schema
        return self._dialect.collations(table.name, table.primary_key)

    def _make_page(
        self,
        compiled: Compiled,
        columns: Sequence[str],
        kind: str,
        missing: OutputTable | None,
        collations: Sequence[str],
        *,
        bounded_above: bool,
    ) -> _Page:
        if not compiled.key:
            raise QueryError("the select of a listener must keep the primary key of its table, and this one has none")
        by_name = {each.name: each for each in compiled.columns}
        lost = [name for name in (*compiled.key, *columns) if name not in by_name]
        if lost:
            raise UnknownColumnError(f"the select has no column {lost[0]!r}; it has {', '.join(by_name)}")
        dialect, taken = self._dialect, (*compiled.key, *columns)
        key = tuple((name, by_name[name].datatype) for name in compiled.key)
        bounds = [*([">"] if kind == "next" else []), *(["<="] if bounded_above else [])]
        conditions = [f"{dialect.tuple_of(compiled.key, 's')} {bound} {dialect.marks(len(key))}" for bound in bounds]
        if missing is not None:
            same = bounds if dialect.merges else ()
            conditions.insert(0, self._output_writer(missing).missing("s", compiled.key, collations, same))
        what = "count(*)" if kind == "count" else dialect.quoted(taken, "s")
        if kind == "split":
            what += f", row_number() OVER (ORDER BY {dialect.quoted(compiled.key, 's')}) AS _row"
        sql = f"SELECT {what} FROM ({compiled.sql}) AS s"  # noqa: S608 - compiled and quoted
        if conditions:
            sql += f" WHERE {' AND '.join(conditions)}"
        if kind == "split":
            keys = dialect.quoted(compiled.key)
            sql = f"SELECT {keys} FROM ({sql}) AS n WHERE _row % {dialect.mark} = 0 ORDER BY {keys}"  # noqa: S608 - quoted
        if kind in {"first", "next"}:
            sql += f" ORDER BY {dialect.quoted(compiled.key, 's')} LIMIT {dialect.mark}"
        found = [by_name[name] for name in taken]
        decode = self._values.rows([(each.name, each.datatype, each.computed) for each in found])
        return _Page(sql, decode, key, heavy([each.datatype for each in found]))

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
        """Return the next rows of a select in the order of its key: key columns first, then ``columns``."""
        kind = "first" if after is None else "next"
        page = await self._page(select, outputs, columns, kind, missing, bounded_above=until is not None)
        params = [each for bound in (after, until) if bound is not None for each in self._encoded_key(page, bound)]
        if missing is not None and self._dialect.merges:
            params *= 2  # the bounds stand on both sides
        rows = await self._fetch(page.sql, [*params, limit])
        return await self._decode(page.decode, rows, page.heavy or limit > _INLINE)

    def _encoded_key(self, page: _Page, key: Row) -> list[Any]:
        pairs = zip(page.key, key, strict=True)
        return [self._values.encode_one(datatype, each, f"key {name!r}") for (name, datatype), each in pairs]

    async def boundaries(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], *, size: int, missing: OutputTable | None
    ) -> list[Row]:
        """Return the key of every ``size``-th row that `scan` would yield, in order."""
        page = await self._page(select, outputs, (), "split", missing)
        return await self._decode(page.decode, await self._fetch(page.sql, [size]), page.heavy)

    async def fetch(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], columns: Sequence[str], ids: Sequence[Key]
    ) -> list[Row]:
        """Return a select's rows that come from these rows of its root table."""
        page = await self._page(select, outputs, columns, "ids")
        root = (await self._catalog.existing(select.root())).schema.primary_key
        found: list[Row] = []
        for condition, params in listed(self._values, dict(page.key[: len(root)]), ids, "s"):
            rows = await self._fetch(f"{page.sql} WHERE {condition}", params)
            found.extend(await self._decode(page.decode, rows, page.heavy))
        return found

    async def count_missing(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], missing: OutputTable | None
    ) -> int:
        """Return how many rows `scan` would yield in all."""
        page = await self._page(select, outputs, (), "count", missing)
        return int((await self._fetch(page.sql))[0][0])

    def _output_writer(self, table: OutputTable) -> OutputWriter:
        if table.datatype is None:
            raise TableNotFoundError(
                f"the outputs of {table.identifier!r} have no table before the first of them is known"
            )
        key = (table.name, table.datatype)
        found = self._outputs.get(key)
        if found is None or found.table != table:
            found = OutputWriter(self._values, table)
            self._outputs.put(key, found)
        return found

    async def create_outputs(self, table: OutputTable, tx: SQLTransaction) -> None:
        """Create an output table whose datatype is known, if there is none of that name."""
        tx.defer(*self.database.lock(table.name), *self._output_writer(table).create())
        self._catalog.note(tx, table.name)

    async def drop_outputs(self, table: OutputTable, tx: SQLTransaction) -> None:
        """Drop an output table, if there is one."""
        drop = Statement(f"DROP TABLE IF EXISTS {self._dialect.quote(table.name)}", table=table.name)
        tx.defer(*self.database.lock(table.name), drop)
        self._catalog.note(tx, table.name)

    async def put_outputs(
        self,
        table: OutputTable,
        results: Outputs,
        *,
        as_of: int,
        replaced: Sequence[Key] | None,
        tx: SQLTransaction,
    ) -> None:
        """Write outputs; one that is there with a larger ``_as_of`` is left as it is."""
        writer = self._output_writer(table)
        assert table.datatype is not None  # noqa: S101 - `_output_writer` has looked
        if heavy([table.datatype]) or table.flatten or len(results) > _INLINE:
            statements = await self._call(lambda: writer.put(results, as_of, replaced))
        else:
            statements = writer.put(results, as_of, replaced)
        # Of two who write at once the older might write beside what it does not see yet.
        tx.defer(*self.database.lock(table.name), *statements)

    def encode_error(self, table: OutputTable, value: Any) -> Exception | None:
        """Return why a value cannot be stored in an output table, None if it can."""
        return self._output_writer(table).encode_error(value)

    async def sweep(
        self,
        select: ReadQuery,
        outputs: Mapping[str, OutputTable],
        table: OutputTable,
        *,
        ids: Sequence[Key] | None,
        tx: SQLTransaction,
    ) -> list[Key]:
        """Delete the outputs whose source row the select no longer has; return the ids of their root rows."""
        writer = self._output_writer(table)
        compiled = await self._compiler.compile(select, outputs, use="work", tx=tx)
        rows: list[Row] = []
        tx.defer(*self.database.lock(table.name))
        for statement in writer.sweep(compiled.sql, compiled.key, ids, await self._collations(select)):
            rows.extend(await self._run(tx, statement))
        if not self._dialect.returning:
            tx.defer(*writer.delete(rows))
        return list(dict.fromkeys(writer.decode_ids(rows)))

    async def current(self, table: OutputTable, ids: Sequence[Key], as_of: int) -> set[Key]:
        """Return those of these root ids all of whose rows here are of ``as_of`` or later, those with errors among them."""
        writer = self._output_writer(table)
        found: set[Key] = set()
        for sql, params in writer.current(ids, as_of):
            found.update(writer.decode_ids(await self._fetch(sql, params)))
        return found

    async def failed(self, table: OutputTable, *, limit: int = 1000) -> list[tuple[Key, str]]:
        """Return the root ids and errors of source rows that the model failed on."""
        if table.datatype is None:
            return []
        writer = self._output_writer(table)
        rows = await self._fetch(writer.failed(), [limit])
        return list(zip(writer.decode_ids(rows), [row[-1] for row in rows], strict=True))


def _on(database: Elsewhere[SQLDatabase], datatypes: Datatypes) -> SQLDataBackend:
    return SQLDataBackend(database(), datatypes)
