"""Queries as text: as they would be written, ``docs.filter(docs.year > 2000).select('id', 'text')``.

Inside the arguments of a method, a query it is called on that is more than a table is written ``_``.
"""

from __future__ import annotations

import reprlib
from typing import Any

from asyncdl.query.nodes import Node, table_of, value_of
from asyncdl.query.vocabulary import BINARY, UNARY

_LIMIT = 4000
_BRIEF = 300
_STEPS = 20_000
_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 8
_short.maxstring = _short.maxother = 100

_Place = tuple[bytes, bytes]
"""A step, and the query that ``_`` stands for around it."""


def show(node: Node) -> str:
    """Return a query as text; a very long one is cut in the middle."""
    done: dict[_Place, str] = {}
    stack: list[tuple[Node, bytes, bool]] = [(node, b"", False)]
    steps = 0
    while stack:
        each, around, ready = stack.pop()
        if (each.digest, around) in done:
            continue
        steps += 1
        if steps > _STEPS:
            return f"<a query of {node.root!r} with very many steps>"
        if each.digest == around:
            done[each.digest, around] = "_"
        elif ready:
            done[each.digest, around] = _cut(_write(each, [done[place] for place in _places(each, around)]))
        else:
            stack.append((each, around, True))
            inner = zip(each.inputs, _places(each, around), strict=True)
            stack.extend((one, place[1], False) for one, place in inner)
    return done[node.digest, b""]


def brief(node: Node) -> str:
    """Return a query as text that fits in a message."""
    text = show(node)
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF // 3]} ... {text[-_BRIEF * 2 // 3 :]}"


def _places(node: Node, around: bytes) -> list[_Place]:
    inside = around
    if node.kind == "call" and node.inputs[0].shape in {"table", "grouped"}:
        own = table_of(node.inputs[0])
        inside = b"" if own.kind == "table" else own.digest
    return [(each.digest, inside if at else around) for at, each in enumerate(node.inputs)]


def _cut(text: str) -> str:
    return text if len(text) <= _LIMIT else f"{text[: _LIMIT // 2]} ... {text[-_LIMIT // 3 :]}"


def _write(node: Node, inputs: list[str]) -> str:
    kind = node.kind
    if kind in _PLAIN:
        plain: str = _PLAIN[kind](node, inputs)
        return plain
    if kind == "op":
        return _operator(node, inputs)
    if kind == "fn":
        return f"fn.{node.name}({_arguments(node, inputs)})"
    if kind == "call":
        return f"{_operand(node.inputs[0], inputs[0])}.{node.name}({_arguments(node, inputs[1:])})"
    return _added(node, inputs)


def _added(node: Node, inputs: list[str]) -> str:
    if node.kind == "outputs":
        return f"{inputs[0]}.outputs({', '.join(map(repr, node.keywords))})"
    if node.kind == "like":
        return f"{inputs[0]}.like({inputs[1]}, vector_index={node.name!r}, n={inputs[2]})"
    return f"{inputs[0]}.{node.kind}({repr(node.name) if node.name else ''})"


def _arguments(node: Node, inputs: list[str]) -> str:
    positional = len(inputs) - len(node.keywords)
    named = [f"{name}={text}" for name, text in zip(node.keywords, inputs[positional:], strict=True)]
    return ", ".join([*inputs[:positional], *named])


def _operator(node: Node, inputs: list[str]) -> str:
    sides = [_operand(each, text) for each, text in zip(node.inputs, inputs, strict=True)]
    if node.name in UNARY:
        return f"{UNARY[node.name][0]}{sides[0]}"
    return f"{sides[0]} {BINARY[node.name][0]} {sides[1]}"


def _operand(node: Node, text: str) -> str:
    return f"({text})" if node.kind == "op" and text != "_" else text


def _slice(node: Node, inputs: list[str]) -> str:
    start, stop, step = ("" if text == "None" else text for text in inputs)
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"


def _dict(node: Node, inputs: list[str]) -> str:
    return f"{{{', '.join(f'{key!r}: {text}' for key, text in zip(node.keywords, inputs, strict=True))}}}"


def _parameter(name: str) -> str:
    level, _, at = name.partition(".")
    return f"{'xyzuvw'[int(level) % 6] if level.isdecimal() else 'x'}{at if at != '0' else ''}"


def _function(node: Node, inputs: list[str]) -> str:
    names = [_parameter(f"{node.name}.{at}") for at in range(len(node.keywords))]
    return f"lambda {', '.join(names)}: {inputs[0]}"


def _literal(node: Node, inputs: list[str]) -> str:
    value: Any = value_of(node) if len(node.name) < 100_000 else "..."
    return _short.repr(value)


_PLAIN: dict[str, Any] = {
    "table": lambda node, inputs: node.name,
    "deferred": lambda node, inputs: "_",
    "param": lambda node, inputs: _parameter(node.name),
    "literal": _literal,
    "attr": lambda node, inputs: f"{_operand(node.inputs[0], inputs[0])}.{node.name}",
    "item": lambda node, inputs: f"{_operand(node.inputs[0], inputs[0])}[{inputs[1]}]",
    "list": lambda node, inputs: f"[{', '.join(inputs)}]",
    "tuple": lambda node, inputs: f"({', '.join(inputs)}{',' if len(inputs) == 1 else ''})",
    "dict": _dict,
    "slice": _slice,
    "function": _function,
}
