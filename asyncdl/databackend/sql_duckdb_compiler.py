"""ibis' compiler for DuckDB, taught how asyncdl stores values there (see `asyncdl.databackend.sql_duckdb`)."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Any

import ibis.expr.operations as ops
import sqlglot.expressions as sge
from ibis.backends.sql.compilers.base import SQLGlotCompiler
from ibis.backends.sql.compilers.duckdb import DuckDBCompiler as IbisDuckDBCompiler

from asyncdl.databackend.sql_compiling import compile_with
from asyncdl.databackend.sql_duckdb import is_native

# Give one of their operands back, or are told by their name what to do: a decimal stays text in them.
_PASSING = (
    ops.Alias,
    ops.Arbitrary,
    ops.Coalesce,
    ops.First,
    ops.IfElse,
    ops.Lag,
    ops.Last,
    ops.Lead,
    ops.NthValue,
    ops.ScalarSubquery,
    ops.SearchedCase,
    ops.WindowFunction,
)


class DuckDBCompiler(IbisDuckDBCompiler):  # type: ignore[misc]  # ibis has no types
    """Compiles expressions over tables as asyncdl stores them."""

    __slots__ = ()

    def to_sqlglot(self, expr: Any, *, limit: Any = None, params: Any = None) -> Any:
        """Compile an expression; geometries stay what they are."""
        return SQLGlotCompiler.to_sqlglot(self, expr, limit=limit, params=params)

    def visit_node(self, op: Any, **kwargs: Any) -> Any:
        """Compile one node, its decimal operands that are stored as text prepared for computing."""
        if isinstance(op, ops.Value) and not isinstance(op, (ops.Field, ops.Literal)):
            for name, argument in zip(op.__argnames__, op.__args__, strict=True):
                kwargs[name] = self._operand(op, argument, kwargs[name])
        return super().visit_node(op, **kwargs)

    def _operand(self, op: Any, argument: Any, compiled: Any) -> Any:
        if isinstance(argument, tuple) and isinstance(compiled, tuple):
            return tuple(self._operand(op, *pair) for pair in zip(argument, compiled, strict=True))
        if not isinstance(argument, ops.Value) or isinstance(argument, ops.Literal):
            return compiled
        exact = isinstance(op, _PASSING) or (isinstance(op, ops.Cast) and op.to.is_string())
        dtype = argument.dtype
        if dtype.is_decimal() and not is_native(dtype.precision, dtype.scale) and not exact:
            return sge.Cast(this=compiled, to=sge.DataType.build("double"))
        return compiled

    def visit_NonNullLiteral(self, op: Any, *, value: Any, dtype: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile a literal in the form in which columns of its type are stored, without rounding it."""
        if dtype.is_string() and "\0" in value:
            return self.f.decode(_blob(value.encode()))
        if dtype.is_binary():
            return _blob(value)
        if dtype.is_decimal() and value.is_finite():
            digits, scale = len(value.as_tuple().digits), -value.as_tuple().exponent
            fits = 0 <= scale <= 38 and digits <= 38
            return _cast(str(value), f"decimal({max(digits, scale)}, {scale})" if fits else "double")
        if dtype.is_timestamp() and isinstance(value, datetime):
            moment = value if value.tzinfo is None else value.astimezone(UTC)
            return _cast(moment.isoformat(" "), "timestamp" if value.tzinfo is None else "timestamptz")
        if dtype.is_date() and isinstance(value, date):
            return _cast(value.isoformat(), "date")
        if dtype.is_time() and isinstance(value, time):
            return _cast(value.isoformat(), "time")
        return super().visit_NonNullLiteral(op, value=value, dtype=dtype)


def _cast(text: str, to: str) -> Any:
    return sge.Cast(this=sge.convert(text), to=sge.DataType.build(to, dialect="duckdb"))


def _blob(data: bytes) -> Any:
    return sge.Anonymous(this="unhex", expressions=[sge.convert(data.hex())])


_compiler = DuckDBCompiler()


def to_sql(expression: Any) -> str:
    """Return an ibis expression's SQL."""
    return compile_with(_compiler, expression)
