"""ibis' compiler for SQLite, taught how asyncdl stores values there (see `asyncdl.databackend.sql_sqlite`)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import ibis.expr.operations as ops
import sqlglot.expressions as sge
from ibis.backends.sql.compilers.sqlite import SQLiteCompiler as IbisSQLiteCompiler

from asyncdl.databackend.sql_compiling import compile_with

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
# SQL would take the text of NaN for 0: it is skipped, as NULL is.
_COMPUTING = (ops.NumericBinary, ops.MathUnary, ops.Negate, ops.Sum, ops.Mean, ops.Variance, ops.StandardDev)
_OWN = {ops.IsNan, ops.IsInf}


class SQLiteCompiler(IbisSQLiteCompiler):  # type: ignore[misc]  # ibis has no types
    """Compiles expressions over tables as asyncdl stores them."""

    __slots__ = ()

    UNSUPPORTED_OPS = tuple(op for op in IbisSQLiteCompiler.UNSUPPORTED_OPS if op not in _OWN)
    NAN = sge.convert("NaN")

    def visit_node(self, op: Any, **kwargs: Any) -> Any:
        """Compile one node, its decimal and NaN operands prepared for computing."""
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
        if argument.dtype.is_decimal() and not exact:
            return sge.Cast(this=compiled, to=sge.DataType.build("double"))
        if argument.dtype.is_floating() and isinstance(argument, ops.Field) and isinstance(op, _COMPUTING):
            return self.f.nullif(compiled, self.NAN)
        return compiled

    def visit_NonNullLiteral(self, op: Any, *, value: Any, dtype: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile a literal in the form in which columns of its type are stored."""
        if dtype.is_binary():
            return sge.HexString(this=value.hex())
        if dtype.is_string() and "\0" in value:
            return sge.Cast(this=sge.HexString(this=value.encode().hex()), to=sge.DataType.build("text"))
        if dtype.is_timestamp() and isinstance(value, datetime):
            moment = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo is not None else value
            return sge.convert(moment.isoformat(" "))
        return super().visit_NonNullLiteral(op, value=value, dtype=dtype)

    def visit_JSONGetItem(self, op: Any, *, arg: Any, index: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile to the operator that returns JSON: ``json_extract`` would lose whether a string was one."""
        return sge.paren(sge.JSONExtract(this=arg, expression=index))

    def visit_IsNan(self, op: Any, *, arg: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile the test for the text that NaN is stored as."""
        return arg.eq(self.NAN)

    def visit_IsInf(self, op: Any, *, arg: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile the test for either infinity."""
        return arg.isin(self.POS_INF, self.NEG_INF)


_compiler = SQLiteCompiler()


def to_sql(expression: Any) -> str:
    """Return an ibis expression's SQL."""
    return compile_with(_compiler, expression)
