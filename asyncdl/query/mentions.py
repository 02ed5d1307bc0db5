"""Which columns a step mentions: to say after an error that one of them does not exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from asyncdl.query.nodes import Node, value_of, walk
from asyncdl.query.vocabulary import NAMES_COLUMNS

_JOINS = frozenset(
    [
        "join",
        "inner_join",
        "left_join",
        "right_join",
        "outer_join",
        "semi_join",
        "anti_join",
        "any_inner_join",
        "any_left_join",
        "asof_join",
    ]
)


def unknown_columns(node: Node, columns: Sequence[str], others: Sequence[Sequence[str]]) -> list[str]:
    """Return the columns that a call names and that its table (a join: one of its tables) does not have."""
    if node.kind != "call":
        return []
    mentioned = list(_deferred(node))
    if node.name in NAMES_COLUMNS:
        mentioned += _texts(node, columns)
        return [name for name in mentioned if name not in columns]
    if node.name in _JOINS and others:
        on = [name for each in node.inputs[2:3] for name in _strings(each)]
        return [name for name in on if any(name not in each for each in (columns, *others))]
    return [name for name in mentioned if name not in columns]


def _texts(node: Node, columns: Sequence[str]) -> Iterator[str]:
    """Yield the texts among a call's arguments that can only be names of columns."""
    positional = len(node.inputs) - len(node.keywords)
    for each in node.inputs[1:positional]:
        if node.name in {"cast", "try_cast", "fill_null"}:
            yield from _keys(each)
        elif node.name == "rename":
            yield from _values(each)
        else:
            yield from _strings(each)
    for keyword, each in zip(node.keywords, node.inputs[positional:], strict=True):
        if keyword in {"by", "on", "subset"} or (
            node.name in {"rename", "relocate"} and keyword not in {"before", "after"}
        ):
            yield from _strings(each)


def _strings(node: Node) -> list[str]:
    if node.kind in {"list", "tuple"}:
        return [text for each in node.inputs for text in _strings(each)]
    value: Any = value_of(node) if node.kind == "literal" else None
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, (list, tuple)) else []


def _keys(node: Node) -> list[str]:
    if node.kind == "dict":
        return list(node.keywords)
    value = value_of(node) if node.kind == "literal" else None
    return [each for each in value if isinstance(each, str)] if isinstance(value, dict) else []


def _values(node: Node) -> list[str]:
    value = value_of(node) if node.kind == "literal" else None
    return [each for each in value.values() if isinstance(each, str)] if isinstance(value, dict) else []


def _deferred(node: Node) -> Iterator[str]:
    """Yield the columns of ``_`` in a call's arguments."""
    for argument in node.inputs[1:]:
        for each in walk(argument, lambda inner: inner.shape != "table" and inner.kind != "function"):
            if each.kind in {"attr", "item"} and each.inputs[0].kind == "deferred":
                yield from [each.name] if each.kind == "attr" else _strings(each.inputs[1])
