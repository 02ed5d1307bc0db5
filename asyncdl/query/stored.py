"""Queries as JSON: a flat list of steps, each naming its inputs by their place in it.

::

    {"version": 1, "nodes": [["table", "docs"], ["attr", "year", [0]], ["literal", 2000], ["op", "gt", [1, 2]], ...]}

The last step is the query. A step is ``[kind, name, inputs, keywords]`` without what is empty at its end; a literal's
second element is its value as `asyncdl.codec` writes it. Equal queries have equal bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from asyncdl import codec
from asyncdl.errors import AsyncDLError, QueryError
from asyncdl.query.nodes import Node, literal, make, walk

VERSION = 1
"""The version that `dump_node` writes."""
LIMIT = 200_000
"""Steps in a stored query: more is no query but an attack."""

_EMPTY: list[Any] = ["", [], []]


def dump_node(node: Node) -> bytes:
    """Return a graph as JSON."""
    places: dict[bytes, int] = {}
    steps: list[list[Any]] = []
    for each in walk(node):
        step: list[Any] = [each.kind]
        if each.kind == "literal":
            step.append(msgspec.Raw(each.name.encode()))
        else:
            step += [each.name, [places[inner.digest] for inner in each.inputs], list(each.keywords)]
            while len(step) > 1 and not step[-1]:
                step.pop()
        places[each.digest] = len(steps)
        steps.append(step)
    return msgspec.json.encode({"version": VERSION, "nodes": steps})


def load_node(text: str | bytes) -> Node:
    """Return the graph that `dump_node` wrote, with every step checked as if it were recorded now.

    Raises
    ------
    QueryError
        This is no stored query, one of another version, or one that does what queries may not do.
    """
    try:
        stored = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise QueryError(f"this is not the JSON of a query: {error}") from error
    if not isinstance(stored, dict) or "version" not in stored:
        raise QueryError("this is not the JSON of a query: it has no version")
    version = stored["version"]
    if version != VERSION or isinstance(version, bool):
        raise QueryError(f"this query was stored in version {version!r}; this asyncdl reads version {VERSION}")
    steps = stored.get("nodes")
    if not isinstance(steps, list) or not 0 < len(steps) <= LIMIT:
        raise QueryError(f"a stored query has a list of 1 to {LIMIT:,} steps")
    nodes: list[Node] = []
    for at, step in enumerate(steps):
        try:
            nodes.append(_load_step(step, nodes))
        except AsyncDLError as error:
            raise QueryError(f"step {at} of a stored query cannot be loaded: {error}") from error
    return nodes[-1]


def _load_step(step: Any, nodes: list[Node]) -> Node:
    if not isinstance(step, list) or not 0 < len(step) <= 4 or not isinstance(step[0], str):
        raise QueryError("it is not [kind, name, inputs, keywords]")
    if step[0] == "literal":
        return _load_literal(step)
    rest: list[Any] = [*step[1:], *_EMPTY[len(step) - 1 :]]
    name, inputs, keywords = rest
    if not isinstance(name, str) or not isinstance(inputs, list) or not _are_texts(keywords):
        raise QueryError("it is not [kind, name, inputs, keywords]")
    if not all(type(each) is int and 0 <= each < len(nodes) for each in inputs):
        raise QueryError("its inputs are not steps before it")
    return make(step[0], name, [nodes[each] for each in inputs], keywords)


def _load_literal(step: list[Any]) -> Node:
    if len(step) != 2:
        raise QueryError("a literal has one value")
    try:
        return literal(codec.from_plain(step[1]))
    except Exception as error:
        # text from anywhere: numpy's reader of arrays alone raises half a dozen classes
        raise QueryError(f"its literal cannot be decoded: {error}") from error


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, str) for each in values)
