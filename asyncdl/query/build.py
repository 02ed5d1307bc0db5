"""Queries replayed on ibis' expressions.

Steps are built in order, inputs first, each once: no recursion over the length of a query. Only public methods of ibis'
expressions, and the functions that the vocabulary lists, are called.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any

from asyncdl.databackend.requests import Built, Catalog
from asyncdl.errors import AsyncDLError, QueryError, UnknownColumnError
from asyncdl.query.keys import Identity, Keys
from asyncdl.query.mentions import unknown_columns
from asyncdl.query.nodes import Node, make, value_of, walk
from asyncdl.query.ordering import ordered_below
from asyncdl.query.outputs import Joiner
from asyncdl.query.shown import brief
from asyncdl.query.vocabulary import BINARY, DENIED, UNARY

_Values = dict[bytes, Any]

_PUBLIC: dict[type, frozenset[str]] = {}  # a class's names take a millisecond to list, and do not change


def build(node: Node, catalog: Catalog) -> Built:
    """Return ibis' expression for a query and the key of its rows; see `Query.build`."""
    builder = Builder(catalog)
    expression = builder.build(node, {})
    if not builder.is_expression(expression):
        raise QueryError(f"{brief(node)} is no query: it gives a {type(expression).__name__}")
    builder.check_columns(expression, node)
    return Built(expression, builder.key(expression))


class Builder:
    """Builds one query."""

    def __init__(self, catalog: Catalog) -> None:
        import ibis  # noqa: PLC0415 - heavy: only where a query is built
        from ibis.common.deferred import Deferred  # noqa: PLC0415
        from ibis.common.selectors import Selector  # noqa: PLC0415
        from ibis.expr import types  # noqa: PLC0415
        from ibis.expr.builders import Builder as Window  # noqa: PLC0415
        from ibis.expr.types.groupby import GroupedArray, GroupedTable  # noqa: PLC0415
        from ibis.expr.types.temporal_windows import WindowedTable  # noqa: PLC0415

        self._ibis = ibis
        self._catalog = catalog
        self._keys = Keys()
        self._joiner = Joiner(catalog, self._keys, ibis)
        self._table, self._expression, self._deferred = types.Table, types.Expr, Deferred
        self._struct = types.StructValue
        self._operands = (types.Expr, Deferred, Selector)
        self._receivers = (types.Expr, Window, GroupedArray, GroupedTable, WindowedTable)
        self._grouped = GroupedTable
        classes = [each for each in vars(types).values() if isinstance(each, type) and issubclass(each, types.Expr)]
        self._methods = {name for each in classes for name in _public(each)}
        self._properties = {
            name
            for each in classes
            for name, what in vars(each).items()
            if isinstance(what, property) and name[0] != "_"
        }
        self._build: dict[str, Callable[[Node, list[Any], _Values], Any]] = {
            "table": self._build_table,
            "deferred": lambda node, inputs, known: ibis._,
            "param": self._build_param,
            "literal": lambda node, inputs, known: value_of(node),
            "list": lambda node, inputs, known: inputs,
            "tuple": lambda node, inputs, known: tuple(inputs),
            "dict": lambda node, inputs, known: dict(zip(node.keywords, inputs, strict=True)),
            "slice": lambda node, inputs, known: slice(*inputs),
            "attr": self._build_attr,
            "item": self._build_item,
            "call": self._build_call,
            "fn": self._build_fn,
            "op": self._build_op,
            "function": self._build_function,
            "outputs": lambda node, inputs, known: self._joiner.join(self._rows(node, inputs), node.keywords, node),
            "missing_outputs": lambda node, inputs, known: self._joiner.missing(
                self._rows(node, inputs), node.name, node
            ),
            "ids": self._build_ids,
            "like": self._build_like,
        }

    def is_expression(self, value: Any) -> bool:
        """Whether something is an expression of ibis that can be executed."""
        return isinstance(value, self._expression)

    def check_columns(self, rows: Any, node: Node) -> None:
        """Raise `QueryError` where a join has left two columns of one name."""
        try:
            getattr(rows, "columns", None)
        except self._ibis.common.exceptions.IbisError as error:
            raise QueryError(
                f"{brief(node)}: {error}; name them apart with lname= or rname=, or choose by .select(...)"
            ) from error

    def key(self, expression: Any) -> tuple[str, ...]:
        """Return the columns that identify the rows of an expression."""
        identity = self._keys.of(expression.op()) if isinstance(expression, self._table) else None
        return identity.key if identity else ()

    def build(self, node: Node, known: _Values) -> Any:
        """Build a graph; ``known`` holds what is built already, and gets what is built now."""
        for step in walk(node, lambda each: each.kind != "function" and each.digest not in known):
            if step.digest not in known:
                known[step.digest] = self._step(step, known)
        return known[node.digest]

    def _step(self, node: Node, known: _Values) -> Any:
        inputs = [] if node.kind == "function" else [known[each.digest] for each in node.inputs]
        try:
            return self._build[node.kind](node, inputs, known)
        except AsyncDLError:
            raise
        except Exception as error:
            # whatever ibis raises for a step, and it raises much: its own errors, TypeError, AttributeError, KeyError
            raise self._explain(node, inputs, error) from error

    def _explain(self, node: Node, inputs: list[Any], error: Exception) -> QueryError:
        receiver = inputs[0] if inputs else None
        table = receiver.table.to_expr() if isinstance(receiver, self._grouped) else receiver
        if isinstance(table, self._table):
            columns = list(table.op().schema)
            others = [list(each.op().schema) for each in inputs[1:] if isinstance(each, self._table)]
            missing = unknown_columns(node, columns, others)
            if missing:
                return _unknown(missing, columns, node)
        return QueryError(f"{brief(node)}: {str(error) or type(error).__name__}")

    # leaves

    def _build_table(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        expression = self._catalog.table(node.name)
        key = self._catalog.primary_key(node.name)
        columns = expression.op().schema
        has_key = bool(key) and all(each in columns for each in key)
        self._keys.know(expression.op(), Identity(node.name, {each: each for each in key}) if has_key else None)
        return expression

    def _build_param(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        raise QueryError("a query uses the parameter of a function outside of it")

    def _build_function(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        """Return a function that builds its body anew for what ibis passes to it."""
        params = [make("param", f"{node.name}.{at}").digest for at in range(len(node.keywords))]

        def call(values: tuple[Any, ...]) -> Any:
            return self.build(node.inputs[0], {**known, **dict(zip(params, values, strict=True))})

        # ibis looks at the number of parameters
        return (lambda x: call((x,))) if len(params) == 1 else (lambda x, y: call((x, y)))

    # columns

    def _build_attr(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        receiver, name = inputs[0], node.name
        if isinstance(receiver, self._table):
            return self._column(receiver, name, node)
        if isinstance(receiver, self._deferred):
            nested = node.inputs[0].kind != "deferred" and name in self._properties
            return getattr(receiver, name) if nested else receiver[name]
        if isinstance(receiver, self._struct) and name in receiver.names:
            return receiver[name]
        if isinstance(receiver, self._receivers):
            found = (
                getattr(receiver, name) if self._may(receiver, name) or isinstance(receiver, self._grouped) else None
            )
            if isinstance(found, self._receivers):
                return found
        what = f"{name} is a method: call it" if self._may(receiver, name) else f"there is no {name}"
        raise QueryError(f"{brief(node)}: {what}{_suggestion(name, _public(type(receiver)) - set(DENIED))}")

    def _build_item(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        receiver, index = inputs
        if isinstance(receiver, self._table) and isinstance(index, str):
            return self._column(receiver, index, node)
        if isinstance(receiver, (self._expression, self._deferred, self._grouped)):
            return receiver[index]
        raise QueryError(f"{brief(node)}: a {type(receiver).__name__} has no items")

    def _column(self, table: Any, name: str, node: Node) -> Any:
        columns = list(table.op().schema)
        if name not in columns:
            raise _unknown([name], columns, node, method=node.kind == "attr" and self._may(table, name))
        return table[name]

    # calls

    def _may(self, receiver: Any, name: str) -> bool:
        return name in _public(type(receiver)) and name not in DENIED

    def _build_call(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        receiver, name = inputs[0], node.name
        if isinstance(receiver, self._deferred):
            allowed = name in self._methods and name not in DENIED
        else:
            allowed = isinstance(receiver, self._receivers) and self._may(receiver, name)
        if not allowed:
            known_names = self._methods if isinstance(receiver, self._deferred) else _public(type(receiver))
            kind = type(receiver).__name__
            raise QueryError(
                f"{brief(node)}: {kind} has no method {name}(){_suggestion(name, known_names - set(DENIED))}"
            )
        try:
            return self._apply(getattr(receiver, name), node, inputs[1:])
        except self._ibis.common.exceptions.IntegrityError:
            ordered = ordered_below(receiver, inputs[1:]) if name == "order_by" and not node.keywords else None
            if ordered is None:
                raise
            return ordered

    def _build_fn(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        module, name = (self._ibis.selectors, node.name[2:]) if node.name.startswith("s.") else (self._ibis, node.name)
        function = getattr(module, name)
        return self._apply(function, node, inputs) if callable(function) else function

    def _apply(self, function: Callable[..., Any], node: Node, arguments: list[Any]) -> Any:
        positional = len(arguments) - len(node.keywords)
        named = dict(zip(node.keywords, arguments[positional:], strict=True))
        return function(*arguments[:positional], **named)

    def _build_op(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        if not any(isinstance(each, self._operands) for each in inputs):
            raise QueryError(f"{brief(node)}: an operator needs a column or an expression on one side")
        if node.name in UNARY:
            return UNARY[node.name][1](inputs[0])
        left, right = inputs
        if isinstance(left, (str, bytes)) and node.name == "mod":
            raise QueryError(f"{brief(node)}: a text cannot be divided; to format one use + and cast('string')")
        return BINARY[node.name][1](left, right)

    # what the datalayer adds

    def _rows(self, node: Node, inputs: list[Any]) -> Any:
        if not isinstance(inputs[0], self._table):
            raise QueryError(f"{brief(node)}: {node.kind}() is asked of rows, and this is a {type(inputs[0]).__name__}")
        self.check_columns(inputs[0], node.inputs[0])
        return inputs[0]

    def _build_ids(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        rows = self._rows(node, inputs)
        return rows.select(*self._joiner.identity(rows, node).key)

    def _build_like(self, node: Node, inputs: list[Any], known: _Values) -> Any:
        raise QueryError(f"{brief(node)}: vector search is not available in this version of asyncdl")


@functools.cache
def _words() -> tuple[frozenset[str], frozenset[str]]:
    """Return the public names of ibis' expressions of any class, and which of them are properties."""
    from ibis.expr import types  # noqa: PLC0415 - heavy: only where a query is built

    classes = [each for each in vars(types).values() if isinstance(each, type) and issubclass(each, types.Expr)]
    names = frozenset(name for each in classes for name in _public(each))
    members = [member for each in classes for member in vars(each).items()]
    return names, frozenset(name for name, what in members if isinstance(what, property) and name[0] != "_")


def _public(kind: type) -> frozenset[str]:
    if kind not in _PUBLIC:
        _PUBLIC[kind] = frozenset(name for name in dir(kind) if not name.startswith("_"))
    return _PUBLIC[kind]


def _unknown(missing: list[str], columns: list[str], node: Node, *, method: bool = False) -> UnknownColumnError:
    name = missing[0]
    advice = f" ({name} is a method: call it)" if method else _suggestion(name, columns)
    return UnknownColumnError(
        f"{brief(node)}: there is no column {name!r}{advice}; the columns are {', '.join(columns)}"
    )


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
