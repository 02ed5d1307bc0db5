"""The user's writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from asyncdl.databackend.requests import ReadQuery, WriteRequest, Written
from asyncdl.databackend.sql_catalog import SQLCatalog
from asyncdl.databackend.sql_dialect import SQLDialect, StoredTable
from asyncdl.databackend.sql_outputs import chunks
from asyncdl.databackend.sql_queries import QueryCompiler
from asyncdl.databackend.sql_rows import IdMaker, RowStatements, check_columns, columns_of, infer_schema
from asyncdl.databackend.sql_values import Values
from asyncdl.databackend.tables import Key, OutputTable, Row, TableSchema
from asyncdl.datatypes import parse
from asyncdl.drivers.sql import SQLTransaction, Statement
from asyncdl.errors import DatatypeError, QueryError, TableNotFoundError

_INLINE = 500


Run = Callable[[SQLTransaction, Statement], Awaitable[list[Row]]]


class SQLWriter:
    """Inserts, upserts, updates and deletes.

    Parameters
    ----------
    call
        Runs a function that takes long on a thread.
    run
        Runs one statement in a transaction, its errors being the query's.
    """

    def __init__(
        self,
        catalog: SQLCatalog,
        values: Values[SQLDialect],
        compiler: QueryCompiler,
        call: Callable[[Callable[[], Any]], Awaitable[Any]],
        run: Run,
    ) -> None:
        self._catalog = catalog
        self._values = values
        self._dialect = values.dialect
        self._compiler = compiler
        self._call = call
        self._run = run
        self._encoder = RowStatements(values, IdMaker())

    async def write(self, request: WriteRequest, outputs: Mapping[str, OutputTable], tx: SQLTransaction) -> Written:
        """Do what a request asks for, on a transaction."""
        if request.kind in {"insert", "upsert"}:
            return await self._put(request, tx)
        if request.kind == "update":
            return await self._update(request, outputs, tx)
        return await self._delete(request, outputs, tx)

    # rows

    async def _put(self, request: WriteRequest, tx: SQLTransaction) -> Written:
        rows = request.rows
        found = await self._catalog.table(request.table, tx)
        if found is None and rows:
            found = await self._catalog.locked(request.table, tx)
        if not rows:
            if found is None:
                raise TableNotFoundError(f"there is no table {request.table!r}, and no rows that it could be made of")
            return Written([])
        columns: dict[str, Sequence[Any]] = await self._maybe_call(len(rows), lambda: columns_of(rows))
        created = None
        if found is None:
            schema = await self._maybe_call(len(rows), lambda: infer_schema(request.table, columns))
            stored = StoredTable(schema, parse(schema.columns[schema.primary_key[0]]).text == "int64")
        else:
            schema, stored = found.schema, found
        if request.kind == "upsert" and not schema.primary_key:
            raise QueryError(f"table {schema.name!r} has no primary key, which upsert needs")
        check_columns(schema, columns)
        numbers = None
        if stored.numbered and (lacking := self._encoder.lacking(schema, columns)):
            numbers = await self._numbers(schema, columns, lacking, found is not None, tx)
        statements, ids = await self._maybe_call(len(rows), lambda: self._encode(request, stored, columns, numbers))
        if found is None:
            created = schema
            await self._catalog.create(schema, tx)
        elif request.kind == "upsert":  # which locks rows as they come: two at once would wait for each other
            tx.defer(*tx.database.lock(f"rows of {schema.name}"))
        tx.defer(*statements)
        return Written(ids, created)

    async def _numbers(
        self, schema: TableSchema, columns: Mapping[str, Sequence[Any]], count: int, exists: bool, tx: SQLTransaction
    ) -> list[int]:
        name = schema.primary_key[0]
        given = [each for each in columns.get(name, ()) if isinstance(each, int)]
        above = max(given, default=0)
        if exists:
            return await self._dialect.number(tx, schema.name, name, count, above=above)
        return list(range(above + 1, above + 1 + count))

    def _encode(
        self, request: WriteRequest, table: StoredTable, columns: dict[str, Sequence[Any]], numbers: list[int] | None
    ) -> tuple[list[Statement], list[Key]]:
        schema = table.schema
        keyed = self._encoder.keyed(schema, columns, len(request.rows), numbers)
        inserting = request.kind == "insert"
        ids, stored = self._encoder.encode(schema, keyed, unique=inserting)
        if inserting:
            return self._encoder.insert(table, stored, keyed), ids
        return self._encoder.upsert(table, stored, keyed), list(dict.fromkeys(ids))

    async def _maybe_call(self, rows: int, function: Callable[[], Any]) -> Any:
        return await self._call(function) if rows > _INLINE else function()

    # queries

    async def _update(self, request: WriteRequest, outputs: Mapping[str, OutputTable], tx: SQLTransaction) -> Written:
        schema = await self._keyed_table(request, tx)
        check_columns(schema, request.changes)
        if not request.changes:
            raise QueryError(f"an update of {schema.name!r} names no column that is to change")
        for name in request.changes:
            if name in schema.primary_key:
                raise QueryError(
                    f"{name!r} is the primary key of {schema.name!r}, which an update cannot change; delete and insert"
                )
        sets, sources, params = await self._changes(schema, request.changes, outputs, tx)
        table = self._dialect.quote(schema.name)
        conditions = [self._dialect.equal(schema.primary_key, table, alias) for alias in sources]
        where = "" if request.where is None else await self._where(schema, request.where, outputs, tx)
        conditions += [where] if where else []
        self._hold(schema, where, tx)
        if not self._dialect.returning:
            return await self._update_by_key(schema, where, sets, sources, params, tx)
        sql = f"UPDATE {table} SET {', '.join(sets)}"  # noqa: S608 - quoted
        if sources:
            sql += f" FROM {', '.join(f'({source}) AS {alias}' for alias, source in sources.items())}"
        if conditions:
            sql += f" WHERE {' AND '.join(conditions)}"
        literal = [name for name, each in request.changes.items() if not callable(getattr(type(each), "build", None))]
        types = [self._dialect.value_type(parse(schema.columns[name])) for name in literal]
        return await self._returning(schema, sql, params, tx, tuple(types))

    async def _changes(
        self, schema: TableSchema, changes: Mapping[str, Any], outputs: Mapping[str, OutputTable], tx: SQLTransaction
    ) -> tuple[list[str], dict[str, str], list[Any]]:
        """Return what is set, the subqueries (by alias) that it is set from, and the parameters."""
        sets: list[str] = []
        sources: dict[str, str] = {}
        params: list[Any] = []
        for name, change in changes.items():
            datatype, column = schema.columns[name], self._dialect.quote(name)
            if not self._dialect.returning:  # the tables of an update stand side by side there
                column = f"{self._dialect.quote(schema.name)}.{column}"
            if not callable(getattr(type(change), "build", None)):
                sets.append(f"{column} = {self._dialect.mark}")
                params.append(self._values.encode_one(datatype, change, f"column {name!r}"))
                continue
            compiled = await self._compiler.compile(change, outputs, use="value", keyed=schema.primary_key, tx=tx)
            value = compiled.columns[-1]
            if not fits(value.datatype, datatype):
                raise DatatypeError(
                    f"column {name!r} is {datatype}, and cannot be set to an expression that is {value.datatype}"
                )
            if len(compiled.columns) == 1:
                scalar = compiled.sql
                if not self._dialect.returning:  # it may be of the table itself, which is only read as one of its own
                    scalar = f"SELECT * FROM ({scalar}) AS scalar{len(sets)}"  # noqa: S608 - compiled
                sets.append(f"{column} = ({scalar})")
            else:
                alias = f"n{len(sources)}"
                sources[alias] = compiled.sql
                sets.append(f"{column} = {alias}.{self._dialect.quote(value.name)}")
        return sets, sources, params

    async def _delete(self, request: WriteRequest, outputs: Mapping[str, OutputTable], tx: SQLTransaction) -> Written:
        schema = await self._keyed_table(request, tx)
        sql = f"DELETE FROM {self._dialect.quote(schema.name)}"  # noqa: S608 - quoted
        where = "" if request.where is None else await self._where(schema, request.where, outputs, tx)
        if where:
            sql += f" WHERE {where}"
        self._hold(schema, where, tx)
        if not self._dialect.returning:
            rows = await self._locked(schema, where, tx)
            for part, _ in chunks(rows, self._dialect.largest_list):
                condition = self._dialect.in_list(schema.primary_key, len(part))
                sql = f"DELETE FROM {self._dialect.quote(schema.name)} WHERE {condition}"  # noqa: S608 - quoted
                tx.defer(Statement(sql, list(chain.from_iterable(part))))
            return self._written(schema, rows)
        return await self._returning(schema, sql, [], tx)

    # where neither returns anything

    async def _locked(self, schema: TableSchema, where: str, tx: SQLTransaction) -> list[Row]:
        """Lock rows and return their keys, as the driver returns and takes them."""
        table = self._dialect.quote(schema.name)
        sql = f"SELECT {self._dialect.quoted(schema.primary_key, table)} FROM {table}"  # noqa: S608 - quoted
        return await self._run(tx, Statement(f"{sql}{f' WHERE {where}' if where else ''} FOR UPDATE", fetch=True))

    async def _update_by_key(
        self,
        schema: TableSchema,
        where: str,
        sets: Sequence[str],
        sources: Mapping[str, str],
        params: Sequence[Any],
        tx: SQLTransaction,
    ) -> Written:
        dialect, table = self._dialect, self._dialect.quote(schema.name)
        rows = await self._locked(schema, where, tx)
        # Read as they were before the update: the limit keeps a source from being merged into it.
        beside = [f", (SELECT * FROM ({each}) AS s LIMIT {2**63}) AS {alias}" for alias, each in sources.items()]  # noqa: S608
        same = [dialect.equal(schema.primary_key, table, alias) for alias in sources]
        literal = len(params) == len(sets)
        for part, _ in chunks(rows, dialect.largest_list if literal else max(1, len(rows))):
            conditions = [*same, dialect.in_list(schema.primary_key, len(part), table)]
            sql = f"UPDATE {table}{''.join(beside)} SET {', '.join(sets)} WHERE {' AND '.join(conditions)}"  # noqa: S608
            await self._run(tx, Statement(sql, [*params, *chain.from_iterable(part)]))
        return self._written(schema, rows)

    def _hold(self, schema: TableSchema, where: str, tx: SQLTransaction) -> None:
        """Have the rows stay as they are until they are written: what they become is computed from what they are."""
        tx.defer(*tx.database.lock(f"rows of {schema.name}"), *self._dialect.hold(schema.name, where))

    async def _keyed_table(self, request: WriteRequest, tx: SQLTransaction) -> TableSchema:
        schema = (await self._catalog.existing(request.table, tx)).schema
        if not schema.primary_key:
            raise QueryError(
                f"table {schema.name!r} has no primary key: rows that an {request.kind} concerns cannot be told from others"
            )
        return schema

    async def _where(
        self, schema: TableSchema, where: ReadQuery, outputs: Mapping[str, OutputTable], tx: SQLTransaction
    ) -> str:
        compiled = await self._compiler.compile(where, outputs, tx=tx)
        key = schema.primary_key
        if len(compiled.key) < len(key):
            raise QueryError(
                f"the rows of an update or delete are found by their key ({', '.join(key)}), which the query does not keep"
            )
        target = self._dialect.tuple_of(key, self._dialect.quote(schema.name))
        found = self._dialect.quoted(compiled.key[: len(key)], "w")
        return f"{target} IN (SELECT {found} FROM ({compiled.sql}) AS w)"  # noqa: S608 - quoted

    async def _returning(
        self, schema: TableSchema, sql: str, params: list[Any], tx: SQLTransaction, types: tuple[str, ...] = ()
    ) -> Written:
        key = schema.primary_key
        returned = self._dialect.quoted(key, self._dialect.quote(schema.name))
        rows = await self._run(tx, Statement(f"{sql} RETURNING {returned}", params, types=types, fetch=True))
        return self._written(schema, rows)

    def _written(self, schema: TableSchema, rows: list[Row]) -> Written:
        key = schema.primary_key
        decode = self._values.rows([(name, schema.columns[name], False) for name in key])
        decoded = decode(rows) if decode is not None else rows
        return Written([row[0] for row in decoded] if len(key) == 1 else list(decoded))


_NUMBERS = frozenset({"integer", "float", "decimal"})
_NESTED = frozenset({"json", "array", "struct", "map"})


def fits(found: str, wanted: str) -> bool:
    """Return whether an expression's values can be stored in a column."""
    if found == wanted:
        return True
    kinds = parse(found).kind, parse(wanted).kind
    if kinds[0] == kinds[1]:
        return kinds[0] not in {"vector", "datatype"}
    if kinds[0] == "null":
        return True
    return (kinds[0] in _NUMBERS and kinds[1] in _NUMBERS - {"integer"}) or set(kinds) <= _NESTED
