"""Queries to SQL: compiled on a thread, and remembered as long as no table changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from asyncdl.databackend.requests import ReadQuery
from asyncdl.databackend.sql_catalog import SQLCatalog
from asyncdl.databackend.sql_dialect import Call, SQLDialect
from asyncdl.databackend.sql_expressions import QueryCatalog, ResultColumn, keyed_value, result_columns, without_order
from asyncdl.databackend.tables import OutputTable, TableSchema
from asyncdl.drivers.sql import SQLDatabase, SQLTransaction
from asyncdl.errors import QueryError

V = TypeVar("V")
_REMEMBERED = 512

Use = Literal["read", "work", "value"]
"""``"read"``: rows in the query's order. ``"work"``: their order means nothing. ``"value"``: the query is of one column, which
is then called ``value`` and has a table's key beside it; a scalar stands alone."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A query's SQL, the columns that it yields, and those that identify its rows."""

    sql: str
    columns: tuple[ResultColumn, ...]
    key: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(each.name for each in self.columns)


class Recent(Generic[V]):
    """The values that were used last."""

    def __init__(self, size: int = _REMEMBERED) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """Return a value, None if it is not known."""
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
        return found

    def put(self, key: Hashable, value: V) -> None:
        """Keep a value; the one that was used longest ago may go."""
        self._values[key] = value
        if len(self._values) > self._size:
            self._values.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Entry:
    query: ReadQuery
    generation: int
    compiled: Compiled


class QueryCompiler:
    """Compiles queries.

    Parameters
    ----------
    call
        Runs a function that takes milliseconds on a thread.
    """

    def __init__(
        self,
        database: SQLDatabase,
        catalog: SQLCatalog,
        dialect: SQLDialect,
        call: Call,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._dialect = dialect
        self._url = database.url
        self._call = call
        self._recent: Recent[_Entry] = Recent()

    async def compile(
        self,
        query: ReadQuery,
        outputs: Mapping[str, OutputTable],
        *,
        use: Use = "read",
        keyed: tuple[str, ...] = (),
        tx: SQLTransaction | None = None,
    ) -> Compiled:
        """Return a query's SQL.

        Parameters
        ----------
        keyed
            With ``use="value"``, the key that the value is to have beside it.
        tx
            The transaction in which it will run.

        Raises
        ------
        TableNotFoundError, UnknownColumnError, QueryError
        """
        await self._catalog.refresh()
        generation = self._catalog.generation
        physical = tuple(sorted((name, each.name, str(each.datatype)) for name, each in outputs.items()))
        key = (hash(query), use, keyed, physical)
        found = self._recent.get(key)
        if found is not None and found.generation == generation and _same(found.query, query):
            return found.compiled
        catalog = await self._catalog.snapshot(query.tables(), outputs, tx)
        compiled: Compiled = await self._call(lambda: self._compile(query, catalog, use, keyed))
        await self._dialect.provide(self._database, compiled.sql, self._call)
        if tx is None or not self._catalog.changed_in(tx):
            self._recent.put(key, _Entry(query, generation, compiled))
        return compiled

    async def compile_provisionally(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable], tables: Mapping[str, TableSchema]
    ) -> Compiled:
        """Return the SQL of a query that may name tables which are still to be made."""
        catalog = await self._catalog.snapshot(query.tables(), outputs, planned=tables)
        compiled: Compiled = await self._call(lambda: self._compile(query, catalog, "read", ()))
        return compiled

    def _compile(self, query: ReadQuery, catalog: QueryCatalog, use: Use, keyed: tuple[str, ...]) -> Compiled:
        from ibis.common.exceptions import IbisError  # noqa: PLC0415 - heavy: only where a query is compiled
        from sqlglot.errors import SqlglotError  # noqa: PLC0415

        try:
            built = query.build(catalog)
            expression = built.expression
            if use == "value":
                expression = keyed_value(expression, keyed, "value")
            elif use == "work":
                expression = without_order(expression)
            return Compiled(self._dialect.compile(expression), tuple(result_columns(expression, catalog)), built.key)
        except (IbisError, SqlglotError, NotImplementedError) as error:
            what = f"{type(error).__name__}: {error}"
            raise QueryError(f"{self._url} cannot run this query: {what}") from error


def _same(one: ReadQuery, other: ReadQuery) -> bool:
    """Return whether two queries are equal; where ``==`` is an operator of the query language, ``equals`` says so."""
    if one is other:
        return True
    equals = getattr(type(one), "equals", None)
    return bool(equals(one, other)) if equals is not None else False
