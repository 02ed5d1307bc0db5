"""Outputs in pieces, and rows as context."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

import asyncdl
from asyncdl import Datalayer, Model
from asyncdl.errors import ClosedError, ComponentNotFoundError, ModelError, QueryError

pytestmark = pytest.mark.anyio

ended: list[str] = []
ended_in_thread = threading.Event()


async def letters(text: str, gap: str = "") -> AsyncIterator[str]:
    try:
        for letter in text:
            await asyncio.sleep(0)
            yield letter + gap
    finally:
        ended.append(text)


def numbers(count: int) -> Iterator[tuple[int, str]]:
    try:
        for number in range(count):
            yield number, threading.current_thread().name
    finally:
        ended_in_thread.set()


async def breaks(text: str) -> AsyncIterator[str]:
    yield text
    raise ValueError("no more")


def breaks_in_thread(text: str) -> Iterator[str]:
    yield text
    raise StopAsyncIteration("odd")


class Answers:
    """Has a stream beside its predictions."""

    async def __call__(self, prompt: str) -> str:
        return prompt.upper()

    async def stream(self, prompt: str) -> AsyncIterator[str]:
        for word in prompt.split():
            yield word.upper()


class Endless:
    """Yields for ever, on the loop."""

    async def __call__(self, _: object) -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1


async def first(prompt: str, context: list[object]) -> object:
    return prompt, context


@pytest.fixture
async def db(tmp_path) -> AsyncIterator[Datalayer]:
    ended.clear()
    ended_in_thread.clear()
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", artifact_store=f"filesystem://{tmp_path}") as db:
        yield db


async def test_an_asynchronous_generator(db):
    await db.add(Model("letters", letters, kwargs={"gap": "-"}))
    assert [each async for each in db.stream("letters", "abc")] == ["a-", "b-", "c-"]
    assert [each async for each in db.stream("letters", text="xy")] == ["x-", "y-"]
    assert ended == ["abc", "xy"]


async def test_a_generator_runs_on_a_thread(db):
    await db.add(Model("numbers", numbers))
    found = [each async for each in db.stream("numbers", 3)]
    assert [number for number, _ in found] == [0, 1, 2]
    assert all(name.startswith("asyncdl-stream") for _, name in found)


async def test_the_stream_of_an_object(db):
    added = await db.add(Model("answers", Answers()))
    assert [each async for each in db.stream("answers", "one two")] == ["ONE", "TWO"]
    assert [each async for each in db.stream(added.component, "three")] == ["THREE"]
    assert await db.predict("answers", "one two") == "ONE TWO"


@pytest.mark.parametrize(
    ("model", "message"), [(breaks, "ValueError: no more"), (breaks_in_thread, "StopAsyncIteration: odd")]
)
async def test_a_failure_comes_behind_what_was_yielded(db, model, message):
    await db.add(Model("breaks", model))
    pieces = db.stream("breaks", "piece")
    assert await anext(pieces) == "piece"
    with pytest.raises(ModelError, match=message):
        await anext(pieces)


async def test_what_does_not_stream(db):
    await db.add(Model("first", first))
    with pytest.raises(ModelError, match="does not stream"):
        await anext(db.stream("first", "a", []))
    with pytest.raises(ComponentNotFoundError, match="did you mean 'first'"):
        await anext(db.stream("frist", "a"))


async def test_leaving_ends_the_generator(db):
    await db.add(Model("letters", letters))
    async with aclosing(db.stream("letters", "abc")) as pieces:
        assert await anext(pieces) == "a"
    assert ended == ["abc"]
    await db.add(Model("numbers", numbers))
    async with aclosing(db.stream("numbers", 1_000_000)) as pieces:
        assert (await anext(pieces))[0] == 0
    assert await asyncio.to_thread(ended_in_thread.wait, 60)


async def test_cancelling_who_iterates_ends_the_generator(db):
    await db.add(Model("letters", letters))
    begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(db.stream("letters", "abc")) as pieces:
            async for _ in pieces:
                begun.set()
                await asyncio.Event().wait()

    reading = asyncio.create_task(read())
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert ended == ["abc"]


async def test_closing_the_datalayer_ends_streams(tmp_path):
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", artifact_store=f"filesystem://{tmp_path}") as db:
        await db.add(Model("endless", Endless()))
        pieces = db.stream("endless", None)
        assert await anext(pieces) == 0
    with pytest.raises(ClosedError, match="while model 'endless' version 0 was streaming"):
        async for _ in pieces:
            pass
    with pytest.raises(ClosedError):
        db.stream("endless", None)


async def test_a_slow_reader_holds_the_model_back(db):
    await db.add(Model("endless", Endless()))
    async with aclosing(db.stream("endless", None)) as pieces:
        for expected in range(100):
            assert await anext(pieces) == expected


async def test_no_more_streams_at_once_than_the_model_allows(db):
    await db.add(Model("letters", letters, max_concurrency=1))
    async with aclosing(db.stream("letters", "ab")) as one:
        assert await anext(one) == "a"
        two = db.stream("letters", "xy")
        waiting = asyncio.ensure_future(anext(two))
        assert await anext(one) == "b"
        assert not waiting.done()
        with pytest.raises(StopAsyncIteration):
            await anext(one)
        assert await waiting == "x"
        await two.aclose()


async def test_context(db):
    t = db["docs"]
    await db.execute(t.insert([{"id": n, "text": f"text {n}"} for n in range(5)]))
    await db.add(Model("first", first))
    select = t.filter(t.id < 2).order_by("id")
    rows = [{"id": 0, "text": "text 0"}, {"id": 1, "text": "text 1"}]
    assert await db.predict("first", "why", context_select=select) == (("why", rows), rows)
    answer = await db.predict("first", "why", context_select=select, context_key="text")
    assert answer.output == ("why", ["text 0", "text 1"])
    assert answer.sources == rows
    nothing = await db.predict("first", "why", context_select=t.filter(t.id > 9), context_key="no")
    assert nothing == (("why", []), [])


async def test_context_that_cannot_be_given(db):
    t = db["docs"]
    await db.execute(t.insert([{"id": n, "text": ""} for n in range(1001)]))
    await db.add(Model("first", first))
    with pytest.raises(QueryError, match=r"more than 1000 rows.*limit"):
        await db.predict("first", "why", context_select=t)
    with pytest.raises(QueryError, match=r"context_key is 'txt', and the rows of context_select have \['id', 'text'\]"):
        await db.predict("first", "why", context_select=t.limit(2), context_key="txt")
    with pytest.raises(QueryError, match="must be a query for rows"):
        await db.predict("first", "why", context_select=t.insert({"id": -1, "text": ""}))
