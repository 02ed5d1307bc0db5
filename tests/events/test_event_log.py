"""Subscriptions, on a real store."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import ClosedError, DatatypeError, InvalidIdentifierError
from asyncdl.events.log import EventLog, Subscription
from asyncdl.events.types import (
    ComponentAdded,
    ComponentEvent,
    Event,
    OutputsWritten,
    RowsDeleted,
    RowsEvent,
    RowsInserted,
    RowsUpdated,
    UnknownEvent,
)
from asyncdl.metadata.changes import AppendEvent
from asyncdl.metadata.records import EventRecord
from asyncdl.metadata.sql import SQLMetadataStore

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, kw_only=True)
class OrderPlaced(Event):
    """An event of the user's."""

    topic_field: ClassVar[str] = "shop"

    shop: str
    lines: list[Any]


@dataclass(frozen=True, kw_only=True)
class GiftOrdered(OrderPlaced):
    """One that derives from it."""

    card: str = ""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLMetadataStore]:
    store = SQLMetadataStore(SQLiteDatabase(tmp_path / "meta.db"))
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
def log(store: SQLMetadataStore) -> EventLog:
    return EventLog(store)


async def take(events: Subscription, count: int) -> list[Event]:
    return [await anext(events) for _ in range(count)]


def inserted(*ids: Any, table: str = "docs") -> RowsInserted:
    return RowsInserted(table=table, ids=list(ids))


async def publish(log: EventLog, count: int) -> list[Event]:
    return [await log.publish(inserted(n)) for n in range(count)]


async def test_a_published_event_comes_back_equal_with_its_place(log: EventLog) -> None:
    event = OrderPlaced(shop="x", lines=[1, 2.5, "a", (1, b"\x00"), {"k": None}])
    first, second = await log.publish(event), await log.publish(event)
    assert first == second == event
    assert event.seq == 0
    assert (first.seq, second.seq, await log.last()) == (1, 2, 2)
    assert first.created > 0
    [read, _] = await log.read()
    assert (read, read.seq, read.created) == (event, 1, first.created)
    assert type(read) is OrderPlaced


async def test_an_event_that_cannot_be_stored_is_refused(log: EventLog) -> None:
    with pytest.raises(DatatypeError):
        await log.publish(OrderPlaced(shop="x", lines=[object()]))
    assert await log.read() == []


async def test_subscribing_to_a_type_includes_those_derived_from_it(log: EventLog) -> None:
    component = ComponentAdded(type_id="model", identifier="m", version=0, uuid="u")
    async with (
        log.subscribe() as everything,
        log.subscribe(RowsEvent) as rows,
        log.subscribe(RowsUpdated, ComponentEvent) as some,
        log.subscribe(OrderPlaced) as orders,
    ):
        published = [
            await log.publish(event)
            for event in (
                inserted(1),
                component,
                RowsUpdated(table="docs", ids=[1]),
                GiftOrdered(shop="x", lines=[]),
                RowsDeleted(table="docs", ids=[1]),
                OrderPlaced(shop="y", lines=[]),
            )
        ]
        assert await take(everything, 6) == published
        assert [each.seq for each in await take(rows, 3)] == [1, 3, 5]
        assert [each.seq for each in await take(some, 2)] == [2, 3]
        assert await take(orders, 2) == [published[3], published[5]]
    assert await log.read(2, RowsEvent) == [published[2], published[4]]
    assert await log.read(2, RowsEvent, limit=1) == [published[2]]


async def test_subscribing_to_topics(log: EventLog) -> None:
    async with (
        log.subscribe(topics=["docs", "length"]) as some,
        log.subscribe(RowsInserted, topics=["docs"]) as docs,
    ):
        for event in (
            inserted(1),
            inserted(2, table="other"),
            OutputsWritten(identifier="length", uuid="u", ids=[1]),
            RowsDeleted(table="docs", ids=[1]),
            inserted(3),
        ):
            await log.publish(event)
        assert [each.seq for each in await take(some, 4)] == [1, 3, 4, 5]
        assert [each.seq for each in await take(docs, 2)] == [1, 5]


async def test_without_since_only_what_happens_from_now_on(log: EventLog) -> None:
    await publish(log, 3)
    async with log.subscribe() as events:
        await publish(log, 2)
        assert [each.seq for each in await take(events, 2)] == [4, 5]


async def test_since_replays(log: EventLog) -> None:
    published = await publish(log, 1203)  # more than two pages
    async with log.subscribe(since=0) as everything, log.subscribe(since=1200) as some:
        assert await take(everything, 1203) == published
        assert await take(some, 3) == published[1200:]


async def test_a_slow_subscriber_sees_everything_and_holds_nobody_up(log: EventLog) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> list[int]:
        seen = []
        async with log.subscribe(since=0) as events:
            async for event in events:
                seen.append(event.seq)
                if event.seq == 1:
                    reached.set()
                    await go_on.wait()
                if event.seq == 800:
                    return seen
        return seen

    async with log.subscribe() as fast:
        task = asyncio.create_task(slow())
        first = await publish(log, 1)
        await reached.wait()
        rest = await publish(log, 799)
        assert await take(fast, 800) == first + rest  # while the slow one stands
        go_on.set()
        assert await task == list(range(1, 801))


async def test_many_subscribers_see_one_order_under_many_publishers(log: EventLog, tmp_path: Path) -> None:
    other = SQLMetadataStore(SQLiteDatabase(tmp_path / "meta.db"))
    await other.open()

    async def read(on: EventLog) -> list[int]:
        async with on.subscribe(since=0) as events:
            return [each.ids[0] for each in await take(events, 200) if isinstance(each, RowsInserted)]

    async def write(n: int) -> None:
        for at in range(10):
            await (log if n % 2 else EventLog(other)).publish(inserted(n * 10 + at))

    tasks = [asyncio.create_task(read(each)) for each in (log, log, EventLog(other))]
    await asyncio.gather(*map(write, range(20)))
    orders = [await task for task in tasks]
    await other.aclose()
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(200))


async def test_a_cancelled_wait_loses_nothing(log: EventLog) -> None:
    async with log.subscribe(since=0) as events:
        for n in range(50):
            waiting = asyncio.create_task(anext(events))
            publishing = asyncio.create_task(log.publish(inserted(n)))
            for _ in range(n % 10):
                await asyncio.sleep(0)
            waiting.cancel()
            await publishing
            try:
                event = await waiting
            except asyncio.CancelledError:
                event = await anext(events)
            assert event == inserted(n)


async def test_a_named_subscription_resumes_after_what_was_dealt_with(log: EventLog) -> None:
    async with log.subscribe(name="billing") as events:
        await publish(log, 5)
        assert [each.seq for each in await take(events, 3)] == [1, 2, 3]
        assert events.position == 2  # the third is in our hands
    async with log.subscribe(name="billing") as events:
        assert [each.seq for each in await take(events, 3)] == [3, 4, 5]
        waiting = asyncio.create_task(anext(events))  # asking for the next acknowledges the fifth
        await publish(log, 1)
        assert (await waiting).seq == 6
    async with log.subscribe(name="billing") as events:
        assert (await anext(events)).seq == 6
    async with log.subscribe(name="another") as events:
        await publish(log, 1)
        assert (await anext(events)).seq == 7
    async with log.subscribe(name="billing", since=1) as events:
        assert (await anext(events)).seq == 2
    await log.forget("billing")
    async with log.subscribe(name="billing") as events:
        await publish(log, 1)
        assert (await anext(events)).seq == 8


async def test_a_named_subscription_that_nothing_was_for_does_not_read_it_again(
    log: EventLog, store: SQLMetadataStore
) -> None:
    async with log.subscribe(OrderPlaced, name="orders") as events:
        await publish(log, 3)
        await log.publish(OrderPlaced(shop="x", lines=[]))
        assert (await anext(events)).seq == 4
        waiting = asyncio.create_task(anext(events))
        await publish(log, 2)
        while events.position < 6:  # noqa: ASYNC110 - it has read past them: which nothing else tells
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert await store.cursor("subscriber:orders") == 6


SUBSCRIBER = """
    import asyncio, os, signal, sys
    from asyncdl.drivers.sqlite import SQLiteDatabase
    from asyncdl.events.log import EventLog
    from asyncdl.metadata.sql import SQLMetadataStore

    async def main(path, dies_at, options):
        store = SQLMetadataStore(SQLiteDatabase(path))
        await store.open()
        async with EventLog(store).subscribe(name="billing", **options) as events:
            async for event in events:
                print(event.seq, flush=True)
                if event.seq == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main(sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])))
"""


async def handled_until_killed(path: Path, dies_at: int, **options: Any) -> list[int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(SUBSCRIBER), str(path), str(dies_at), repr(options)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    return [int(line) for line in out.split()]


async def test_after_a_crash_the_event_in_hand_comes_again_and_none_is_lost(log: EventLog, tmp_path: Path) -> None:
    async with log.subscribe(name="billing"):
        pass
    await publish(log, 350)
    path = tmp_path / "meta.db"
    first = await handled_until_killed(path, 3)
    second = await handled_until_killed(path, 250)
    third = await handled_until_killed(path, 350)
    assert first == [1, 2, 3]
    for before, after in ((first, second), (second, third)):
        assert after[0] <= before[-1]  # not acknowledged: it comes again
        assert after == list(range(after[0], after[-1] + 1))
    assert third[0] > 1  # what was acknowledged long ago does not


async def test_a_named_replay_that_crashes_at_once_starts_again(log: EventLog, tmp_path: Path) -> None:
    await publish(log, 5)
    assert await handled_until_killed(tmp_path / "meta.db", 1, since=0) == [1]
    async with log.subscribe(name="billing") as events:
        assert [each.seq for each in await take(events, 5)] == [1, 2, 3, 4, 5]


async def test_an_event_of_a_class_that_is_not_known_here(log: EventLog, store: SQLMetadataStore) -> None:
    async with log.subscribe() as everything, log.subscribe(RowsEvent) as rows:
        await store.commit(AppendEvent("FromElsewhere", "topic", '{"a": 1}', 5.0))
        await publish(log, 1)
        unknown, known = await take(everything, 2)
        assert unknown == UnknownEvent(type="FromElsewhere", topic="topic", payload='{"a": 1}')
        assert (unknown.seq, unknown.created) == (1, 5.0)
        assert known == await anext(rows) == inserted(0)


@pytest.mark.parametrize("name", ["", "x" * 101, "new\nline", "nul\x00"])
async def test_names_that_are_none(log: EventLog, name: str) -> None:
    with pytest.raises(InvalidIdentifierError):
        async with log.subscribe(name=name):
            pass


async def test_after_the_end(log: EventLog) -> None:
    async with log.subscribe(since=0) as events:
        await publish(log, 2)
        await anext(events)
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    log.close()
    with pytest.raises(ClosedError):
        async with log.subscribe():
            pass


async def test_closing_the_store_ends_a_subscription_that_waits(tmp_path: Path) -> None:
    store = SQLMetadataStore(SQLiteDatabase(tmp_path / "meta.db"))
    await store.open()
    subscribed = asyncio.Event()

    async def read() -> None:
        async with EventLog(store).subscribe(name="billing") as events:
            subscribed.set()
            async for _ in events:
                pass

    task = asyncio.create_task(read())
    await subscribed.wait()
    await store.aclose()
    with pytest.raises(ClosedError):
        await task


class Watched(SQLMetadataStore):
    """One that notes how much it returned."""

    def __init__(self, database: SQLiteDatabase) -> None:
        super().__init__(database)
        self.pages: list[int] = []

    async def events(self, after: int, **narrowed: Any) -> list[EventRecord]:
        found = await super().events(after, **narrowed)
        self.pages.append(sum(len(record.payload) for record in found))
        return found


@pytest.mark.parametrize(("count", "size"), [(3000, 1), (400, 100_000)])
async def test_pages_are_of_many_small_events_and_of_few_large_ones(tmp_path: Path, count: int, size: int) -> None:
    store = Watched(SQLiteDatabase(tmp_path / "meta.db"))
    await store.open()
    try:
        order = OrderPlaced(shop="x", lines=["x" * size]).change()
        for _ in range(count // 100):
            await store.commit(*[order] * 100)
        async with EventLog(store).subscribe(since=0) as events:
            assert [event.seq for event in await take(events, count)] == list(range(1, count + 1))
        # the first page is of a hundred, whatever they are; those behind it are of 4 MB, or of a thousand
        assert max(store.pages[1:]) <= 4 * 1024 * 1024
        assert len(store.pages) == (4 if size == 1 else 9)
    finally:
        await store.aclose()


async def test_what_is_published_while_a_page_is_read_follows_it(log: EventLog) -> None:
    await publish(log, 150)  # a first page, and half of a second
    async with log.subscribe(since=0) as events:
        await take(events, 120)
        late = await log.publish(inserted(150))
        assert [event.seq for event in await take(events, 31)] == list(range(121, 152))
        assert events.position == late.seq - 1
