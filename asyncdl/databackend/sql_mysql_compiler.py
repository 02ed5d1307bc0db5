"""ibis' compiler for MySQL, taught how asyncdl stores values there (see `asyncdl.databackend.sql_mysql`)."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Any

import ibis.expr.operations as ops
import sqlglot.expressions as sge
from ibis.backends.sql.compilers.base import SQLGlotCompiler
from ibis.backends.sql.compilers.mysql import MySQLCompiler as IbisMySQLCompiler
from ibis.common.exceptions import UnsupportedOperationError

from asyncdl.databackend.sql_compiling import compile_with
from asyncdl.databackend.sql_mysql import is_native

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


class MySQLCompiler(IbisMySQLCompiler):  # type: ignore[misc]  # ibis has no types
    """Compiles expressions over tables as asyncdl stores them."""

    __slots__ = ("collation",)

    def __init__(self, collation: str) -> None:
        super().__init__()
        self.collation = collation

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
            return sge.paren(sge.Add(this=compiled, expression=sge.Literal.number("0e0")))
        return compiled

    def visit_NonNullLiteral(self, op: Any, *, value: Any, dtype: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile a literal in the form in which columns of its type are stored, without rounding it."""
        if dtype.is_string() and ("\0" in value or "\\" in value):  # NUL is the driver's mark; backslashes escape
            return sge.Introducer(this=sge.Var(this="_utf8mb4"), expression=sge.HexString(this=value.encode().hex()))
        if dtype.is_floating():
            if not math.isfinite(value):
                raise UnsupportedOperationError("MySQL holds neither NaN nor infinities")
            text = repr(float(value))
            return sge.Literal.number(text if "e" in text else f"{text}e0")
        if dtype.is_decimal() and Decimal(value).is_finite():
            return sge.Literal.number(format(value, "f"))
        if dtype.is_timestamp() and isinstance(value, datetime):
            moment = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
            return self.f.anon.timestamp(sge.convert(moment.isoformat(" ")))
        if dtype.is_date() and isinstance(value, date):
            return self.f.anon.date(sge.convert(value.isoformat()[:10]))
        if dtype.is_time() and isinstance(value, time):
            return self.f.anon.time(sge.convert(value.isoformat()))
        if dtype.is_uuid():
            return sge.convert(str(value))
        return super().visit_NonNullLiteral(op, value=value, dtype=dtype)

    def visit_Equals(self, op: Any, *, left: Any, right: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile an equality that can use an index: texts of asyncdl's tables compare exactly.

        Those of other programs' tables may be in a collation that does not compare with that of outputs by itself: outputs are
        looked up by theirs.
        """
        sides = [_is_of_outputs(each) for each in (op.left, op.right)]
        if sides == [False, True]:
            left, right = right, left
        if set(sides) == {False, True}:
            in_utf8 = sge.Cast(
                this=right, to=sge.DataType(this=sge.DataType.Type.CHARACTER_SET, kind=sge.Var(this="utf8mb4"))
            )
            right = sge.Collate(this=in_utf8, expression=sge.Var(this=self.collation))
        return SQLGlotCompiler.binop(self, sge.EQ, left, right)

    def visit_StartsWith(self, op: Any, *, arg: Any, start: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile a comparison of characters, not of bytes."""
        return self.f.anon.left(arg, self.f.anon.char_length(start)).eq(start)

    def visit_EndsWith(self, op: Any, *, arg: Any, end: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile a comparison of characters, not of bytes."""
        return self.f.anon.right(arg, self.f.anon.char_length(end)).eq(end)

    def visit_StringLength(self, op: Any, *, arg: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile the number of characters."""
        return self.f.anon.char_length(arg)

    def visit_JSONGetItem(self, op: Any, *, arg: Any, index: Any) -> Any:  # noqa: N802 - ibis' name
        """Compile to what returns JSON; keys are quoted, so that they may hold any character."""
        parts = ("$[", "]") if op.index.dtype.is_integer() else ('$."', '"')
        return self.f.json_extract(arg, self.f.concat(sge.convert(parts[0]), index, sge.convert(parts[1])))


def _is_of_outputs(value: Any) -> bool | None:
    """Return whether a text is a column of a listener's outputs, None for what is no column of texts."""
    if not isinstance(value, ops.Field) or not value.dtype.is_string():
        return None
    relation = value.rel
    while (parent := getattr(relation, "parent", None)) is not None:
        relation = parent
    return isinstance(relation, ops.UnboundTable) and relation.name.startswith("_outputs_")


@cache
def _compiler(collation: str) -> MySQLCompiler:
    return MySQLCompiler(collation)


def to_sql(expression: Any, collation: str) -> str:
    """Return an ibis expression's SQL; ``collation`` is that of asyncdl's texts."""
    return compile_with(_compiler(collation), expression)
