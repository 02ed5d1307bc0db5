"""SQLite's SQL, and how values are stored there.

SQLite has integers, floats, text and bytes. Everything else is stored such that it comes out as it went in and compares as
it should:

- floats in columns without a type: one of type REAL would turn -0.0 into 0.0. NaN, which SQLite makes NULL, is the text
  ``NaN``: it equals itself and is larger than every number, as it is in PostgreSQL and DuckDB;
- timestamps as ISO text as ibis writes literals, in UTC where they have a zone; dates, times and UUIDs as text;
- decimals as text, which `SQLiteCompiler` casts wherever an expression computes with them;
- intervals as microseconds;
- JSON, arrays, structs and maps as `asyncdl.codec`'s JSON.

Columns of tables that other programs made are read leniently: what is not stored in this form comes out as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from asyncdl import codec
from asyncdl.databackend.sql_dialect import Call, Fetch, FromStorage, ReflectedColumn, SQLDialect, ToStorage
from asyncdl.databackend.tables import TableSchema
from asyncdl.datatypes import Parsed
from asyncdl.datatypes.checks import refuse, zone_of
from asyncdl.datatypes.names import OWN
from asyncdl.drivers.sql import SQLDatabase, SQLTransaction
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import DatatypeError, StoreError

_NONE = type(None)
_MICROSECOND = timedelta(microseconds=1)
_BOOLEANS = {0: False, 1: True}
_JSON = frozenset({"json", "array", "struct", "map"})
_TYPES = {
    "integer": "INTEGER",
    "float": "",
    "boolean": "BOOLEAN",
    "binary": "BLOB",
    "interval": "INTEGER",
    **dict.fromkeys(OWN, "BLOB"),
}
# How other programs' column types read: SQLite's own rules of affinity, after what SQLAlchemy, Django and pandas write.
_DECLARED = (
    (("BOOL",), "boolean"),
    (("TIMESTAMP", "DATETIME"), "timestamp"),
    (("DATE",), "date"),
    (("TIME",), "time"),
    (("DECIMAL", "NUMERIC"), "float64"),
    (("JSON",), "json"),
    (("INT",), "int64"),
    (("CHAR", "CLOB", "TEXT", "UUID"), "string"),
    (("BLOB", "BINARY"), "binary"),
    (("REAL", "FLOA", "DOUB"), "float64"),
)


class SQLiteDialect(SQLDialect):
    """SQLite's SQL."""

    constants_are_cheap = True

    def quote(self, name: str) -> str:
        """Return a name in double quotes."""
        return '"' + name.replace('"', '""') + '"'

    # values

    def column_type(self, datatype: Parsed) -> str:
        """Return one of SQLite's few types; none for floats."""
        return _TYPES.get(datatype.kind, "TEXT")

    def to_storage(self, datatype: Parsed) -> ToStorage | None:
        """Return what turns a checked value into an int, float, str or bytes."""
        if datatype.kind == "integer" and datatype.arguments == (False, 64):
            return _store_unsigned
        if datatype.kind == "timestamp":
            return _store_naive if datatype.arguments == (None,) else _store_aware
        return _TO_STORAGE.get("json" if datatype.kind in _JSON else datatype.kind)

    def from_storage(self, datatype: Parsed, *, computed: bool) -> FromStorage | None:
        """Return what turns a column into Python's values."""
        kind = "json" if datatype.kind in _JSON else datatype.kind
        if kind == "integer":
            return _read_integers if computed else None
        if kind == "float":
            return _read_floats
        if kind == "boolean":
            return lambda values: [_BOOLEANS.get(each, each) for each in values]
        if kind == "decimal":
            return _reader(_decimal_reader(datatype))
        if kind == "timestamp":
            return _reader(_timestamp_reader(datatype))
        one = _FROM_STORAGE.get(kind)
        return _reader(one) if one is not None else None

    def dtype(self, datatype: Parsed) -> str:
        """Return how ibis is told of a column."""
        if datatype.kind in OWN:
            return "binary"
        return "interval('us')" if datatype.kind == "interval" else datatype.text

    def compile(self, expression: Any) -> str:
        """Return an ibis expression's SQL."""
        from asyncdl.databackend.sql_sqlite_compiler import to_sql  # noqa: PLC0415 - it imports ibis, which is heavy

        return to_sql(expression)

    # tables

    async def provide(self, database: SQLDatabase, sql: str, call: Call) -> None:
        """Register ibis' own functions (regular expressions, statistics, ...) where a query calls one."""
        if "_IBIS_" in sql.upper() and isinstance(database, SQLiteDatabase):
            await database.prepare(await call(_ibis_functions))

    async def tables(self, fetch: Fetch) -> list[str]:
        """Return the names of all tables and views but SQLite's own."""
        rows = await fetch(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
            (),
        )
        return [row[0] for row in rows]

    async def reflect(self, fetch: Fetch, table: str) -> list[ReflectedColumn]:
        """Return a table's columns as ``PRAGMA table_info`` has them."""
        rows = await fetch(
            "SELECT i.name, i.type, i.pk, i.dflt_value FROM sqlite_master AS m, pragma_table_info(m.name) AS i "
            "WHERE m.type IN ('table', 'view') AND m.name = ? ORDER BY i.cid",
            (table,),
        )
        single = sum(1 for row in rows if row[2]) == 1
        return [
            ReflectedColumn(
                name,
                _declared(declared),
                key,
                numbered=bool(single and key and declared.upper() == "INTEGER"),
                default=default is not None,
            )
            for name, declared, key, default in rows
        ]

    async def schema_version(self, fetch: Fetch) -> Any:
        """Return ``PRAGMA schema_version``."""
        return (await fetch("PRAGMA schema_version", ()))[0][0]

    def create_table(
        self, table: TableSchema, types: Sequence[str], *, not_null: Sequence[str] = (), numbered: bool = False
    ) -> str:
        """Return the statement; a single integer key becomes the table's rowid."""
        key = table.primary_key
        columns = []
        for name, kind in zip(table.columns, types, strict=True):
            rowid = key == (name,) and kind == "INTEGER"
            required = " PRIMARY KEY" if rowid else " NOT NULL" if name in key or name in not_null else ""
            columns.append(f"{self.quote(name)} {kind}{required}".rstrip())
        rowid = len(key) == 1 and types[list(table.columns).index(key[0])] == "INTEGER"
        if key and not rowid:
            columns.append(f"PRIMARY KEY ({self.quoted(key)})")
        return f"CREATE TABLE IF NOT EXISTS {self.quote(table.name)} ({', '.join(columns)})"

    async def number(self, tx: SQLTransaction, table: str, column: str, count: int, *, above: int) -> list[int]:
        """Return the numbers after the largest: the transaction has the write lock."""
        from asyncdl.drivers.sql import Statement  # noqa: PLC0415

        name = self.quote(table)
        sql = f"SELECT coalesce(max({self.quote(column)}), 0) FROM {name}"  # noqa: S608 - quoted
        (largest, sequences) = await tx.run(
            Statement(sql, fetch=True),
            Statement("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'", fetch=True),
        )
        last = max(above, int(largest.rows[0][0]))
        if sequences.rows:
            (found,) = await tx.run(Statement("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,), fetch=True))
            last = max([last, *(int(row[0]) for row in found.rows)])
        return list(range(last + 1, last + 1 + count))

    def is_query_error(self, error: BaseException) -> bool:
        """Return whether SQLite refused the statement as such."""
        cause = error.__cause__
        code = getattr(cause, "sqlite_errorcode", None)
        return isinstance(error, StoreError) and (
            code == sqlite3.SQLITE_ERROR or isinstance(cause, (sqlite3.ProgrammingError, sqlite3.InterfaceError))
        )


def _declared(declared: str) -> str:
    upper = declared.upper()
    return next((datatype for parts, datatype in _DECLARED if any(part in upper for part in parts)), "string")


# values to storage


def _store_unsigned(value: int) -> int:
    if value >= 2**63:
        raise refuse("uint64 on SQLite", value, "it holds integers below 2**63")
    return value


def _store_float(value: float) -> float | str:
    return value if value == value else "NaN"  # noqa: PLR0124 - only NaN differs from itself


def _store_naive(value: datetime) -> str:
    return value.isoformat(" ")


def _store_aware(value: datetime) -> str:
    return value.replace(tzinfo=None).isoformat(" ")  # the check has made it UTC


def _store_interval(value: timedelta) -> int:
    found = value // _MICROSECOND
    if not -(2**63) <= found < 2**63:
        raise refuse("interval", value, "it holds less than 2**63 microseconds")
    return found


_TO_STORAGE: dict[str, ToStorage] = {
    "float": _store_float,
    "decimal": str,
    "date": date.isoformat,
    "time": time.isoformat,
    "interval": _store_interval,
    "uuid": str,
    "json": lambda value: codec.dumps(value).decode(),
}


# storage to values


def _reader(one: Callable[[Any], Any]) -> FromStorage:
    def read(values: Sequence[Any]) -> list[Any]:
        found = []
        for each in values:
            try:
                found.append(None if each is None else one(each))
            except (ValueError, TypeError, InvalidOperation, OverflowError, DatatypeError):
                found.append(each)  # stored by another program, in another form
        return found

    return read


def _read_integers(values: Sequence[Any]) -> Sequence[Any]:
    if set(map(type, values)) <= {int, _NONE}:
        return values
    return [int(each) if isinstance(each, float) and each.is_integer() else each for each in values]


def _read_floats(values: Sequence[Any]) -> Sequence[Any]:
    if set(map(type, values)) <= {float, _NONE}:
        return values
    return [float(each) if type(each) is int or each == "NaN" else each for each in values]


def _decimal_reader(datatype: Parsed) -> Callable[[Any], Any]:
    _, scale = datatype.arguments

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return Decimal(value)
        found = Decimal(repr(value))
        # SQLite computed it in floating point: the scale says how many digits are meant
        return found if scale is None or not found.is_finite() else round(found, scale)

    return read


def _timestamp_reader(datatype: Parsed) -> Callable[[Any], Any]:
    (zone,) = datatype.arguments
    if zone is None:
        return datetime.fromisoformat
    into = zone_of(zone)

    def read(text: str) -> datetime:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return moment if into is UTC and moment.tzinfo is UTC else moment.astimezone(into)

    return read


def _read_uuid(value: Any) -> UUID:
    return UUID(bytes=value) if isinstance(value, bytes) else UUID(value)


def _read_date(value: str) -> date:
    return date.fromisoformat(value if len(value) == 10 else value[:10])


_FROM_STORAGE: dict[str, Callable[[Any], Any]] = {
    "date": _read_date,
    "time": time.fromisoformat,
    "interval": lambda value: value * _MICROSECOND,
    "uuid": _read_uuid,
    "json": codec.loads,
}


def _ibis_functions() -> Callable[[sqlite3.Connection], None]:
    from ibis.backends.sqlite.udf import register_all  # noqa: PLC0415 - 0.4 s, and rarely needed

    register: Callable[[sqlite3.Connection], None] = register_all
    return register
