"""Which tables there are: those that asyncdl made, with their datatypes, and those of other programs.

What is known of a table is kept, and checked against the database's schema version at most once a second; at each use
while a transaction of this process has changed tables, since it may end either way.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, finalize

import msgspec

from asyncdl.databackend.sql_dialect import Fetch, SQLDialect, StoredTable
from asyncdl.databackend.sql_expressions import QueryCatalog
from asyncdl.databackend.tables import OutputTable, TableSchema
from asyncdl.datatypes import parse
from asyncdl.datatypes.names import OWN
from asyncdl.drivers.sql import Row, SQLDatabase, SQLTransaction, Statement
from asyncdl.errors import DatatypeError, QueryError, TableNotFoundError
from asyncdl.names import check_column, check_table

TABLES = "_asyncdl_tables"
_HIDDEN = ("_asyncdl", "_outputs_")
_UNKEYED = OWN | {"json", "array", "struct", "map", "float"}
_INTERVAL = 1.0


class SQLCatalog:
    """Reads, keeps and writes tables' schemas."""

    def __init__(self, database: SQLDatabase, dialect: SQLDialect) -> None:
        self._database = database
        self._dialect = dialect
        self._known: dict[str, StoredTable] = {}
        self._version: Any = None
        self._checked = -_INTERVAL
        self._changed: WeakKeyDictionary[SQLTransaction, set[str]] = WeakKeyDictionary()
        self.generation = 0
        """Counts what was forgotten: statements that were compiled before are not to be trusted."""

    # reading

    async def names(self, fetch: Fetch | None = None) -> list[str]:
        """Return the names of the user's tables, sorted."""
        found = await self._dialect.tables(fetch or self._database.fetch)
        return sorted(name for name in found if not name.startswith(_HIDDEN))

    async def table(self, name: str, tx: SQLTransaction | None = None) -> StoredTable | None:
        """Return a table, None if there is none.

        Parameters
        ----------
        tx
            The transaction in which it will be used: it sees what was created there.
        """
        if tx is not None and name in self._changed.get(tx, ()):
            return await self._load(name, _within(tx))
        await self.refresh()
        found = self._known.get(name)
        if found is None:
            found = await self._load(name, self._database.fetch)
            if found is not None:
                self._known[name] = found
            elif tx is not None:
                found = await self._load(name, _within(tx))
        return found

    async def locked(self, name: str, tx: SQLTransaction) -> StoredTable | None:
        """Return a table, None if there is none, and no other transaction makes one before this ends."""
        lock = self._database.lock("tables")
        if lock:
            await tx.run(*lock)
            self._known.pop(name, None)
        return await self.table(name, tx)

    async def existing(self, name: str, tx: SQLTransaction | None = None) -> StoredTable:
        """Return a table; raises `TableNotFoundError`."""
        found = await self.table(name, tx)
        if found is None:
            names = await self.names(None if tx is None else _within(tx))
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(names[:20]) or 'nothing'}"
            raise TableNotFoundError(f"{self._database.url} has no table {name!r}; {hint}")
        return found

    async def present(self, tables: Collection[str]) -> frozenset[str]:
        """Return those of these tables that are there."""
        return frozenset([name for name in tables if await self.table(name) is not None])

    async def snapshot(
        self,
        tables: Collection[str],
        outputs: Mapping[str, OutputTable],
        tx: SQLTransaction | None = None,
        *,
        planned: Mapping[str, TableSchema] | None = None,
    ) -> QueryCatalog:
        """Return what a query over these tables is built on; raises `TableNotFoundError`.

        Parameters
        ----------
        planned
            Tables that are still to be made.
        """
        found = {}
        for name in sorted(tables):
            there = await self.table(name, tx) if planned and name in planned else await self.existing(name, tx)
            found[name] = there or StoredTable((planned or {})[name], False)
        return QueryCatalog(self._dialect, found, outputs)

    def changed_in(self, tx: SQLTransaction) -> bool:
        """Return whether a transaction has changed tables."""
        return tx in self._changed

    async def refresh(self, *, force: bool = False) -> bool:
        """Forget what is known if anybody has changed a table since; return whether that is so."""
        now = time.monotonic()
        if not force and now - self._checked < _INTERVAL and not self._changed:
            return False
        version = await self._dialect.schema_version(self._database.fetch)
        self._checked = now
        if version == self._version:
            return False
        self._version = version
        self._forget()
        return True

    def _forget(self) -> None:
        self._known.clear()
        self.generation += 1

    async def _load(self, name: str, fetch: Fetch) -> StoredTable | None:
        columns = await self._dialect.reflect(fetch, name)
        if not columns:
            return None
        recorded: dict[str, str] = {}
        if await self._dialect.reflect(fetch, TABLES):
            mark = self._dialect.mark
            rows = await fetch(f"SELECT columns FROM {TABLES} WHERE name = {mark}", (name,))  # noqa: S608 - constant
            recorded = dict(msgspec.json.decode(rows[0][0])) if rows else {}
        key = tuple(each.name for each in sorted(columns, key=lambda each: each.key) if each.key)
        schema = TableSchema(name, {each.name: recorded.get(each.name, each.datatype) for each in columns}, key)
        return StoredTable(
            schema,
            any(each.numbered for each in columns),
            {each.name: each.type for each in columns if each.type},
            frozenset(each.name for each in columns if each.default),
        )

    # writing

    async def create(self, schema: TableSchema, tx: SQLTransaction) -> StoredTable:
        """Create a table, if there is none of that name; raises where it cannot be made.

        Raises
        ------
        InvalidIdentifierError, DatatypeError, QueryError
            A name or a datatype cannot be used, or names differ in case alone.
        """
        check_schema(schema)
        found = await self.locked(schema.name, tx)
        if found is not None:
            return found
        for other in await self.names(_within(tx)):
            if other.lower() == schema.name.lower():
                raise QueryError(f"there is a table {other!r}, which differs from {schema.name!r} in case alone")
        dialect = self._dialect
        types = [dialect.column_type(parse(each)) for each in schema.columns.values()]
        columns = msgspec.json.encode(list(schema.columns.items())).decode()
        record = TableSchema(TABLES, {"name": "string", "columns": "string", "primary_key": "string"}, ("name",))
        tx.defer(
            Statement(dialect.create_table(record, [dialect.column_type(parse("string"))] * 3), table=TABLES),
            Statement(dialect.create_table(schema, types, numbered=True), table=schema.name),
            Statement(
                dialect.upsert(TABLES, list(record.columns), ["name"], ["columns", "primary_key"]),
                (schema.name, columns, msgspec.json.encode(schema.primary_key).decode()),
            ),
        )
        self.note(tx, schema.name)
        created = await self._load(schema.name, _within(tx))
        assert created is not None  # noqa: S101 - it was created by the statements above
        return created

    async def drop(self, name: str, tx: SQLTransaction) -> None:
        """Drop a table, if there is one."""
        if await self._dialect.reflect(_within(tx), TABLES):
            mark = self._dialect.mark
            tx.defer(Statement(f"DELETE FROM {TABLES} WHERE name = {mark}", (name,)))  # noqa: S608 - constant
        tx.defer(Statement(f"DROP TABLE IF EXISTS {self._dialect.quote(name)}", table=name))
        self.note(tx, name)

    def note(self, tx: SQLTransaction, name: str) -> None:
        """Remember that a transaction changes a table."""
        if tx not in self._changed:
            self._changed[tx] = set()
            finalize(tx, self._expire).atexit = False
        self._changed[tx].add(name)
        self._known.pop(name, None)
        self.generation += 1

    def _expire(self) -> None:
        self._checked = -_INTERVAL


def check_schema(schema: TableSchema) -> None:
    """Raise unless a table with this schema can be made."""
    check_table(schema.name)
    folded: dict[str, str] = {}
    for name, datatype in schema.columns.items():
        check_column(name)
        parse(datatype)
        other = folded.setdefault(name.lower(), name)
        if other != name:
            raise QueryError(f"table {schema.name!r}: the columns {other!r} and {name!r} differ in case alone")
    for name in schema.primary_key:
        if name not in schema.columns:
            raise QueryError(f"table {schema.name!r}: its primary key {name!r} is not among its columns")
        if parse(schema.columns[name]).kind in _UNKEYED:
            raise DatatypeError(
                f"table {schema.name!r}: column {name!r} cannot be the primary key: {schema.columns[name]} does not identify"
                " rows; use an integer, a string, a uuid, a date or a timestamp"
            )


def _within(tx: SQLTransaction) -> Fetch:
    async def fetch(sql: str, params: Sequence[Any] = ()) -> list[Row]:
        (outcome,) = await tx.run(Statement(sql, params, fetch=True))
        return outcome.rows

    return fetch
