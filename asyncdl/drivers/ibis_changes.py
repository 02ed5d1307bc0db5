"""How rows are changed in the databases that ibis connects to: what each has that keeps a row from ever being lost.

All of it runs on the thread of ibis' connection, which is given to each call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import and_
from typing import Any

from asyncdl.errors import QueryError

Keys = Sequence[tuple[Any, ...]]
"""Rows' keys, as they are stored."""

_LISTED = 500
_CASES = 100


class Changes(ABC):
    """Makes, changes and deletes rows and tables."""

    def key(self, raw: Any, table: str) -> tuple[str, ...] | None:
        """Return the columns by which the database itself tells rows of another program's table apart, None if it does not."""
        return None

    def create(self, raw: Any, table: str, schema: Any, key: Sequence[str], stamp: str = "") -> None:
        """Create a table.

        Parameters
        ----------
        schema
            ibis' schema.
        stamp
            The column of which a row has more than those that it replaces.
        """
        raw.create_table(table, schema=schema)

    @abstractmethod
    def insert(self, raw: Any, table: Any, rows: Any) -> None:
        """Insert an Arrow table's rows into an ibis table."""

    @abstractmethod
    def replace(self, raw: Any, table: Any, key: Sequence[str], rows: Any, changed: Sequence[str]) -> None:
        """Give rows that are there new values in some columns; ``rows`` is an Arrow table of whole rows."""

    @abstractmethod
    def delete(self, raw: Any, table: Any, key: Sequence[str], keys: Keys) -> None:
        """Delete rows."""


class StatementChanges(Changes):
    """By standard SQL: ``INSERT``, ``UPDATE``, ``DELETE``."""

    update = "UPDATE {table} SET {sets} WHERE {where}"

    def insert(self, raw: Any, table: Any, rows: Any) -> None:
        """Insert by ibis' own way."""
        if not hasattr(raw, "insert"):
            raise QueryError(f"ibis cannot insert rows into {raw.name}")
        raw.insert(table.get_name(), rows)

    def replace(self, raw: Any, table: Any, key: Sequence[str], rows: Any, changed: Sequence[str]) -> None:
        """Update some rows with each statement, in each of which a row is changed as a whole."""
        for at in range(0, rows.num_rows, _CASES):
            part = rows.slice(at, _CASES)
            keys = list(zip(*(part[name].to_pylist() for name in key), strict=True))
            sets = [
                f"{quoted(raw, name)} = {fragment(raw, table, self._value(table, key, keys, part[name], name))}"
                for name in changed
            ]
            where = fragment(raw, table, listed(table, key, keys))
            sql = self.update.format(table=quoted(raw, table.get_name()), sets=", ".join(sets), where=where)
            run(raw, sql)

    @staticmethod
    def _value(table: Any, key: Sequence[str], keys: Keys, values: Any, name: str) -> Any:
        import ibis  # noqa: PLC0415 - loaded when a database is opened

        dtype = table[name].type()
        literals = [ibis.literal(each, dtype) for each in values.to_pylist()]
        if all(each.equals(literals[0]) for each in literals):
            return literals[0]
        return ibis.cases(*((listed(table, key, [one]), value) for one, value in zip(keys, literals, strict=True)))

    def delete(self, raw: Any, table: Any, key: Sequence[str], keys: Keys) -> None:
        """Delete some rows with each statement."""
        for at in range(0, len(keys), _LISTED):
            where = fragment(raw, table, listed(table, key, keys[at : at + _LISTED]))
            run(raw, f"DELETE FROM {quoted(raw, table.get_name())} WHERE {where}")  # noqa: S608 - compiled


class ReplacingChanges(StatementChanges):
    """By ClickHouse's ReplacingMergeTree: of the rows with one key the last inserted is the row, and an insert is atomic.

    Tables of other programs with another engine are changed by mutations.
    """

    update = "ALTER TABLE {table} UPDATE {sets} WHERE {where}"

    def key(self, raw: Any, table: str) -> tuple[str, ...] | None:
        """Return the sorting key of a ReplacingMergeTree: of no other engine is it unique."""
        if "ReplacingMergeTree" not in self._engine(raw, table):
            return None
        sql = "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = {t:String} AND is_in_sorting_key"
        return tuple(row[0] for row in raw.con.query(sql, parameters={"t": table}).result_rows)

    @staticmethod
    def _engine(raw: Any, table: str) -> str:
        sql = "SELECT engine FROM system.tables WHERE database = currentDatabase() AND name = {t:String}"
        return "".join(row[0] for row in raw.con.query(sql, parameters={"t": table}).result_rows)

    def create(self, raw: Any, table: str, schema: Any, key: Sequence[str], stamp: str = "") -> None:
        """Create a table in which rows replace those of the same key."""
        import sqlglot.expressions as sge  # noqa: PLC0415 - heavy

        columns = schema.to_sqlglot_column_defs(raw.dialect)
        for column in columns:
            for kind in column.find_all(sge.DataType):
                if kind.this == sge.DataType.Type.DATE:  # ends in 2149
                    kind.set("this", sge.DataType.Type.DATE32)
        defined = ", ".join(each.sql(raw.dialect) for each in columns)
        engine = f"ReplacingMergeTree({stamp})" if key else "MergeTree"
        order = ", ".join(quoted(raw, name) for name in key)
        run(raw, f"CREATE TABLE {quoted(raw, table)} ({defined}) ENGINE = {engine} ORDER BY ({order})")

    def replace(self, raw: Any, table: Any, key: Sequence[str], rows: Any, changed: Sequence[str]) -> None:
        """Insert the rows anew, where that replaces those that are there."""
        if "ReplacingMergeTree" in self._engine(raw, table.get_name()):
            self.insert(raw, table, rows)
        else:
            super().replace(raw, table, key, rows, changed)


class RewritingChanges(Changes):
    """By making the whole table anew, for databases in memory that can do nothing else."""

    def insert(self, raw: Any, table: Any, rows: Any) -> None:
        """Make the table of its rows and more."""
        self._make(raw, table, raw.to_pyarrow(table), rows)

    def replace(self, raw: Any, table: Any, key: Sequence[str], rows: Any, changed: Sequence[str]) -> None:
        """Make the table of its other rows and these."""
        keys = list(zip(*(rows[name].to_pylist() for name in key), strict=True))
        self._make(raw, table, self._without(raw, table, key, keys), rows)

    def delete(self, raw: Any, table: Any, key: Sequence[str], keys: Keys) -> None:
        """Make the table of its other rows."""
        self._make(raw, table, self._without(raw, table, key, keys))

    @staticmethod
    def _without(raw: Any, table: Any, key: Sequence[str], keys: Keys) -> Any:
        there = raw.to_pyarrow(table)
        gone = set(keys)
        mask = [row not in gone for row in zip(*(there[name].to_pylist() for name in key), strict=True)]
        return there.filter(mask)

    @staticmethod
    def _make(raw: Any, table: Any, *parts: Any) -> None:
        import pyarrow as pa  # noqa: PLC0415 - heavy

        schema = table.schema().to_pyarrow()
        given = [
            [
                part[each.name].cast(each.type) if each.name in part.column_names else pa.nulls(len(part), each.type)
                for each in schema
            ]
            for part in parts
        ]
        whole = pa.concat_tables([pa.table(columns, schema=schema) for columns in given])
        raw.create_table(table.get_name(), whole, overwrite=True)


# SQL by ibis' compiler


def quoted(raw: Any, name: str) -> str:
    """Return a name as this database's SQL quotes it."""
    import sqlglot as sg  # noqa: PLC0415 - heavy

    return str(sg.to_identifier(name, quoted=True).sql(raw.dialect))


def fragment(raw: Any, table: Any, value: Any) -> str:
    """Return the SQL of an expression over one table's columns, as it stands in an ``UPDATE`` or ``DELETE`` of the table."""
    import sqlglot.expressions as sge  # noqa: PLC0415 - heavy

    select = raw.compiler.to_sqlglot(table.select(_value=value))
    found = select.expressions[0].unalias()
    for column in found.find_all(sge.Column):
        column.set("table", None)
    return str(found.sql(raw.dialect))


def run(raw: Any, sql: str) -> None:
    """Run a statement whose result nobody looks at."""
    if not hasattr(raw, "raw_sql"):
        raise QueryError(f"ibis cannot run statements on {raw.name}")
    result = raw.raw_sql(sql)
    close = getattr(result, "close", None)
    if close is not None and result is not getattr(raw, "con", None):
        close()


def listed(table: Any, key: Sequence[str], keys: Keys) -> Any:
    """Return the condition that a row has one of these keys."""
    import ibis  # noqa: PLC0415 - loaded when a database is opened

    def literal(name: str, value: Any) -> Any:
        return ibis.literal(value, table[name].type())

    if len(key) == 1:
        return table[key[0]].isin([literal(key[0], one) for (one,) in keys])
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for one in keys:
        groups.setdefault(one[:-1], []).append(literal(key[-1], one[-1]))
    return either(
        reduce(
            and_,
            [
                *(table[name] == literal(name, value) for name, value in zip(key, first, strict=False)),
                table[key[-1]].isin(last),
            ],
        )
        for first, last in groups.items()
    )


def either(conditions: Iterable[Any]) -> Any:
    """Return the condition that one of some is true: as a shallow tree, since compilers recurse."""
    level = list(conditions)
    while len(level) > 1:
        level = [reduce(lambda one, other: one | other, level[at : at + 2]) for at in range(0, len(level), 2)]
    return level[0]
