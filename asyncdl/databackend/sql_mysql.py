"""MySQL's and MariaDB's SQL, and how values are stored there: in their own types, wherever these are exact.

- integers in the smallest type that holds them; every float as DOUBLE, which holds neither NaN nor infinities, and on
  MariaDB no negative zero;
- texts in a collation that compares by code point and does not pad: they compare as Python's do;
- decimals as DECIMAL where they are declared with at most 65 digits, else as text, which `MySQLCompiler` makes a number
  wherever an expression computes with them;
- instants as DATETIME in UTC; intervals as microseconds; UUIDs as text;
- JSON, arrays, structs and maps as text: MySQL's own JSON would round numbers and sort keys.

Tables of other programs keep their types; what asyncdl has no datatype for (enums, sets, ...) reads and writes as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from asyncdl import codec
from asyncdl.databackend.sql_dialect import Fetch, FromStorage, ReflectedColumn, SQLDialect, ToStorage
from asyncdl.databackend.tables import TableSchema
from asyncdl.datatypes import Parsed
from asyncdl.datatypes.checks import refuse, zone_of
from asyncdl.datatypes.names import OWN
from asyncdl.drivers.mysql import MySQLDatabase
from asyncdl.drivers.mysql_statements import CHANGES
from asyncdl.drivers.mysql_values import code_of
from asyncdl.drivers.sql import MARK, SQLDatabase, SQLTransaction, Statement
from asyncdl.errors import StoreError
from asyncdl.names import NAME_LIMIT

_DIGITS, _SCALE = 65, 30
_INTEGERS = {8: "TINYINT", 16: "SMALLINT", 32: "INT", 64: "BIGINT"}
_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 32, "int": 32, "bigint": 64}
_TYPES = {
    "float": "DOUBLE",
    "boolean": "BOOLEAN",
    "binary": "LONGBLOB",
    "timestamp": "DATETIME(6)",
    "date": "DATE",
    "time": "TIME(6)",
    "interval": "BIGINT",
    "uuid": "VARCHAR(36)",
    **dict.fromkeys(OWN, "LONGBLOB"),
}
_NESTED = frozenset({"json", "array", "struct", "map"})
_KEY_CHARACTERS, _KEY_BYTES = 700, 2800
"""What fits into an index together."""
_MICROSECOND = timedelta(microseconds=1)
_NOT_THE_QUERY = frozenset({1114, 1142, 1143, 1153, 1206})
"""Errors without a class of their own that are not about the statement: full, forbidden, too large."""
_DATATYPES = {
    "float": "float32",
    "double": "float64",
    "datetime": "timestamp",
    "timestamp": "timestamp('UTC')",
    "date": "date",
    "time": "time",
    "year": "int16",
    "json": "json",
    "uuid": "uuid",
    **dict.fromkeys(("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "bit"), "binary"),
    **dict.fromkeys(("geometry", "point", "linestring", "polygon"), "binary"),
}
_REFLECT = f"""
    SELECT c.column_name, c.data_type, c.column_type, c.numeric_precision, c.numeric_scale, c.column_default, c.extra,
        (SELECT s.seq_in_index FROM information_schema.statistics AS s WHERE s.table_schema = DATABASE()
            AND s.table_name = {MARK} AND s.index_name = 'PRIMARY' AND s.column_name = c.column_name),
        c.collation_name
    FROM information_schema.columns AS c WHERE c.table_schema = DATABASE() AND c.table_name = {MARK}
        AND BINARY c.table_name = BINARY {MARK} ORDER BY c.ordinal_position
"""  # noqa: S608 - a constant
_VERSION = """
    SELECT count(*), sum(crc32(concat_ws('|', table_name, column_name, column_type, column_key, extra, column_default)))
    FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name NOT LIKE '\\_asyncdl%'
"""


def is_native(precision: int | None, scale: int | None) -> bool:
    """Return whether decimals of this many digits are stored as DECIMAL."""
    return precision is not None and scale is not None and precision <= _DIGITS and scale <= _SCALE


class MySQLDialect(SQLDialect):
    """MySQL's and MariaDB's SQL."""

    mark = MARK
    tables_with_rows = False
    partial_indexes = False
    returning = False

    def __init__(self) -> None:
        self._collation = ""
        self._others: dict[tuple[str, str], str] = {}

    def opened(self, database: SQLDatabase) -> None:
        """Learn the collation in which texts compare by code point: MariaDB's and MySQL's are called differently."""
        if isinstance(database, MySQLDatabase):
            self._collation = database.collation

    def quote(self, name: str) -> str:
        """Return a name in backticks."""
        return "`" + name.replace("`", "``") + "`"

    def in_list(self, names: Sequence[str], count: int, of: str = "") -> str:
        """Return the condition that a key is one of ``count`` parameters."""
        return f"{self.tuple_of(names, of)} IN ({', '.join([self.marks(len(names))] * count)})"

    def upsert(
        self, table: str, columns: Sequence[str], key: Sequence[str], changed: Sequence[str], newer: str = ""
    ) -> str:
        """Return an insert that sets the ``changed`` columns of the row that is there.

        MySQL changes a row that has *any* unique key of the new one. Such a row's key would become NULL here: an error.
        """
        same = " AND ".join(f"{self.quote(name)} <=> VALUES({self.quote(name)})" for name in key)
        guarded = self.quote(key[0])
        sets = [f"{guarded} = IF({same}, {guarded}, NULL)"]
        # Assignments see those on their left: what decides comes last.
        for name in sorted(changed, key=lambda name: name == newer):
            column = self.quote(name)
            value = f"VALUES({column})"
            if newer:
                stamp = self.quote(newer)
                value = f"IF(VALUES({stamp}) >= {stamp}, {value}, {column})"
            sets.append(f"{column} = {value}")
        return (
            f"INSERT INTO {self.quote(table)} ({self.quoted(columns)}) VALUES {self.row(len(columns))} "  # noqa: S608 - quoted
            f"ON DUPLICATE KEY UPDATE {', '.join(sets)}"
        )

    # values

    def column_type(self, datatype: Parsed) -> str:
        """Return the type of a column; `create_table` gives keys one that an index can hold."""
        if datatype.kind == "integer":
            signed, bits = datatype.arguments
            return f"{_INTEGERS[bits]}{'' if signed else ' UNSIGNED'}"
        if datatype.kind == "decimal" and is_native(*datatype.arguments):
            precision, scale = datatype.arguments
            return f"DECIMAL({precision}, {scale})"
        return _TYPES.get(datatype.kind, "LONGTEXT")

    def to_storage(self, datatype: Parsed) -> ToStorage | None:
        """Return what turns a checked value into what the driver takes."""
        kind = datatype.kind
        if kind == "timestamp" and datatype.arguments != (None,):
            return _store_aware
        if kind == "decimal" and is_native(*datatype.arguments):
            return None
        return _TO_STORAGE.get("json" if kind in _NESTED else kind)

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
        if datatype.kind in _NESTED:
            return "json"
        return "interval('us')" if datatype.kind == "interval" else datatype.text

    def compile(self, expression: Any) -> str:
        """Return an ibis expression's SQL."""
        from asyncdl.databackend.sql_mysql_compiler import to_sql  # noqa: PLC0415 - it imports ibis, which is heavy

        return to_sql(expression, self._collation)

    def collations(self, table: str, columns: Sequence[str]) -> Sequence[str]:
        """Return the binary collations of columns, "" for those that compare with texts of ours by themselves.

        Of two collations one of which is binary, MySQL takes that; between two binary ones it does not choose (error 1267).
        """
        found = [self._others.get((table, name), "") for name in columns]
        return [each if each.startswith("utf8mb4_") and each.endswith("_bin") else "" for each in found]

    def collated(self, value: str, collation: str) -> str:
        """Return a text as it compares in a collation, "" for our own."""
        return f"{value} COLLATE {collation or self._collation}"

    # tables

    async def tables(self, fetch: Fetch) -> list[str]:
        """Return the names of all tables and views of the database, but those that a transaction has not committed yet."""
        rows = await fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()", ())
        names = [row[0] for row in rows]
        gone = await _gone(fetch) if CHANGES in names else set()
        return [name for name in names if name not in gone]

    async def reflect(self, fetch: Fetch, table: str) -> list[ReflectedColumn]:
        """Return a table's columns as ``information_schema`` has them."""
        if len(table) > NAME_LIMIT or max(map(ord, table), default=0x10000) > 0xFFFF:  # which MySQL's names cannot be
            return []
        rows = await fetch(_REFLECT, (table, table, table))
        if rows and await _has_changes(fetch) and table in await _gone(fetch):
            return []
        for name, *_, collation in rows:
            self._others[table, name] = "" if collation == self._collation else collation or ""
        return [_reflected(*row[:-1]) for row in rows]

    async def schema_version(self, fetch: Fetch) -> Any:
        """Return a checksum of the descriptions of all columns, and what is made or dropped at the moment."""
        gone = await _gone(fetch) if await _has_changes(fetch) else set()
        return (*(await fetch(_VERSION, ()))[0], *sorted(gone))

    def create_table(
        self, table: TableSchema, types: Sequence[str], *, not_null: Sequence[str] = (), numbered: bool = False
    ) -> str:
        """Return the statement; texts and bytes in a key are as long as an index can hold."""
        key = table.primary_key
        kinds = dict(zip(table.columns, types, strict=True))
        long = max(1, sum(kinds[name] in {"LONGTEXT", "LONGBLOB"} for name in key))
        shorter = {"LONGTEXT": f"VARCHAR({_KEY_CHARACTERS // long})", "LONGBLOB": f"VARBINARY({_KEY_BYTES // long})"}
        columns = []
        for name, kind in kinds.items():
            stored = shorter.get(kind, kind) if name in key else kind
            made = " AUTO_INCREMENT" if numbered and key == (name,) and "INT" in kind else ""
            columns.append(f"{self.quote(name)} {stored}{' NOT NULL' if name in (*key, *not_null) else ''}{made}")
        if key:
            columns.append(f"PRIMARY KEY ({self.quoted(key)})")
        return (
            f"CREATE TABLE IF NOT EXISTS {self.quote(table.name)} ({', '.join(columns)}) "
            f"ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE {self._collation}"
        )

    async def number(self, tx: SQLTransaction, table: str, column: str, count: int, *, above: int) -> list[int]:
        """Return numbers behind the largest, and behind what the table would give next."""
        tx.defer(*tx.database.lock(f"numbers of {table}"))
        largest, following = await tx.run(
            Statement(f"SELECT max({self.quote(column)}) FROM {self.quote(table)}", fetch=True),  # noqa: S608 - quoted
            Statement(
                "SELECT auto_increment FROM information_schema.tables "  # noqa: S608 - a constant
                f"WHERE table_schema = DATABASE() AND table_name = {MARK}",
                (table,),
                fetch=True,
            ),
        )
        given = [int(row[0] or 1) - 1 for row in following.rows]
        last = max([above, int(largest.rows[0][0] or 0), *given])
        return list(range(last + 1, last + 1 + count))

    def is_query_error(self, error: BaseException) -> bool:
        """Return whether the server refused the statement as such."""
        code = code_of(error)
        return type(error) is StoreError and bool(code) and code not in _NOT_THE_QUERY


async def _has_changes(fetch: Fetch) -> bool:
    there = (
        "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() "  # noqa: S608 - a constant
        f"AND table_name = '{CHANGES}'"
    )
    return bool(await fetch(there, ()))


async def _gone(fetch: Fetch) -> set[str]:
    """Return the tables that are there, and are not to be: their transaction has not ended, or has dropped them."""
    return {row[0] for row in await fetch(f"SELECT name FROM {CHANGES}", ())}  # noqa: S608 - a constant


def _reflected(
    name: str,
    kind: str,
    column: str,
    precision: int | None,
    scale: int | None,
    default: str | None,
    extra: str,
    key: int,
) -> ReflectedColumn:
    extra = extra.lower()
    filled = default not in {None, "NULL"} or "generated" in extra
    return ReflectedColumn(
        name,
        _datatype_of(kind.lower(), column.lower(), precision, scale),
        int(key or 0),
        numbered=bool(key) and "auto_increment" in extra,
        default=filled,
    )


def _datatype_of(kind: str, column: str, precision: int | None, scale: int | None) -> str:
    if column.startswith("tinyint(1)"):
        return "boolean"
    if kind in _BITS:
        return f"{'u' if 'unsigned' in column else ''}int{_BITS[kind]}"
    if kind == "decimal":
        return f"decimal({precision}, {scale})"
    return _DATATYPES.get(kind, "string")


# values to storage


def _store_float(value: float) -> float:
    if value - value != 0:
        raise refuse("float on MySQL", value, "it holds neither NaN nor infinities")
    return value


def _store_aware(value: datetime) -> datetime:
    return value.replace(tzinfo=None)  # the check has made it UTC


def _store_interval(value: timedelta) -> int:
    found = value // _MICROSECOND
    if not -(2**63) <= found < 2**63:
        raise refuse("interval", value, "it holds less than 2**63 microseconds")
    return found


_TO_STORAGE: dict[str, ToStorage] = {
    "float": _store_float,
    "decimal": str,
    "interval": _store_interval,
    "uuid": str,
    "json": lambda value: codec.dumps(value).decode(),
}


# storage to values


def _reader(datatype: Parsed, *, computed: bool) -> Callable[[Any], Any] | None:
    """Return what turns one value that is not None into Python's."""
    kind = "json" if datatype.kind in _NESTED else datatype.kind
    if kind == "integer":
        return int if computed else None
    if kind == "timestamp":
        return _moment_reader(datatype)
    if kind == "decimal":
        return None if is_native(*datatype.arguments) and not computed else _read_decimal
    if computed and kind == "string":
        return _read_text
    return _FROM_STORAGE.get(kind)


def _moment_reader(datatype: Parsed) -> Callable[[Any], Any]:
    (zone,) = datatype.arguments
    into = None if zone is None else zone_of(zone)

    def read(value: Any) -> Any:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if into is None or not isinstance(value, datetime):
            return value
        moment = value.replace(tzinfo=UTC)
        return moment if into is UTC else moment.astimezone(into)

    return read


def _read_time(value: Any) -> Any:
    if not isinstance(value, timedelta):
        return time.fromisoformat(value) if isinstance(value, str) else value
    if not timedelta(0) <= value < timedelta(days=1):
        return value  # another program's: MySQL's times go to 838 hours
    return (datetime.min + value).time()


def _read_date(value: Any) -> Any:
    if isinstance(value, str):
        return date.fromisoformat(value[:10])
    return value.date() if isinstance(value, datetime) else value


def _read_decimal(value: Any) -> Any:
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def _read_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read_json(value: Any) -> Any:
    return codec.loads(value) if isinstance(value, (str, bytes)) else value


_FROM_STORAGE: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "boolean": bool,
    "date": _read_date,
    "time": _read_time,
    "interval": lambda value: int(value) * _MICROSECOND,
    "uuid": lambda value: UUID(value) if isinstance(value, str) else value,
    "json": _read_json,
}
