"""PostgreSQL's SQL, and how values are stored there: in its own types, wherever these are exact.

- integers in the smallest type that holds them, ``uint64`` as numeric; every float as double precision;
- texts of the collation "C": they compare by code point, as Python's do. PostgreSQL has no NUL, so `store_text` stands in;
- JSON, structs and maps as ``json``, which keeps the text as it is: ``jsonb`` would round floats, sort keys, refuse NUL;
- arrays of plain elements as arrays, others as ``json``; vectors, images and other datatypes of asyncdl's own as bytea.

Tables of other programs keep their types; what asyncdl has no datatype for (enums, addresses, ...) reads and writes as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from asyncdl import codec
from asyncdl.databackend.sql_dialect import Fetch, FromStorage, ReflectedColumn, SQLDialect, ToStorage
from asyncdl.databackend.sql_postgresql_text import read_text, read_texts, store_text
from asyncdl.databackend.tables import TableSchema
from asyncdl.datatypes import Parsed
from asyncdl.datatypes.checks import refuse, zone_of
from asyncdl.datatypes.names import OWN
from asyncdl.drivers.postgresql_values import sqlstate
from asyncdl.drivers.sql import MARK, SQLTransaction, Statement
from asyncdl.errors import StoreError, StoreUnavailableError
from asyncdl.names import NAME_LIMIT

_INTEGERS = {8: "smallint", 16: "smallint", 32: "integer", 64: "bigint"}
_UNSIGNED = {8: "smallint", 16: "integer", 32: "bigint", 64: "numeric(20)"}
_TYPES = {
    "float": "double precision",
    "boolean": "boolean",
    "binary": "bytea",
    "decimal": "numeric",
    "date": "date",
    "time": "time",
    "interval": "interval",
    "uuid": "uuid",
    "json": "json",
    "struct": "json",
    "map": "json",
    **dict.fromkeys(OWN, "bytea"),
}
_ELEMENTS = frozenset(
    {"integer", "float", "boolean", "string", "binary", "decimal", "timestamp", "date", "time", "interval", "uuid"}
)
_KEYS = frozenset({"smallint", "integer", "bigint"})
_DIGITS, _PLACES = 131_072, 16_383
"""What numeric holds before and after the point."""
_QUERY_ERRORS = ("42", "22", "0A", "21")
"""Classes of SQLSTATE: syntax or names, data, not supported, cardinality."""

_DATATYPES = {
    "int2": "int16",
    "int4": "int32",
    "int8": "int64",
    "float4": "float32",
    "float8": "float64",
    "bool": "boolean",
    "bytea": "binary",
    "numeric": "decimal",
    "timestamp": "timestamp",
    "timestamptz": "timestamp('UTC')",
    "date": "date",
    "time": "time",
    "interval": "interval",
    "uuid": "uuid",
    "json": "json",
    "jsonb": "json",
}
_RELATIONS = "c.relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_table_is_visible(c.oid)"
# A domain is what it is made of; a type that other than asyncpg's own text would be cut to its length has none here.
_REFLECT = f"""
    SELECT a.attname::text, b.typname::text, quote_ident(n.nspname) || '.' || quote_ident(b.typname),
        e.typname::text, quote_ident(m.nspname) || '.' || quote_ident(e.typname), a.atttypmod, a.attnum::int,
        i.indkey::int2[]::int[], a.attidentity::text, a.attgenerated::text, pg_get_expr(d.adbin, d.adrelid)
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_type AS t ON t.oid = a.atttypid
    JOIN pg_type AS b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
    JOIN pg_namespace AS n ON n.oid = b.typnamespace
    LEFT JOIN pg_type AS e ON e.oid = b.typelem AND b.typcategory = 'A'
    LEFT JOIN pg_namespace AS m ON m.oid = e.typnamespace
    LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relname = $1 AND {_RELATIONS} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""  # noqa: S608 - a constant
_VERSION = """
    SELECT count(*), sum(hashint8extended(a.attrelid::bigint * 2048 + a.attnum, a.xmin::text::bigint)),
        (SELECT max(oid::bigint) FROM pg_constraint WHERE contype = 'p')
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    WHERE a.attnum > 0 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        AND c.relnamespace = ANY (current_schemas(false)::regnamespace[])
"""


class PostgreSQLDialect(SQLDialect):
    """PostgreSQL's SQL."""

    mark = MARK
    overriding = " OVERRIDING SYSTEM VALUE"
    shares_parameters = True
    merges = True

    def quote(self, name: str) -> str:
        """Return a name in double quotes."""
        return '"' + name.replace('"', '""') + '"'

    def in_list(self, names: Sequence[str], count: int, of: str = "") -> str:
        """Return the condition that a key is one of ``count`` parameters, which take the types of its columns."""
        return f"{self.tuple_of(names, of)} IN ({', '.join([self.marks(len(names))] * count)})"

    # values

    def column_type(self, datatype: Parsed) -> str:
        """Return the type of a column."""
        found = self.value_type(datatype)
        return f'{found} COLLATE "C"' if found in {"text", "text[]"} else found

    def value_type(self, datatype: Parsed) -> str:
        """Return the type of a value."""
        if datatype.kind == "integer":
            signed, bits = datatype.arguments
            return (_INTEGERS if signed else _UNSIGNED)[bits]
        if datatype.kind == "timestamp":
            return "timestamp" if datatype.arguments == (None,) else "timestamptz"
        if datatype.kind == "array":
            return f"{self.value_type(datatype.arguments[0])}[]" if _is_plain(datatype) else "json"
        return _TYPES.get(datatype.kind, "text")

    def to_storage(self, datatype: Parsed) -> ToStorage | None:
        """Return what turns a checked value into what asyncpg takes."""
        if datatype.kind == "array" and _is_plain(datatype):
            one = self.to_storage(datatype.arguments[0])
            return None if one is None else _each(one)
        return _TO_STORAGE.get(datatype.kind)

    def from_storage(self, datatype: Parsed, *, computed: bool) -> FromStorage | None:
        """Return what turns a column into Python's values."""
        one = _reader(datatype, computed=computed)
        if one is _read_text:
            return read_texts
        if one is None:
            return None
        return lambda values: [None if each is None else one(each) for each in values]

    def dtype(self, datatype: Parsed) -> str:
        """Return how ibis is told of a column."""
        if datatype.kind in OWN:
            return "binary"
        return "interval('us')" if datatype.kind == "interval" else datatype.text

    def compile(self, expression: Any) -> str:
        """Return an ibis expression's SQL."""
        from asyncdl.databackend.sql_postgresql_compiler import to_sql  # noqa: PLC0415 - it imports ibis, which is heavy

        return to_sql(expression)

    # tables

    async def tables(self, fetch: Fetch) -> list[str]:
        """Return the names of all tables and views that the search path leads to, but PostgreSQL's own."""
        rows = await fetch(
            "SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "  # noqa: S608
            f"WHERE {_RELATIONS} AND n.nspname NOT IN ('pg_catalog', 'information_schema')",
            (),
        )
        return [row[0] for row in rows]

    async def reflect(self, fetch: Fetch, table: str) -> list[ReflectedColumn]:
        """Return a table's columns as the system catalogs have them."""
        if len(table.encode()) > NAME_LIMIT:  # which PostgreSQL would cut, or asyncpg refuse
            return []
        return [_reflected(*row) for row in await fetch(_REFLECT, (table,))]

    async def schema_version(self, fetch: Fetch) -> Any:
        """Return a hash of which transactions last wrote the descriptions of the columns."""
        return (await fetch(_VERSION, ()))[0]

    def create_table(
        self, table: TableSchema, types: Sequence[str], *, not_null: Sequence[str] = (), numbered: bool = False
    ) -> str:
        """Return the statement; with ``numbered`` a single integer key is an identity column."""
        key = table.primary_key
        columns = []
        for name, kind in zip(table.columns, types, strict=True):
            identity = " GENERATED BY DEFAULT AS IDENTITY" if numbered and key == (name,) and kind in _KEYS else ""
            columns.append(f"{self.quote(name)} {kind}{identity}{' NOT NULL' if name in (*key, *not_null) else ''}")
        if key:
            columns.append(f"PRIMARY KEY ({self.quoted(key)})")
        return f"CREATE TABLE IF NOT EXISTS {self.quote(table.name)} ({', '.join(columns)})"

    async def number(self, tx: SQLTransaction, table: str, column: str, count: int, *, above: int) -> list[int]:
        """Return numbers of the column's own sequence, behind those that were given past it."""
        tx.defer(*tx.database.lock(f"numbers of {table}"))
        largest = f"SELECT max({self.quote(column)}) FROM {self.quote(table)}"  # noqa: S608 - quoted
        found, sequence = await tx.run(
            Statement(largest, fetch=True),
            Statement(
                "SELECT pg_get_serial_sequence($1, $2), pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute AS a "
                "LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum "
                "WHERE a.attrelid = to_regclass($1) AND a.attname = $2",
                (self.quote(table), column),
                fetch=True,
            ),
        )
        [(name, default)] = sequence.rows
        above = max(above, found.rows[0][0] or 0)
        text = "" if name is None else name.replace("'", "''")
        following = default if name is None else f"nextval('{text}')"
        draw = Statement(f"SELECT {following} FROM generate_series(1, $1)", (count,), fetch=True)  # noqa: S608
        (drawn,) = await tx.run(draw)
        if drawn.rows[0][0] <= above and name is not None:
            _, drawn = await tx.run(Statement("SELECT setval($1::text::regclass, $2)", (name, above), fetch=True), draw)
        return [int(row[0]) for row in drawn.rows]

    def hold(self, table: str, where: str) -> list[Statement]:
        """Return the statement that locks rows.

        An update that had to wait for a row looks at that row anew, and at nothing else that its values come from.
        """
        condition = f" WHERE {where}" if where else ""
        rows = f"SELECT 1 FROM {self.quote(table)}{condition} FOR UPDATE"  # noqa: S608 - quoted, compiled
        return [Statement(f"SELECT count(*) FROM ({rows}) AS held", quiet=True)]  # noqa: S608

    def is_query_error(self, error: BaseException) -> bool:
        """Return whether PostgreSQL, or asyncpg for its types, refused the statement as such."""
        if not isinstance(error, StoreError) or isinstance(error, StoreUnavailableError):
            return False
        state = sqlstate(error)
        return state.startswith(_QUERY_ERRORS) if state else isinstance(error.__cause__, (TypeError, ValueError))


def _reflected(
    name: str,
    kind: str,
    full: str,
    element: str | None,
    full_element: str | None,
    modifier: int,
    place: int,
    key: list[int] | None,
    identity: str,
    generated: str,
    default: str | None,
) -> ReflectedColumn:
    if element is None:
        datatype = _decimal(modifier) if kind == "numeric" else _DATATYPES.get(kind, "string")
    else:
        datatype = f"array<{_DATATYPES.get(element, 'string')}>"
    numbered = key == [place] and bool(identity or (default or "").startswith("nextval("))
    return ReflectedColumn(
        name,
        datatype,
        key.index(place) + 1 if key and place in key else 0,
        numbered,
        type=full if full_element is None else f"{full_element}[]",
        default=bool(default or identity or generated),
    )


def _decimal(modifier: int) -> str:
    if modifier < 0:
        return "decimal"
    precision, scale = (modifier - 4) >> 16 & 0xFFFF, (modifier - 4) & 0x7FF
    return f"decimal({precision}, {scale})" if scale <= precision else "decimal"


def _is_plain(datatype: Parsed) -> bool:
    return datatype.arguments[0].kind in _ELEMENTS


# values to storage


def _each(one: Callable[[Any], Any]) -> ToStorage:
    return lambda values: [None if each is None else one(each) for each in values]


def _store_decimal(value: Decimal) -> Decimal:
    exponent = value.as_tuple().exponent
    if value.adjusted() >= _DIGITS or (isinstance(exponent, int) and -exponent > _PLACES):
        raise refuse(
            "decimal on PostgreSQL", value, f"it holds {_DIGITS} digits before the point and {_PLACES} after it"
        )
    return value


def _store_json(value: Any) -> str:
    return codec.dumps(value).decode()


_TO_STORAGE: dict[str, ToStorage] = {
    "string": store_text,
    "decimal": _store_decimal,
    "json": _store_json,
    "struct": _store_json,
    "map": _store_json,
    "array": _store_json,
}


# storage to values


def _reader(datatype: Parsed, *, computed: bool) -> Callable[[Any], Any] | None:
    """Return what turns one value that is not None into Python's."""
    kind = datatype.kind
    if kind == "array" and _is_plain(datatype):
        return _array_reader(_reader(datatype.arguments[0], computed=computed))
    if kind == "integer":
        return int if computed or datatype.arguments == (False, 64) else None
    if kind == "timestamp":
        return _moment_reader(datatype, computed=computed)
    if computed and kind in _COMPUTED:
        return _COMPUTED[kind]
    return _FROM_STORAGE.get(kind)


def _array_reader(one: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [None if each is None else read(each) for each in value]
        return value if one is None else one(value)

    return lambda value: codec.loads(value) if isinstance(value, str) else read(value)


def _moment_reader(datatype: Parsed, *, computed: bool) -> Callable[[Any], Any] | None:
    (zone,) = datatype.arguments
    if zone == "UTC" or (zone is None and not computed):
        return None
    if zone is None:
        return lambda value: value.replace(tzinfo=None) if isinstance(value, datetime) else value
    into = zone_of(zone)
    return lambda value: value.astimezone(into)


def _read_text(value: Any) -> str:
    return read_text(value if isinstance(value, str) else str(value))


def _read_json(value: Any) -> Any:
    return codec.loads(value) if isinstance(value, str) else value


_FROM_STORAGE: dict[str, Callable[[Any], Any]] = {
    "string": _read_text,
    "json": _read_json,
    "struct": _read_json,
    "map": _read_json,
    "array": _read_json,
}
# What PostgreSQL computes in numeric, or with a time of day, where ibis says otherwise.
_COMPUTED: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "decimal": lambda value: value if isinstance(value, Decimal) else Decimal(repr(value)),
    "date": lambda value: value.date() if isinstance(value, datetime) else value,
}
