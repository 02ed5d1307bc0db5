"""DuckDB's SQL, and how values are stored there: in its own types, wherever these are exact.

- integers in the smallest type that holds them; every float as DOUBLE; arrays, structs and maps as LIST, STRUCT and MAP;
- decimals as DECIMAL where they are declared with at most 38 digits, else as text, which `DuckDBCompiler` casts wherever an
  expression computes with them;
- JSON as JSON, which keeps the text as it is; vectors, images and other datatypes of asyncdl's own as BLOB.

Tables of other programs keep their types; what asyncdl has no datatype for (enums, bit strings, ...) reads and writes as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from asyncdl import codec
from asyncdl.databackend.sql_dialect import Fetch, FromStorage, ReflectedColumn, SQLDialect, ToStorage
from asyncdl.databackend.tables import TableSchema
from asyncdl.datatypes import Parsed, normalize
from asyncdl.datatypes.checks import zone_of
from asyncdl.datatypes.names import OWN
from asyncdl.drivers.sql import SQLTransaction, Statement
from asyncdl.errors import DatatypeError, StoreError, StoreUnavailableError

_DIGITS = 38
_INTEGERS = {8: "TINYINT", 16: "SMALLINT", 32: "INTEGER", 64: "BIGINT"}
_TYPES = {
    "float": "DOUBLE",
    "boolean": "BOOLEAN",
    "binary": "BLOB",
    "date": "DATE",
    "time": "TIME",
    "interval": "INTERVAL",
    "uuid": "UUID",
    "json": "JSON",
    **dict.fromkeys(OWN, "BLOB"),
}
_NUMBERED = frozenset({"BIGINT", "INTEGER", "SMALLINT", "UBIGINT", "UINTEGER"})
_IN = "schema_name = current_schema() AND database_name = current_database()"
_MICROSECOND = timedelta(microseconds=1)
One = Callable[[Any], Any]


class DuckDBDialect(SQLDialect):
    """DuckDB's SQL."""

    constants_are_cheap = True
    merges = True
    partial_indexes = False

    def quote(self, name: str) -> str:
        """Return a name in double quotes."""
        return '"' + name.replace('"', '""') + '"'

    def values_column(self, of: str, at: int) -> str:
        """Return how a column of a ``VALUES`` list is named."""
        return f"{of}.col{at}"

    # values

    def column_type(self, datatype: Parsed) -> str:
        """Return the type of a column."""
        kind = datatype.kind
        if kind == "integer":
            signed, bits = datatype.arguments
            return f"{'' if signed else 'U'}{_INTEGERS[bits]}"
        if kind == "decimal":
            precision, scale = datatype.arguments
            return f"DECIMAL({precision}, {scale})" if is_native(precision, scale) else "VARCHAR"
        if kind == "timestamp":
            return "TIMESTAMP" if datatype.arguments == (None,) else "TIMESTAMPTZ"
        return self._nested_type(datatype) if kind in {"array", "struct", "map"} else _TYPES.get(kind, "VARCHAR")

    def _nested_type(self, datatype: Parsed) -> str:
        if _as_json(datatype):
            return "JSON"
        if datatype.kind == "array":
            return f"{self.column_type(datatype.arguments[0])}[]"
        if datatype.kind == "map":
            key, value = datatype.arguments
            return f"MAP({self.column_type(key)}, {self.column_type(value)})"
        fields = [f"{self.quote(name)} {self.column_type(each)}" for name, each in datatype.arguments]
        return f"STRUCT({', '.join(fields)})"

    def value_type(self, datatype: Parsed) -> str:
        """Return the type of a value."""
        return self.column_type(datatype)

    def to_storage(self, datatype: Parsed) -> ToStorage | None:
        """Return what turns a checked value into what Arrow takes."""
        if datatype.kind == "decimal" and not is_native(*datatype.arguments):
            return str
        if datatype.kind == "json" or _as_json(datatype):
            return _store_json
        return _nested_writer(datatype, self._inner_storage)

    def _inner_storage(self, datatype: Parsed) -> Callable[[Any], Any] | None:
        found = str if datatype.kind == "uuid" else self.to_storage(datatype)
        return None if found is None else lambda value: None if value is None else found(value)

    def from_storage(self, datatype: Parsed, *, computed: bool) -> FromStorage | None:
        """Return what turns a column into Python's values."""
        one = _reader(datatype, computed=computed)
        if one is None:
            return None
        return lambda values: [None if each is None else one(each) for each in values]

    def dtype(self, datatype: Parsed) -> str:
        """Return how ibis is told of a column."""
        if datatype.kind in OWN:
            return "binary"
        if datatype.kind in {"array", "struct", "map"} and _as_json(datatype):
            return "json"
        return "interval('us')" if datatype.kind == "interval" else datatype.text

    def compile(self, expression: Any) -> str:
        """Return an ibis expression's SQL."""
        from asyncdl.databackend.sql_duckdb_compiler import to_sql  # noqa: PLC0415 - it imports ibis, which is heavy

        return to_sql(expression)

    # tables

    async def tables(self, fetch: Fetch) -> list[str]:
        """Return the names of all tables and views of the schema that names lead to, but DuckDB's own."""
        rows = await fetch(
            f"SELECT table_name FROM duckdb_tables() WHERE NOT internal AND {_IN} "  # noqa: S608 - constant
            f"UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal AND {_IN}",
            (),
        )
        return [row[0] for row in rows]

    async def reflect(self, fetch: Fetch, table: str) -> list[ReflectedColumn]:
        """Return a table's columns as ``duckdb_columns()`` has them."""
        rows = await fetch(
            "SELECT c.column_name, c.data_type, c.column_default, list_position(k.constraint_column_names, c.column_name) "  # noqa: S608
            "FROM duckdb_columns() AS c LEFT JOIN duckdb_constraints() AS k "
            "ON k.table_oid = c.table_oid AND k.constraint_type = 'PRIMARY KEY' "
            "AND k.database_name = c.database_name AND k.schema_name = c.schema_name "
            f"WHERE c.table_name = ? AND c.{_IN.replace(' AND ', ' AND c.')} ORDER BY c.column_index",
            (table,),
        )
        single = sum(1 for row in rows if row[3]) == 1
        return [
            ReflectedColumn(
                name,
                datatype_of(kind),
                key or 0,
                numbered=bool(single and key and kind in _NUMBERED),
                default=default is not None,
            )
            for name, kind, default, key in rows
        ]

    async def schema_version(self, fetch: Fetch) -> Any:
        """Return a hash of all tables and their columns."""
        columns = "hash(table_oid, table_name, column_name, data_type)"
        return (await fetch(f"SELECT count(*), bit_xor({columns}) FROM duckdb_columns() WHERE NOT internal", ()))[0]  # noqa: S608

    def create_table(
        self, table: TableSchema, types: Sequence[str], *, not_null: Sequence[str] = (), numbered: bool = False
    ) -> str:
        """Return the statement."""
        key = table.primary_key
        columns = [
            f"{self.quote(name)} {kind}{' NOT NULL' if name in (*key, *not_null) else ''}"
            for name, kind in zip(table.columns, types, strict=True)
        ]
        if key:
            columns.append(f"PRIMARY KEY ({self.quoted(key)})")
        return f"CREATE TABLE IF NOT EXISTS {self.quote(table.name)} ({', '.join(columns)})"

    async def number(self, tx: SQLTransaction, table: str, column: str, count: int, *, above: int) -> list[int]:
        """Return numbers of the column's own sequence, if it has one, else those after the largest."""
        largest = f"SELECT coalesce(max({self.quote(column)}), 0) FROM {self.quote(table)}"  # noqa: S608 - quoted
        default = f"SELECT column_default FROM duckdb_columns() WHERE table_name = ? AND column_name = ? AND {_IN}"  # noqa: S608
        found, sequence = await tx.run(Statement(largest, fetch=True), Statement(default, (table, column), fetch=True))
        above = max(above, int(found.rows[0][0]))
        draws = sequence.rows[0][0]
        numbers: list[int] = []
        if draws and draws.startswith("nextval("):
            while len(numbers) < count:
                draw = f"SELECT {draws} FROM range({count - len(numbers)})"  # noqa: S608 - DuckDB's own text
                (drawn,) = await tx.run(Statement(draw, fetch=True))
                numbers += [row[0] for row in drawn.rows if row[0] > above]
            return numbers
        return list(range(above + 1, above + 1 + count))

    def is_query_error(self, error: BaseException) -> bool:
        """Return whether DuckDB refused the statement as such."""
        import duckdb  # noqa: PLC0415 - it is loaded: this is one of its errors

        if type(error) is not StoreError or isinstance(error, StoreUnavailableError):
            return False
        return isinstance(error.__cause__, (duckdb.ProgrammingError, duckdb.NotSupportedError, duckdb.DataError))


def is_native(precision: int | None, scale: int | None) -> bool:
    """Return whether decimals of this size are DuckDB's own."""
    return precision is not None and scale is not None and precision <= _DIGITS and 0 <= scale <= precision


def _as_json(datatype: Parsed) -> bool:
    """Return whether a nested datatype has no counterpart in DuckDB."""
    if datatype.kind == "struct":
        names = {name.lower() for name, _ in datatype.arguments}
        odd = "" in names or not names or len(names) < len(datatype.arguments)
        return odd or any(_as_json(each) for _, each in datatype.arguments)
    if datatype.kind == "map" and datatype.arguments[0].kind not in {"string", "integer", "date", "uuid"}:
        return True
    if datatype.kind in {"map", "array"}:
        return any(_as_json(each) for each in datatype.arguments)
    return datatype.kind == "null"


def datatype_of(kind: str) -> str:
    """Return the datatype of a column by its type in DuckDB."""
    plain = _DATATYPES.get(kind)
    if plain is not None:
        return plain
    if kind.startswith("DECIMAL("):
        return normalize(kind.lower().replace(",", ", "))
    if kind.endswith((")", "]")) and not kind.startswith(("ENUM(", "UNION(")):
        return _nested(kind)
    return "string"


def _nested(kind: str) -> str:
    from ibis.backends.sql.datatypes import DuckDBType  # noqa: PLC0415 - heavy: only for nested columns
    from sqlglot.errors import SqlglotError  # noqa: PLC0415

    try:
        return normalize(str(DuckDBType.from_string(kind)))
    except (DatatypeError, SqlglotError, KeyError, TypeError, ValueError):
        return "string"


_DATATYPES = {
    **{f"{name}INT": f"int{bits}" for name, bits in (("TINY", 8), ("SMALL", 16), ("BIG", 64))},
    **{f"U{name}INT": f"uint{bits}" for name, bits in (("TINY", 8), ("SMALL", 16), ("BIG", 64))},
    "INTEGER": "int32",
    "UINTEGER": "uint32",
    "HUGEINT": "decimal(38, 0)",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BOOLEAN": "boolean",
    "BLOB": "binary",
    "DATE": "date",
    "TIME": "time",
    "INTERVAL": "interval",
    "UUID": "uuid",
    "JSON": "json",
    "TIMESTAMP WITH TIME ZONE": "timestamp('UTC')",
    **dict.fromkeys(("TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP_MS", "TIMESTAMP_S"), "timestamp"),
}


# values to storage


def _store_json(value: Any) -> str:
    return codec.dumps(value).decode()


def _nested_writer(datatype: Parsed, writer: Callable[[Parsed], One | None]) -> One | None:
    """Return what turns a list, dict or mapping into what Arrow takes, None if that is the value itself."""
    if datatype.kind == "array":
        one = writer(datatype.arguments[0])
        return None if one is None else lambda value: [one(each) for each in value]
    if datatype.kind == "struct":
        fields = {name: found for name, each in datatype.arguments if (found := writer(each)) is not None}
        if not fields:
            return None
        return lambda value: {name: fields[name](each) if name in fields else each for name, each in value.items()}
    if datatype.kind == "map":
        key, value_of = (writer(each) or _same for each in datatype.arguments)
        return lambda value: [(key(name), value_of(each)) for name, each in value.items()]
    return None


def _same(value: Any) -> Any:
    return value


# storage to values


def _reader(datatype: Parsed, *, computed: bool) -> Callable[[Any], Any] | None:
    """Return what turns one value that is not None into Python's."""
    kind = datatype.kind
    if kind == "integer":
        return int if computed else None
    if kind == "float":
        return float if computed else None
    if kind == "decimal":
        return _read_decimal if computed or not is_native(*datatype.arguments) else None
    if kind == "timestamp":
        return _moment_reader(datatype)
    if kind in {"array", "struct", "map"}:
        return _read_json if _as_json(datatype) else _nested_reader(datatype, computed=computed)
    return _FROM_STORAGE.get(kind)


def _nested_reader(datatype: Parsed, *, computed: bool) -> Callable[[Any], Any] | None:
    if datatype.kind == "struct":
        fields = {name: found for name, each in datatype.arguments if (found := _inner(each, computed)) is not None}
        if not fields:
            return None
        return lambda value: {name: fields[name](each) if name in fields else each for name, each in value.items()}
    if datatype.kind == "array":
        one = _inner(datatype.arguments[0], computed)
        return None if one is None else lambda value: [one(each) for each in value]
    key, value_of = (_inner(each, computed) or _same for each in datatype.arguments)
    return lambda value: {key(name): value_of(each) for name, each in value}


def _inner(datatype: Parsed, computed: bool) -> Callable[[Any], Any] | None:
    found = _reader(datatype, computed=computed)
    return None if found is None else lambda value: None if value is None else found(value)


def _moment_reader(datatype: Parsed) -> Callable[[Any], Any]:
    (zone,) = datatype.arguments
    if zone is None:
        return _read_naive
    into = zone_of(zone)
    if into is UTC:
        return lambda value: _to_python(value).replace(tzinfo=UTC)  # the session's zone is UTC
    return lambda value: _to_python(value).astimezone(into)


def _to_python(value: Any) -> Any:
    """Return a datetime of Python's own class for one of nanoseconds, which Arrow returns as pandas'."""
    return value if type(value) is datetime else value.to_pydatetime(warn=False)


def _read_naive(value: Any) -> Any:
    return _to_python(value).replace(tzinfo=None) if isinstance(value, datetime) else value


def _read_decimal(value: Any) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(value if isinstance(value, str) else repr(value))


def _read_interval(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    months, days, nanoseconds = value
    found: timedelta = timedelta(days=months * 30 + days) + nanoseconds // 1000 * _MICROSECOND
    return found


def _read_uuid(value: Any) -> UUID:
    return UUID(bytes=value) if isinstance(value, bytes) else value if isinstance(value, UUID) else UUID(value)


def _read_json(value: Any) -> Any:
    return codec.loads(value) if isinstance(value, str) else value


_FROM_STORAGE: dict[str, Callable[[Any], Any]] = {
    "interval": _read_interval,
    "uuid": _read_uuid,
    "json": _read_json,
    "date": lambda value: value.date() if isinstance(value, datetime) else value,
}
