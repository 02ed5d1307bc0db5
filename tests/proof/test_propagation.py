"""Random graphs of listeners under random writes, compared with what a direct computation of all of it gives."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asyncdl
from asyncdl import Datalayer, Listener, Model
from tests import models

FUNCTIONS = {"times_two": models.times_two, "plus_one": models.plus_one, "minus_one": models.minus_one}


@dataclass(frozen=True)
class Node:
    """A listener: what it applies, and to which outputs (by number); to none: to the row."""

    function: str
    reads: tuple[int, ...]
    flatten: bool = False


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """Return up to five listeners that read those before them: one, or two that are not flattened."""
    nodes: list[Node] = []
    plain: list[int] = []  # those with one output for each row
    for number in range(draw(st.integers(1, 5))):
        candidates = [(), *((each,) for each in range(number)), *((a, b) for a in plain for b in plain if a < b)]
        reads = draw(st.sampled_from(candidates))
        flatten = draw(st.booleans()) and len(reads) < 2
        function = "digits" if flatten else "sum_of" if len(reads) == 2 else draw(st.sampled_from(sorted(FUNCTIONS)))
        nodes.append(Node(function, reads, flatten))
        if not flatten and not _positions(nodes, reads):
            plain.append(number)
    return nodes


def _positions(nodes: list[Node], reads: tuple[int, ...]) -> list[int]:
    """Return the flattened listeners that rows come through."""
    return [each for upstream in reads for each in (*_positions(nodes, nodes[upstream].reads), upstream)
            if nodes[each].flatten]  # fmt: skip


def _ancestors(nodes: list[Node], number: int) -> list[int]:
    """Return the listeners that a listener's rows come through, in order."""
    return sorted({each for read in nodes[number].reads for each in (*_ancestors(nodes, read), read)})


IDS = st.integers(0, 6)
VALUES = st.integers(0, 300)
WRITES = st.one_of(
    st.tuples(st.just("upsert"), st.dictionaries(IDS, VALUES, min_size=1, max_size=4)),
    st.tuples(st.just("update"), st.dictionaries(IDS, VALUES, min_size=1, max_size=1)),
    st.tuples(st.just("delete"), st.lists(IDS, min_size=1, max_size=3)),
    st.tuples(st.just("truncate"), st.none()),
    st.tuples(st.just("wait"), st.none()),
    st.tuples(st.just("reshape"), st.integers(0, 4)),
    st.tuples(st.just("replace"), st.tuples(st.integers(0, 4), st.sampled_from(sorted(FUNCTIONS)))),
)


def name(number: int) -> str:
    return f"l{number}"


def listener(db: Datalayer, nodes: list[Node], number: int) -> Listener:
    node, t = nodes[number], db["numbers"]
    through = _ancestors(nodes, number)
    key: Any = (
        tuple(name(each) for each in node.reads) if len(node.reads) > 1 else name(node.reads[0]) if node.reads else "x"
    )
    function = {**FUNCTIONS, "digits": models.digits, "sum_of": models.sum_of}[node.function]
    model = Model(f"m{number}", function, datatype="int64")
    select = t.outputs(*(name(each) for each in through)) if through else t
    return Listener(name(number), model=model, key=key, select=select, flatten=node.flatten)


def computed(nodes: list[Node], rows: dict[int, int]) -> list[dict[tuple[int, ...], int]]:
    """Return each listener's outputs, by the row's id and the positions of the flattened ones."""
    outputs: list[dict[tuple[int, ...], int]] = []
    for node in nodes:
        inputs: dict[tuple[int, ...], tuple[int, ...]]
        if not node.reads:
            inputs = {(id_,): (x,) for id_, x in rows.items()}
        else:
            inputs = {key: tuple(outputs[each][key] for each in node.reads) for key in outputs[node.reads[0]]}
        found: dict[tuple[int, ...], int] = {}
        for key, values in inputs.items():
            value = _apply(node.function, *values)
            found |= {(*key, at): each for at, each in enumerate(value)} if node.flatten else {key: value}
        outputs.append(found)
    return outputs


def _apply(function: str, *values: int) -> Any:
    if function == "digits":
        return [int(each) for each in str(abs(values[0]))]
    return {
        "times_two": lambda x: 2 * x,
        "plus_one": lambda x: x + 1,
        "minus_one": lambda x: x - 1,
        "sum_of": lambda x, y: x + y,
    }[function](*values)


async def stored(db: Datalayer, nodes: list[Node], number: int) -> dict[tuple[int, ...], int]:
    through = [*_ancestors(nodes, number), number]
    rows = await (await db.execute(db["numbers"].outputs(*(name(each) for each in through)))).to_list()
    positions = [f"{name(each)}_position" for each in through if nodes[each].flatten]
    return {(row["id"], *(row[each] for each in positions)): row[name(number)] for row in rows}


async def write(db: Datalayer, what: str, given: Any, rows: dict[int, int], nodes: list[Node]) -> None:
    t = db["numbers"]
    if what == "upsert":
        rows |= given
        await db.execute(t.upsert([{"id": id_, "x": x} for id_, x in given.items()]))
    elif what == "update":
        [(id_, x)] = given.items()
        await db.execute(t.update({"x": x}, where=t.id == id_))
        if id_ in rows:
            rows[id_] = x
    elif what == "delete":
        await db.execute(t.delete(where=t.id.isin(given)))
        for id_ in given:
            rows.pop(id_, None)
    elif what == "truncate":
        await db.execute(t.delete(where=t.id >= 0))
        rows.clear()
    elif what == "wait":
        await db.wait_idle(60)
    else:
        await change(db, what, given, nodes)


async def change(db: Datalayer, what: str, given: Any, nodes: list[Node]) -> None:
    if what == "reshape":
        number = given % len(nodes)
        below = [each for at, each in enumerate(nodes) if number in _ancestors(nodes, at)]
        if all(len(each.reads) < 2 for each in (nodes[number], *below)):
            flatten, reads = not nodes[number].flatten, nodes[number].reads
            nodes[number] = Node("digits" if flatten else "plus_one", reads, flatten)
            await db.add(listener(db, nodes, number))
    else:
        number, function = given[0] % len(nodes), given[1]
        if nodes[number].function in FUNCTIONS:
            nodes[number] = Node(function, nodes[number].reads)
            await db.replace(Model(f"m{number}", FUNCTIONS[function], datatype="int64"))


async def run(nodes: list[Node], before: dict[int, int], writes: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        uri, artifacts = f"sqlite:///{path / 'app.db'}", f"filesystem://{path / 'artifacts'}"
        async with asyncdl.connect(uri, artifact_store=artifacts) as db:
            rows = dict(before)
            await db.execute(db["numbers"].insert([{"id": id_, "x": x} for id_, x in rows.items()]))
            for number in range(len(nodes)):
                await db.add(listener(db, nodes, number))
            for what, given in writes:
                await write(db, what, given, rows, nodes)
            await db.wait_idle(60)
            expected = computed(nodes, rows)
            for number in range(len(nodes)):
                assert await stored(db, nodes, number) == expected[number], f"{nodes[number]} of {nodes}"
                missing = db["numbers"] if not nodes[number].reads else None
                if missing is not None:
                    assert await (await db.execute(missing.missing_outputs(name(number)))).to_list() == []
            assert await db.jobs.list(state=["failed", "upstream_failed", "pending", "running"]) == []


@settings(
    max_examples=int(os.environ.get("ASYNCDL_GRAPHS", "20")), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(graphs(), st.dictionaries(IDS, VALUES, min_size=1), st.lists(WRITES, max_size=8))
def test_outputs_are_what_a_direct_computation_gives(
    nodes: list[Node], rows: dict[int, int], writes: list[tuple[str, Any]]
) -> None:
    asyncio.run(run(nodes, rows, writes))
