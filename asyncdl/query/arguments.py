"""Arguments of recorded calls: plain values, queries, ibis' deferred ``_``, functions; as steps."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from asyncdl.errors import DatatypeError, QueryError
from asyncdl.query.nodes import Node, literal, make, value_of
from asyncdl.query.vocabulary import BINARY, FUNCTIONS, SELECTORS, UNARY

DEFERRED = make("deferred", "_")
"""The step that is ibis' ``_``: what it stands for is known to the ibis method that gets it."""

_TYPES: dict[Any, str] = {
    bool: "boolean",
    int: "int64",
    float: "float64",
    str: "string",
    bytes: "binary",
    datetime: "timestamp",
    date: "date",
    time: "time",
    Decimal: "decimal",
    UUID: "uuid",
}
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
_NESTED: ContextVar[int] = ContextVar("_NESTED", default=0)


class Recorded:
    """Something that has been recorded."""

    __slots__ = ("_node",)

    _node: Node


class Recorder:
    """Turns arguments into steps.

    Parameters
    ----------
    wrap
        Makes the value that a user's function gets out of a step.
    table
        What ``_`` and the parameter of a function stand for; None: that is left to the ibis method that gets them.
    functions
        Whether functions can be recorded here at all.
    """

    def __init__(self, wrap: Callable[[Node], Any], table: Node | None = None, *, functions: bool = True) -> None:
        self._wrap = wrap
        self._table = table
        self._functions = functions

    def record(self, value: Any) -> Node:
        """Return the step that is a value.

        Raises
        ------
        QueryError
            It cannot be stored.
        """
        try:
            return self._record(value)
        except RecursionError as error:
            raise QueryError("an argument of a query is nested too deeply, or holds itself") from error

    def _record(self, value: Any) -> Node:
        if isinstance(value, Recorded):
            return value._node
        if _of_ibis(value):
            return self._ibis(value)
        if isinstance(value, type) and value in _TYPES:
            return literal(_TYPES[value])
        if isinstance(value, _FUNCTIONS):
            return self._function(value)
        if _is_special(value):
            return self._container(value)
        try:
            return literal(value)
        except DatatypeError as error:
            raise QueryError(
                f"{error}; a query takes plain values, queries, lambdas and ibis' `_`: convert it to plain values first"
            ) from error

    def _container(self, value: Any) -> Node:
        if isinstance(value, slice):
            return make("slice", inputs=[self._record(each) for each in (value.start, value.stop, value.step)])
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise QueryError(f"the keys of a dict of expressions must be str, not {[*value]!r:.100}")
            return _gather("dict", [self._record(each) for each in value.values()], list(value))
        if isinstance(value, (set, frozenset)):
            raise QueryError("a set of expressions has no order; pass a list")
        return _gather("tuple" if isinstance(value, tuple) else "list", [self._record(each) for each in value])

    def _function(self, function: Callable[..., Any]) -> Node:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, Recorded):
            name = getattr(function, "__name__", "?")
            raise QueryError(
                f"{name} is a method of queries, and was not called; a column of that name is table[{name!r}]"
            )
        if not self._functions:
            raise QueryError(
                f"{function!r} is called with names, so it cannot be recorded; pass a dict or list of names"
            )
        if self._table is not None:
            return self._record(function(self._wrap(self._table)))
        level = _NESTED.get()
        names = _parameters(function)
        token = _NESTED.set(level + 1)
        try:
            result = function(*(self._wrap(make("param", f"{level}.{at}")) for at in range(len(names))))
            body = self._record(result)
        finally:
            _NESTED.reset(token)
        return make("function", str(level), [body], names)

    def _ibis(self, value: Any) -> Node:
        deferred = sys.modules["ibis.common.deferred"]
        datatypes = sys.modules.get("ibis.expr.datatypes")
        if isinstance(value, deferred.Deferred):
            return self._resolver(value._resolver)
        if isinstance(value, deferred.Resolver):
            return self._resolver(value)
        if datatypes is not None and isinstance(value, datatypes.DataType):
            return literal(str(value))
        if isinstance(value, Mapping):
            return self._record(dict(value))
        raise QueryError(
            f"a query cannot hold an ibis {type(value).__name__}; start from db['table'] instead of an ibis table, write "
            f"values as they are, and take functions from `asyncdl.query.fn` (fn.row_number(), fn.literal(...), "
            f"fn.s.numeric())"
        )

    def _resolver(self, resolver: Any) -> Node:
        """Return a deferred expression's step: its tree is read, nothing of it is run."""
        kind = type(resolver).__name__
        read = getattr(self, f"_read_{kind.lower()}", None)
        if read is None:
            raise QueryError(f"this deferred expression cannot be stored: {resolver!r}")
        node: Node = read(resolver)
        return node

    def _read_variable(self, resolver: Any) -> Node:
        if resolver.name != "_":
            raise QueryError(f"a query takes ibis' `_`, not the variable {resolver.name!r}")
        return self._table or DEFERRED

    def _read_just(self, resolver: Any) -> Node:
        return self._record(resolver.value)

    def _read_justunhashable(self, resolver: Any) -> Node:
        return self._record(resolver.value.obj)

    def _read_attr(self, resolver: Any) -> Node:
        return make("attr", _name(resolver.name), [self._resolver(resolver.obj)])

    def _read_item(self, resolver: Any) -> Node:
        return make("item", inputs=[self._resolver(resolver.obj), self._resolver(resolver.indexer)])

    def _read_unaryoperator(self, resolver: Any) -> Node:
        return make("op", _operator(resolver.func, UNARY), [self._resolver(resolver.arg)])

    def _read_binaryoperator(self, resolver: Any) -> Node:
        sides = [self._resolver(resolver.left), self._resolver(resolver.right)]
        return make("op", _operator(resolver.func, BINARY), sides)

    def _read_mapping(self, resolver: Any) -> Node:
        return _gather("dict", [self._resolver(each) for each in resolver.values.values()], list(resolver.values))

    def _read_sequence(self, resolver: Any) -> Node:
        kind = "tuple" if resolver.typ is tuple else "list"
        return _gather(kind, [self._resolver(each) for each in resolver.values])

    def _read_call(self, resolver: Any) -> Node:
        function = resolver.func
        arguments = [self._resolver(each) for each in (*resolver.args, *resolver.kwargs.values())]
        if type(function).__name__ == "Attr":
            receiver = self._resolver(function.obj)
            return make("call", _name(function.name), [receiver, *arguments], resolver.kwargs)
        called = getattr(function, "value", None)
        name = getattr(called, "__name__", "")
        if getattr(called, "__module__", "") == "ibis.selectors" and name in SELECTORS:
            return make("fn", f"s.{name}", arguments, resolver.kwargs)
        if str(getattr(called, "__module__", "")).startswith("ibis.expr.") and name in FUNCTIONS:
            return make("fn", name, arguments, resolver.kwargs)
        raise QueryError(f"this deferred call cannot be stored: {resolver!r}")


def _gather(kind: str, inputs: list[Node], keys: Sequence[str] = ()) -> Node:
    """Return the step that is a container: of plain values, a plain value too."""
    if not all(each.kind == "literal" for each in inputs):
        return make(kind, inputs=inputs, keywords=keys)
    values = [value_of(each) for each in inputs]
    if kind == "dict":
        return literal(dict(zip(keys, values, strict=True)))
    return literal(tuple(values) if kind == "tuple" else values)


def _name(resolver: Any) -> str:
    name = getattr(resolver, "value", None)
    if not isinstance(name, str):
        raise QueryError(f"this deferred expression has an attribute without a name: {resolver!r}")
    return name


def _operator(function: Any, known: Mapping[str, Any]) -> str:
    for name, (_, does) in known.items():
        if does is function:
            return name
    name = "invert" if function.__name__ in {"inv", "invert"} else function.__name__
    if name not in known:
        raise QueryError(f"a query has no operator {name!r}")
    return name


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise QueryError(f"{function!r} has no signature, so it cannot be recorded; write a lambda") from error
    names = [each.name for each in found if each.kind in {each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD}]
    if len(names) != len(found) or len(names) not in {1, 2}:
        raise QueryError(
            f"{function!r} takes {', '.join(map(str, found)) or 'nothing'}; a recorded function takes a value or two"
        )
    return names


def _of_ibis(value: Any) -> bool:
    return "ibis.common.deferred" in sys.modules and type(value).__module__.partition(".")[0] == "ibis"


def _is_special(value: Any) -> bool:
    """Whether a container holds something that is no plain value."""
    if isinstance(value, slice):
        return True
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(is_step(each) or isinstance(each, type) or _is_special(each) for each in value)
    if isinstance(value, Mapping):
        return any(is_step(each) or isinstance(each, type) or _is_special(each) for each in value.values())
    return False


def is_step(value: Any) -> bool:
    """Whether something is an expression, or will be one: a query, a function, a deferred or other object of ibis."""
    return isinstance(value, (Recorded, *_FUNCTIONS)) or _of_ibis(value)
