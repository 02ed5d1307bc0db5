"""Handlers, on a real store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import StoreUnavailableError
from asyncdl.events.bus import EventBus
from asyncdl.events.log import EventLog
from asyncdl.events.types import Event, HandlerFailed, RowsDeleted, RowsEvent, RowsInserted
from asyncdl.metadata.changes import AppendEvent
from asyncdl.metadata.records import EventRecord
from asyncdl.metadata.sql import SQLMetadataStore

pytestmark = pytest.mark.anyio


class Recorder:
    """A handler that keeps what it was called with, and can be waited for."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    def handle(self, event: Event) -> None:
        self.queue.put_nowait(event)

    async def seqs(self, count: int) -> list[int]:
        return [(await self.queue.get()).seq for _ in range(count)]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLMetadataStore]:
    store = SQLMetadataStore(SQLiteDatabase(tmp_path / "meta.db"))
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
def log(store: SQLMetadataStore) -> EventLog:
    return EventLog(store)


@pytest.fixture
async def bus(log: EventLog) -> AsyncIterator[EventBus]:
    bus = EventBus(log)
    task = asyncio.create_task(bus.run(since=0))
    yield bus
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()  # it had not ended before


def inserted(n: int) -> RowsInserted:
    return RowsInserted(table="docs", ids=[n])


async def test_handlers_are_called_for_their_types_in_order(log: EventLog, bus: EventBus) -> None:
    rows, deleted, everything, both = Recorder(), Recorder(), Recorder(), Recorder()
    bus.on(RowsEvent)(rows.handle)
    bus.on(RowsDeleted)(deleted.handle)
    bus.on()(everything.handle)
    bus.on(RowsDeleted, HandlerFailed)(both.handle)
    await log.publish(inserted(1))
    await log.publish(RowsDeleted(table="docs", ids=[1]))
    await log.publish(HandlerFailed(handler="h", event=1, error="e"))
    await log.publish(inserted(2))
    assert await everything.seqs(4) == [1, 2, 3, 4]
    assert await rows.seqs(3) == [1, 2, 4]
    assert await deleted.seqs(1) == [2]
    assert await both.seqs(2) == [2, 3]
    assert all(each.queue.empty() for each in (rows, deleted, everything, both))


async def test_one_event_at_a_time_even_for_coroutines(log: EventLog, bus: EventBus) -> None:
    spans: list[str] = []
    done = asyncio.Event()

    @bus.on(RowsInserted)
    async def slow(event: RowsInserted) -> None:
        spans.append(f"begin {event.seq}")
        await asyncio.sleep(0)
        await log.last()
        spans.append(f"end {event.seq}")

    @bus.on(RowsInserted)
    def quick(event: RowsInserted) -> None:
        spans.append(f"quick {event.seq}")
        if event.seq == 2:
            done.set()

    await asyncio.gather(log.publish(inserted(1)), log.publish(inserted(2)))
    await done.wait()
    assert spans == ["begin 1", "end 1", "quick 1", "begin 2", "end 2", "quick 2"]
    assert slow.__name__ == "slow"  # the decorator returns the function itself


async def test_a_handler_that_fails_is_told_of_and_harms_nobody(
    log: EventLog, bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    failures, rest = Recorder(), Recorder()

    @bus.on(RowsInserted)
    async def broken(event: RowsInserted) -> None:
        raise LookupError(f"no row {event.ids[0]}")

    bus.on(RowsInserted)(rest.handle)
    bus.on(HandlerFailed)(failures.handle)
    with caplog.at_level(logging.ERROR, "asyncdl.events"):
        await log.publish(inserted(7))
        await log.publish(inserted(8))
        assert len(await rest.seqs(2)) == 2
        failed = [await failures.queue.get() for _ in range(2)]
    for event, number in zip(failed, (7, 8), strict=True):
        assert isinstance(event, HandlerFailed)
        assert event.handler.endswith("broken")
        assert "Traceback" in event.error
        assert f"LookupError: no row {number}" in event.error
    assert {each.event for each in failed if isinstance(each, HandlerFailed)} == {
        each.seq for each in await log.read(0, RowsInserted)
    }
    assert [each.exc_info is not None for each in caplog.records] == [True, True]


async def test_an_error_that_is_no_unicode_is_told_of_all_the_same(
    log: EventLog, bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = Recorder()

    @bus.on(RowsInserted)
    def broken(event: RowsInserted) -> None:
        raise OSError("no file \udcff.txt")

    bus.on(HandlerFailed)(failures.handle)
    # pytest-xdist cannot send what is logged
    monkeypatch.setattr(logging.getLogger("asyncdl.events"), "propagate", False)
    await log.publish(inserted(7))
    failed = await failures.queue.get()
    assert isinstance(failed, HandlerFailed)
    assert "no file \\udcff.txt" in failed.error


async def test_a_handler_of_failures_that_fails_makes_no_further_failures(log: EventLog, bus: EventBus) -> None:
    called = Recorder()

    @bus.on(HandlerFailed)
    def broken(event: HandlerFailed) -> None:
        called.handle(event)
        raise RuntimeError

    bus.on(RowsInserted)(called.handle)
    await log.publish(HandlerFailed(handler="h", event=0, error="e"))
    await log.publish(inserted(1))
    assert await called.seqs(2) == [1, 2]
    assert len(await log.read()) == 2


async def test_what_a_handler_waited_for_being_cancelled_does_not_end_the_bus(log: EventLog, bus: EventBus) -> None:
    called = Recorder()

    @bus.on(RowsInserted)
    async def waits(event: RowsInserted) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    bus.on(HandlerFailed)(called.handle)
    await log.publish(inserted(1))
    assert await called.seqs(1) == [2]


async def test_cancelling_the_bus_in_a_handler_ends_it(log: EventLog) -> None:
    bus, inside = EventBus(log), asyncio.Event()

    @bus.on(RowsInserted)
    async def forever(event: RowsInserted) -> None:
        inside.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(bus.run(since=0))
    await log.publish(inserted(1))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await log.read(0, HandlerFailed) == []


async def test_handlers_are_added_and_removed_while_it_runs(log: EventLog, bus: EventBus) -> None:
    stays, goes, comes = Recorder(), Recorder(), Recorder()
    bus.on(RowsInserted)(stays.handle)
    bus.on(RowsInserted)(goes.handle)
    await log.publish(inserted(1))
    assert await stays.seqs(1) == await goes.seqs(1) == [1]
    bus.off(goes.handle)
    bus.off(goes.handle)  # not there any more: nothing happens
    bus.on(RowsInserted)(comes.handle)
    await log.publish(inserted(2))
    assert await comes.seqs(1) == await stays.seqs(1) == [2]
    bus.off(stays.handle)
    bus.off(comes.handle)
    await log.publish(inserted(3))
    bus.on(HandlerFailed)(goes.handle)
    await log.publish(HandlerFailed(handler="h", event=1, error="e"))
    assert await goes.seqs(1) == [4]
    assert stays.queue.empty()
    assert comes.queue.empty()


async def test_a_handler_that_removes_itself_and_adds_another(log: EventLog, bus: EventBus) -> None:
    later = Recorder()
    calls: list[int] = []

    @bus.on(RowsInserted)
    def once(event: RowsInserted) -> None:
        calls.append(event.seq)
        bus.off(once)
        bus.on(RowsInserted)(later.handle)

    for n in range(3):
        await log.publish(inserted(n))
    assert await later.seqs(2) == [2, 3]
    assert calls == [1]


async def test_what_happens_right_after_registering_is_not_missed(log: EventLog) -> None:
    for n in range(30):
        bus, recorder = EventBus(log), Recorder()
        since = await log.last()
        task = asyncio.create_task(bus.run(since))
        for _ in range(n % 6):
            await asyncio.sleep(0)
        bus.on(RowsInserted)(recorder.handle)
        made = await log.publish(inserted(n))
        assert await recorder.seqs(1) == [made.seq]
        task.cancel()
        await asyncio.wait([task])


async def test_what_happened_long_before_registering_is_not_delivered(log: EventLog) -> None:
    bus, recorder = EventBus(log), Recorder()
    task = asyncio.create_task(bus.run(since=0))
    for n in range(50):  # the bus reads past them, for nobody
        await log.publish(inserted(n))
    bus.on(RowsInserted)(recorder.handle)
    last = await log.publish(inserted(50))
    seqs = await recorder.seqs(1)
    while seqs[-1] != last.seq:
        seqs += await recorder.seqs(1)
    assert seqs[0] > 1
    task.cancel()
    await asyncio.wait([task])


async def test_an_event_of_another_program_does_not_end_the_bus(
    log: EventLog, bus: EventBus, store: SQLMetadataStore
) -> None:
    recorder = Recorder()
    bus.on(RowsInserted)(recorder.handle)
    await store.commit(AppendEvent("FromElsewhere", "", "{}", 1.0))
    await log.publish(inserted(1))
    assert await recorder.seqs(1) == [2]


class AwayOnce(SQLMetadataStore):
    """A store that cannot be reached the next time that events are read, if that is asked for."""

    away = False

    async def events(self, *args: Any, **kwargs: Any) -> list[EventRecord]:
        if self.away:
            self.away = False
            raise StoreUnavailableError("away")
        return await super().events(*args, **kwargs)


async def test_events_during_an_outage_are_delivered_after_it(tmp_path: Path) -> None:
    store, recorder = AwayOnce(SQLiteDatabase(tmp_path / "meta.db")), Recorder()
    await store.open()
    log = EventLog(store)
    bus = EventBus(log)
    bus.on(RowsInserted)(recorder.handle)
    outages = asyncio.Event()

    async def keep() -> None:  # as the supervisor does
        while True:
            try:
                await bus.run()
            except StoreUnavailableError:
                outages.set()

    await store.commit(inserted(1).change())
    running = asyncio.create_task(keep())
    while not recorder.queue.qsize():  # it delivers what comes once it runs
        await store.commit(inserted(2).change())
        await asyncio.sleep(0)
    store.away = True
    [during] = await store.commit(inserted(3).change())
    await outages.wait()
    while (await recorder.queue.get()).seq != during.seq:
        pass
    running.cancel()
    await asyncio.wait([running])
    await store.aclose()


@pytest.mark.parametrize("error", [None, ValueError("while it cleaned up")])
async def test_a_handler_that_takes_the_end_for_its_own_does_not_keep_the_bus_running(
    log: EventLog, error: Exception | None
) -> None:
    bus, waits = EventBus(log), asyncio.Event()

    @bus.on(RowsInserted)
    async def stubborn(event: Event) -> None:
        waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    task = asyncio.create_task(bus.run(since=0))
    await log.publish(RowsInserted(table="t", ids=[1]))
    await waits.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
