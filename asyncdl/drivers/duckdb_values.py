"""Statements, rows and errors between DuckDB and Python, by way of Arrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from asyncdl.drivers.arrow_rows import rows_of
from asyncdl.drivers.sql import Outcome, Statement
from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    import duckdb

_ROWS = "_asyncdl_rows"
"""The name by which a statement knows the rows that it is given."""
_AS_TEXT: dict[str, Callable[[Any], Any]] = {"UUID": str}
"""How Arrow is given values of a type that it does not have."""


def translate(error: Exception, url: str, *, opening: bool = False) -> AsyncDLError:
    """Return asyncdl's error for one of DuckDB's, by its class."""
    import duckdb  # noqa: PLC0415 - loaded when a database is opened

    message = f"{url}: {error}"
    if isinstance(error, duckdb.ConstraintException):
        # one class for all constraints: what it says tells which
        kind = DuplicateKeyError if "duplicate key" in str(error).lower() else ConstraintError
        return kind(message)
    if isinstance(error, duckdb.TransactionException):
        return ConflictError(f"{message} (another connection of this process writes the same rows)")
    if isinstance(error, (duckdb.ConnectionException, duckdb.InterruptException)):
        return ConfigurationError(message) if opening else ClosedError(message)
    if opening and not isinstance(error, (duckdb.IOException, duckdb.FatalException, duckdb.PermissionException)):
        return ConfigurationError(message)  # an option that DuckDB does not know, or another than those it is open with
    if opening or isinstance(error, (duckdb.IOException, duckdb.FatalException, duckdb.PermissionException)):
        return StoreUnavailableError(message)
    return StoreError(message)


def execute(raw: duckdb.DuckDBPyConnection, sql: str, params: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
    """Run one statement."""
    import duckdb  # noqa: PLC0415 - it is loaded

    try:
        return raw.execute(sql, list(params)) if params else raw.execute(sql)
    except (RuntimeError, UnicodeError) as error:  # of the bindings: a text that is no Unicode
        raise duckdb.InvalidInputException(str(error)) from error


def run(raw: duckdb.DuckDBPyConnection, statement: Statement) -> Outcome:
    """Run a statement of a transaction."""
    if statement.many:
        return _run_rows(raw, statement)
    params = statement.params
    if statement.types:
        params = [_parameter(*pair) for pair in zip(params, statement.types, strict=True)]
    result = execute(raw, statement.sql, params)
    if statement.fetch:
        return Outcome(-1, rows_of(result.to_arrow_table()))
    counted = result.fetchone() if result.description and result.description[0][0] == "Count" else None
    return Outcome(-1 if counted is None else counted[0], [])


def _parameter(value: Any, kind: str) -> Any:
    """Return a parameter with its type, where a dict may be a STRUCT or a MAP."""
    import duckdb  # noqa: PLC0415 - loaded when a database is opened

    if value is None or not kind.startswith(("MAP(", "STRUCT(")):
        return value
    return duckdb.Value(_mapped(value, is_map=kind.startswith("MAP(")), duckdb.sqltype(kind))


def _mapped(value: Any, *, is_map: bool = False) -> Any:
    """Return a value, its pairs as DuckDB's driver wants maps: a list of keys and one of values."""
    if isinstance(value, dict):
        return {name: _mapped(each) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    if is_map or (value and all(isinstance(each, tuple) for each in value)):
        return {"key": [key for key, _ in value], "value": [_mapped(each) for _, each in value]}
    return [_mapped(each) for each in value]


def _run_rows(raw: duckdb.DuckDBPyConnection, statement: Statement) -> Outcome:
    """Run an insert of many rows in one step: its ``VALUES`` become a select from an Arrow table."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a database is opened

    if not statement.params:
        return Outcome(0, [])
    columns = zip(*statement.params, strict=True)
    types = statement.types or ("",) * len(statement.params[0])
    arrays = [_array(raw, values, kind) for values, kind in zip(columns, types, strict=True)]
    names = [f"c{at}" for at in range(len(arrays))]
    given = iter(f"CAST({name} AS {kind})" if kind else name for name, kind in zip(names, types, strict=True))
    parts = [next(given) if part == "?" else part for part in statement.row[1:-1].split(", ")]
    select = ", ".join(f"{part} AS col{at}" for at, part in enumerate(parts))
    sql = statement.sql.replace(f"VALUES {statement.row}", f"SELECT {select} FROM {_ROWS}", 1)  # noqa: S608 - our own text
    raw.register(_ROWS, pa.table(arrays, names))
    try:
        raw.execute(sql)
    finally:
        raw.unregister(_ROWS)
    return Outcome(len(statement.params), [])


def _array(raw: duckdb.DuckDBPyConnection, values: Sequence[Any], kind: str) -> Any:
    """Return a column as Arrow has it, in the type in which DuckDB shows values of this SQL type."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a database is opened

    if not kind:
        return pa.array(values)
    as_text = _AS_TEXT.get(kind)
    if as_text is not None:
        values = [None if each is None else as_text(each) for each in values]
    return pa.array(values, _arrow_type(raw, kind))


_arrow_types: dict[str, Any] = {}


def _arrow_type(raw: duckdb.DuckDBPyConnection, kind: str) -> Any:
    found = _arrow_types.get(kind)
    if found is None:
        table = raw.execute(f"SELECT CAST(NULL AS {kind}) AS v").to_arrow_table()
        found = _arrow_types[kind] = table.schema.field(0).type
    return found
