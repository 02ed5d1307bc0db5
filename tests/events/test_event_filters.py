"""Subscriptions and handlers for a table or a component, on a real store; cancelling at every await."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import asyncdl
from asyncdl import (
    ComponentAdded,
    ComponentRemoved,
    Event,
    HandlerFailed,
    JobFailed,
    JobSucceeded,
    Listener,
    Model,
    OutputsReplaced,
    OutputsWritten,
    RecomputeRequested,
    RowsInserted,
    RowsUpdated,
)
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import ConfigurationError
from asyncdl.events.bus import EventBus
from asyncdl.events.log import EventLog, Subscription
from asyncdl.events.types import RowsEvent
from asyncdl.metadata.sql import SQLMetadataStore

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, kw_only=True)
class TableRead(Event):
    """An event of the user's, about a table."""

    topic_field: ClassVar[str] = "table"

    table: str


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLMetadataStore]:
    store = SQLMetadataStore(SQLiteDatabase(tmp_path / "meta.db"))
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
def log(store: SQLMetadataStore) -> EventLog:
    return EventLog(store)


def added(type_id: str, identifier: str) -> ComponentAdded:
    return ComponentAdded(type_id=type_id, identifier=identifier, version=0, uuid="u")


EVENTS: list[Event] = [
    RowsInserted(table="docs", ids=[1]),  # 1
    RowsInserted(table="length", ids=[1]),  # 2: a table that is called as the listener is
    added("listener", "length"),  # 3
    added("model", "length"),  # 4
    added("listener", "other"),  # 5
    OutputsWritten(identifier="length", uuid="u", ids=[1]),  # 6
    JobFailed(job="j", kind="refresh", target="u", type_id="listener", identifier="length", error="", attempts=1),  # 7
    JobSucceeded(job="j", kind="refresh", target="u", type_id="schedule", identifier="length", done=1),  # 8
    RecomputeRequested(table="docs"),  # 9
    TableRead(table="docs"),  # 10
    OutputsReplaced(identifier="other", uuid="u"),  # 11
    HandlerFailed(handler="length", event=1, error=""),  # 12
    RowsUpdated(table="docs", ids=[1]),  # 13
]
ASKED: dict[str, tuple[tuple[type[Event], ...], dict[str, Any], list[int]]] = {
    "a table": ((), {"table": "docs"}, [1, 9, 10, 13]),
    "a type of a table": ((RowsInserted,), {"table": "docs"}, [1]),
    "a base of types of a table": ((RowsEvent,), {"table": "docs"}, [1, 13]),
    "a table called as a listener is": ((), {"table": "length"}, [2]),
    "a listener": ((), {"component": ("listener", "length")}, [3, 6, 7]),
    "a model called as a listener is": ((), {"component": ("model", "length")}, [4]),
    "a schedule's jobs": ((), {"component": ("schedule", "length")}, [8]),
    "two types of a listener": ((JobFailed, OutputsWritten), {"component": ("listener", "length")}, [6, 7]),
    "the base of all": ((Event,), {"component": ("listener", "other")}, [5, 11]),
    "a topic": ((), {"topics": ["length"]}, [2, 3, 4, 6, 7, 8, 12]),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_subscriptions_and_handlers_get_what_they_asked_for(log: EventLog, asked: str) -> None:
    types, options, expected = ASKED[asked]
    for event in EVENTS:
        await log.publish(event)
    async with log.subscribe(*types, **options, since=0) as events:
        assert [(await anext(events)).seq for _ in expected] == expected
        waiting = asyncio.create_task(anext(events))
        end = await log.publish(EVENTS[expected[0] - 1])
        assert (await waiting).seq == end.seq  # and nothing in between
    if "topics" not in options:
        bus, seen, done = EventBus(log), [], asyncio.Event()

        @bus.on(*types, **options)
        def handle(event: Event) -> None:
            seen.append(event.seq)
            if event.seq == end.seq:
                done.set()

        task = asyncio.create_task(bus.run(since=0))
        await done.wait()
        assert seen == [*expected, end.seq]
        task.cancel()
        await asyncio.wait([task])


async def test_what_is_passed_over_moves_the_durable_position_on(log: EventLog, store: SQLMetadataStore) -> None:
    async with (
        log.subscribe(table="docs", name="some") as rows,
        log.subscribe(component=("model", "m"), name="m") as of,
    ):
        for _ in range(1200):  # more than two pages that the database selects, and that are of another type's component
            await store.commit(added("listener", "m").change())
        last = await log.publish(added("model", "m"))
        assert await anext(of) == last
        await log.publish(RowsInserted(table="docs", ids=[1]))
        assert (await anext(rows)).seq == 1202
    assert await log.cursors() == {"m": 1200, "some": 1201}


@pytest.mark.parametrize(
    ("types", "options"),
    [
        ((RowsInserted,), {"component": ("listener", "length")}),
        ((ComponentAdded, JobFailed), {"table": "docs"}),
        ((), {"table": "docs", "component": ("listener", "length")}),
        ((), {"table": "docs", "topics": ["docs"]}),
    ],
)
async def test_what_could_never_come_is_refused(log: EventLog, types: Any, options: Any) -> None:
    with pytest.raises(ConfigurationError):
        async with log.subscribe(*types, **options):
            pass
    if "topics" not in options:
        with pytest.raises(ConfigurationError):
            EventBus(log).on(*types, **options)


class Interrupting:
    """A real store whose user is cancelled at the n-th of all moments before and after its calls."""

    def __init__(self, store: SQLMetadataStore) -> None:
        self.store = store
        self.moments = 0
        self.at = -1

    async def _moment(self) -> None:
        self.moments += 1
        if self.moments == self.at:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._moment()
            result = await real(*args, **kwargs)
            await self._moment()
            return result

        return call


async def test_cancelling_at_any_moment_loses_nothing_and_acknowledges_nothing(store: SQLMetadataStore) -> None:
    """Each moment in turn: in a named subscription that reads two pages, with saves in between, then waits."""
    log = EventLog(store)
    for n in range(503):
        await log.publish(RowsInserted(table="docs" if n != 250 else "other", ids=[n]))
    wanted = [n + 1 for n in range(503) if n != 250]
    interrupting, at = Interrupting(store), 0
    while at <= interrupting.moments:
        at += 1
        await log.forget("billing")
        interrupting.moments, interrupting.at = 0, at
        handled: list[int] = []
        inner = EventLog(interrupting)  # type: ignore[arg-type]
        while len(handled) < len(wanted):
            since = 0 if not handled and await store.cursor("subscriber:billing") is None else None
            try:
                async with inner.subscribe(table="docs", name="billing", since=since) as events:
                    await handle_all(store, events, handled, wanted)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                assert task.uncancel() == 0
                if handled:  # never is more acknowledged than was dealt with
                    position = await store.cursor("subscriber:billing")
                    assert position is not None
                    assert position <= handled[-1]
                    again = [each for each in handled if each > position]
                    del handled[len(handled) - len(again) :]
        assert handled == wanted
    assert at > 20


async def handle_all(store: SQLMetadataStore, events: Subscription, handled: list[int], wanted: list[int]) -> None:
    while len(handled) < len(wanted):
        try:
            event = await anext(events)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            before = events.position
            event = await anext(events)  # the wait was cancelled, and not the subscription
            assert before <= event.seq
        assert event.seq == wanted[len(handled)]
        handled.append(event.seq)


async def test_by_the_datalayer(tmp_path: Path) -> None:
    uri, artifacts = f"sqlite:///{tmp_path / 'app.db'}", f"filesystem://{tmp_path / 'blobs'}"
    async with asyncdl.connect(uri, artifact_store=artifacts) as db:
        seen: list[str] = []
        removed = asyncio.Event()

        @db.on(component=("listener", "length"))
        def told(event: Event) -> None:
            seen.append(type(event).__name__)
            if isinstance(event, ComponentRemoved):
                removed.set()

        t = db["docs"]
        await db.execute(t.insert([{"id": 1, "text": "hello"}]))
        async with db.events.subscribe(JobSucceeded, component=("listener", "length")) as events:
            await db.add(Listener("length", model=Model("len", len), key="text", select=t), wait=True)
            event = await anext(events)
            assert isinstance(event, JobSucceeded)
            assert (event.type_id, event.identifier) == ("listener", "length")
        await db.remove("listener", "length")
        await removed.wait()
        assert seen == ["ComponentAdded", "OutputsWritten", "JobSucceeded", "ComponentReady", "ComponentRemoved"]
