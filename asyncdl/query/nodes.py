"""The steps of a query: an immutable graph, compared by structure.

A node is known by the digest of what it does and of the digests of its inputs. So comparing, hashing and remembering take
no walk through the graph, and a step that is written twice is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import msgspec

from asyncdl import codec
from asyncdl.errors import DatatypeError, QueryError
from asyncdl.names import check_component_identifier, check_table
from asyncdl.query.vocabulary import (
    BINARY,
    DENIED,
    FUNCTIONS,
    SELECTORS,
    STILL_GROUPED,
    TABLE_FUNCTIONS,
    TABLE_OF_VALUE,
    UNARY,
    VALUE_OF_TABLE,
)

Shape = Literal["table", "grouped", "value", "plain"]
"""What a step returns, as far as it can be said without a schema: a table, a table with groups, something that a column or
scalar is made of, or a Python value."""

_NOTHING: frozenset[Any] = frozenset()


class Node:
    """One step.

    Attributes
    ----------
    kind
        What sort of step; see `_CHECKS`.
    name
        The method, function, operator, column or table; the JSON text of a literal.
    inputs
        The steps it takes: for a method the object first, then the arguments.
    keywords
        The names of the last inputs; of ``outputs``, the identifiers.
    digest
        Equal where and only where the structure is equal.
    shape, root, tables, listeners, roots
        What it returns, the table it starts from, the tables and listeners it reads, and for each listener (as pairs) the
        root of the rows that its outputs are joined to.
    """

    __slots__ = ("digest", "inputs", "keywords", "kind", "listeners", "name", "root", "roots", "shape", "tables")

    kind: str
    name: str
    inputs: tuple[Node, ...]
    keywords: tuple[str, ...]
    digest: bytes
    shape: Shape
    root: str | None
    tables: frozenset[str]
    listeners: frozenset[str]
    roots: frozenset[tuple[str, str | None]]

    def __init__(self, kind: str, name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
        self.kind, self.name, self.inputs, self.keywords = kind, name, inputs, keywords
        self.digest = _digest(kind, name, inputs, keywords)
        self.shape = _shape(self)
        self.root = name if kind == "table" else next((each.root for each in inputs if each.root is not None), None)
        used = _identifiers(self)
        self.tables = _union((each.tables for each in inputs), frozenset([name]) if kind == "table" else _NOTHING)
        self.listeners = _union((each.listeners for each in inputs), frozenset(used))
        self.roots = _union((each.roots for each in inputs), frozenset((each, self.root) for each in used))


def _identifiers(node: Node) -> tuple[str, ...]:
    if node.kind == "outputs":
        return node.keywords
    return (node.name,) if node.kind == "missing_outputs" else ()


def _union(sets: Iterable[frozenset[Any]], start: frozenset[Any]) -> frozenset[Any]:
    """Return the union; where one of the sets is it already, that one, so that a long chain shares it."""
    result = start
    for each in sets:
        if not each <= result:
            result = each if result <= each else result | each
    return result


def _digest(kind: str, name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> bytes:
    state = hashlib.blake2b(digest_size=20)
    head = msgspec.json.encode([kind, name, keywords, len(inputs)])
    state.update(len(head).to_bytes(8, "big") + head)
    for each in inputs:
        state.update(each.digest)
    return state.digest()


def _shape(node: Node) -> Shape:
    kind = node.kind
    if kind in {"table", "outputs", "missing_outputs", "ids", "like"}:
        return "table"
    if kind == "call":
        return _shape_of_call(node.name, node.inputs[0].shape)
    if kind == "item":
        index = node.inputs[1].kind
        plural = index in {"slice", "list", "tuple"} or node.inputs[1].name.startswith(("[", '{"$":"tuple"'))
        return node.inputs[0].shape if plural and node.inputs[0].shape != "grouped" else "value"
    if kind == "fn":
        return "table" if node.name in TABLE_FUNCTIONS else "value"
    return "plain" if kind in {"literal", "list", "tuple", "dict", "slice", "function"} else "value"


def _shape_of_call(name: str, receiver: Shape) -> Shape:
    if receiver == "table":
        if name == "group_by":
            return "grouped"
        return "value" if name in VALUE_OF_TABLE else "table"
    if receiver == "grouped":
        return "grouped" if name in STILL_GROUPED else "table"
    return "table" if name in TABLE_OF_VALUE else "value"


def table_of(node: Node) -> Node:
    """Return the table that a grouped table groups; any other node itself."""
    while node.shape == "grouped":
        node = node.inputs[0]
    return node


def make(kind: str, name: str = "", inputs: Iterable[Node] = (), keywords: Iterable[str] = ()) -> Node:
    """Return a step after checking that it is one that may be built.

    Raises
    ------
    QueryError
        It names something private, something that queries may not call, or has inputs that do not fit.
    InvalidIdentifierError
        Its table or listener has a name that cannot be one.
    """
    check = _CHECKS.get(kind)
    if check is None:
        raise QueryError(f"a query has no steps of the kind {kind!r}")
    inputs, keywords = tuple(inputs), tuple(keywords)
    try:
        check(name, inputs, keywords)
        return Node(kind, name, inputs, keywords)
    except UnicodeEncodeError as error:
        raise QueryError(f"a query holds a lone surrogate, which is no Unicode character: {error}") from error


def literal(value: Any) -> Node:
    """Return the step that is a plain value; raises `DatatypeError` where it cannot be stored."""
    return Node("literal", _text(codec.to_plain(value)), (), ())


def value_of(node: Node) -> Any:
    """Return a literal's value: a new object each time."""
    return codec.loads(node.name)


def walk(node: Node, enter: Callable[[Node], bool] = lambda node: True) -> Iterator[Node]:
    """Yield each distinct step once, inputs before what takes them; those that ``enter`` refuses without their inputs."""
    seen: set[bytes] = set()
    stack = [(node, False)]
    while stack:
        each, done = stack.pop()
        if done:
            yield each
        elif each.digest not in seen:
            seen.add(each.digest)
            stack.append((each, True))
            if enter(each):
                stack.extend((inner, False) for inner in reversed(each.inputs))


def _text(tree: Any) -> str:
    try:
        return msgspec.json.encode(tree).decode()
    except UnicodeEncodeError as error:
        raise DatatypeError(f"a text holds a lone surrogate, which is no Unicode character: {error}") from error


# what each kind must look like: `name`, `inputs`, `keywords`


def _need(fits: bool, kind: str) -> None:
    if not fits:
        raise QueryError(f"a step {kind!r} of a query has the wrong form")


def _check_public(name: str, what: str) -> None:
    if not name or name.startswith("_") or not name.isidentifier():
        raise QueryError(f"{name!r} cannot be {what}; a column is reached as table[{name!r}]")


def _check_table(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    check_table(name)
    _need(not inputs and not keywords, "table")


def _check_leaf(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    _need(not inputs and not keywords, "parameter")


def _check_literal(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    _need(not inputs and not keywords, "literal")
    try:
        codec.loads(name)
    except DatatypeError as error:
        raise QueryError(f"a literal of a query cannot be decoded: {error}") from error


def _check_attr(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    _check_public(name, "an attribute")
    _need(len(inputs) == 1 and not keywords and inputs[0].shape != "plain", "attr")


def _check_call(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    _check_public(name, "a method")
    if name in DENIED:
        raise QueryError(f"a query cannot call {name}(): {DENIED[name]}")
    _need(len(inputs) > len(keywords) and inputs[0].shape != "plain", "call")
    _check_keywords(keywords)


def _check_keywords(keywords: tuple[str, ...]) -> None:
    _need(len(set(keywords)) == len(keywords), "call with a keyword twice")


def _check_fn(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    selector = name.removeprefix("s.")
    if name in DENIED:
        raise QueryError(f"a query cannot call {name}(): {DENIED[name]}")
    if not (name in FUNCTIONS or (selector != name and selector in SELECTORS)):
        raise QueryError(f"fn.{name} is not a function that queries know; they know {', '.join(sorted(FUNCTIONS))}")
    _need(len(inputs) >= len(keywords), "fn")
    _check_keywords(keywords)


def _check_op(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    operands = 2 if name in BINARY else 1
    _need((name in BINARY or name in UNARY) and len(inputs) == operands and not keywords, "op")


def _check_item(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    _need(len(inputs) == 2 and not name and not keywords and inputs[0].shape != "plain", "item")


def _check_sequence(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    _need(not name and not keywords, "sequence")


def _check_dict(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    _need(not name and len(inputs) == len(keywords), "dict")
    _check_keywords(keywords)


def _check_slice(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    _need(len(inputs) == 3 and not name and not keywords, "slice")


def _check_function(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
    _need(len(inputs) == 1 and name.isdecimal() and len(keywords) in {1, 2}, "function")


def _check_over_table(kind: str) -> Callable[[str, tuple[Node, ...], tuple[str, ...]], None]:
    def check(name: str, inputs: tuple[Node, ...], keywords: tuple[str, ...]) -> None:
        _need(len(inputs) == (3 if kind == "like" else 1), kind)
        if inputs[0].shape != "table":
            raise QueryError(f"{kind}() is asked of rows: of a table or a query of rows, not of a column")
        if kind == "outputs":
            if not keywords or len(set(keywords)) != len(keywords):
                raise QueryError("outputs() needs the identifiers of listeners, each once: docs.outputs('length')")
        else:
            _need(not keywords, kind)
        identifiers = keywords if kind == "outputs" else () if kind == "ids" else (name,)
        for each in identifiers:
            check_component_identifier(each, "a vector index" if kind == "like" else "a listener")

    return check


_CHECKS: dict[str, Callable[[str, tuple[Node, ...], tuple[str, ...]], None]] = {
    "table": _check_table,
    "deferred": _check_leaf,
    "param": _check_leaf,
    "literal": _check_literal,
    "attr": _check_attr,
    "call": _check_call,
    "fn": _check_fn,
    "op": _check_op,
    "item": _check_item,
    "list": _check_sequence,
    "tuple": _check_sequence,
    "dict": _check_dict,
    "slice": _check_slice,
    "function": _check_function,
    **{kind: _check_over_table(kind) for kind in ("outputs", "missing_outputs", "ids", "like")},
}
