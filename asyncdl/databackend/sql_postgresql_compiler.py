"""ibis' compiler for PostgreSQL, taught how asyncdl stores values there (see `asyncdl.databackend.sql_postgresql`)."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Any

import sqlglot.expressions as sge
from ibis.backends.sql.compilers.base import SQLGlotCompiler
from ibis.backends.sql.compilers.postgres import PostgresCompiler

from asyncdl.databackend.sql_compiling import compile_with
from asyncdl.databackend.sql_postgresql_text import store_text


class PostgreSQLCompiler(PostgresCompiler):  # type: ignore[misc]  # ibis has no types
    """Compiles expressions over tables as asyncdl stores them."""

    __slots__ = ()

    def to_sqlglot(self, expr: Any, *, limit: Any = None, params: Any = None) -> Any:
        """Compile an expression; JSON stays JSON, which the driver returns as text."""
        return SQLGlotCompiler.to_sqlglot(self, expr, limit=limit, params=params)

    def visit_NonNullLiteral(self, op: Any, *, value: Any, dtype: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile a literal in the form in which columns of its type are stored, without rounding it."""
        if dtype.is_string():
            return sge.convert(store_text(value))
        if dtype.is_binary():
            return _cast("\\x" + value.hex(), "bytea")
        if dtype.is_decimal():
            return _cast(str(value), "numeric")
        if dtype.is_timestamp() and isinstance(value, datetime):
            return _cast(value.isoformat(" "), "timestamp" if value.tzinfo is None else "timestamptz")
        if dtype.is_date() and isinstance(value, date):
            return _cast(value.isoformat(), "date")
        if dtype.is_time() and isinstance(value, time):
            return _cast(value.isoformat(), "time")
        return super().visit_NonNullLiteral(op, value=value, dtype=dtype)

    def visit_JSONGetItem(self, op: Any, *, arg: Any, index: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile to the operator that both of PostgreSQL's JSON types have."""
        return sge.paren(sge.JSONExtract(this=arg, expression=index, only_json_types=True))


def _cast(text: str, to: str) -> Any:
    return sge.Cast(this=sge.convert(text), to=sge.DataType.build(to, dialect="postgres"))


_compiler = PostgreSQLCompiler()


def to_sql(expression: Any) -> str:
    """Return an ibis expression's SQL."""
    return compile_with(_compiler, expression)
