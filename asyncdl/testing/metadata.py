"""The conformance suite of metadata stores.

Derive a class named ``Test...`` from `MetadataStoreTests`, implement its two hooks, and pytest runs the suite against your
store. It needs the pytest plugin of anyio, on asyncio.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncdl.errors import AsyncDLError, ClosedError, StoreError
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.changes import (
    AdvanceJob,
    Change,
    ClaimJob,
    DeleteComponent,
    DeleteIntent,
    FinishJob,
    MoveCursor,
    PutComponent,
    PutIntent,
    PutJob,
    SetComponentState,
    SetComponentStatus,
)
from asyncdl.metadata.records import IntentRecord
from asyncdl.testing.metadata_components import ComponentTests
from asyncdl.testing.metadata_events import EventTests
from asyncdl.testing.metadata_jobs import JobTests
from asyncdl.testing.metadata_records import HOSTILE, PREPARED, READS, REFUSED, component, event, intent, job


class MetadataStoreTests(ComponentTests, EventTests, JobTests):
    """What every metadata store must do."""

    # opening and closing

    async def test_what_time_it_is_for_the_store(self, store: MetadataStore) -> None:
        assert abs(store.clock.now() - time.time()) < 300  # it may be another machine's
        [timed, untimed] = await store.commit(replace(event(), created=1.5), replace(event(), created=0.0))
        assert timed.created == 1.5
        assert abs(untimed.created - store.clock.now()) < 300
        assert [each.created for each in await store.events(0)] == [timed.created, untimed.created]

    @pytest.mark.parametrize("use", READS.values(), ids=READS.keys())
    async def test_use_before_open_and_after_close_is_refused(
        self, tmp_path: Path, use: Callable[[MetadataStore], Awaitable[Any]]
    ) -> None:
        store = self.make_store(tmp_path)
        with pytest.raises(ClosedError):
            await use(store)
        await store.open()
        await use(store)
        await store.aclose()
        with pytest.raises(ClosedError):
            await use(store)

    async def test_closing_twice_is_allowed_and_closing_before_opening(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        await store.aclose()
        await store.open()
        await store.aclose()
        await store.aclose()
        with pytest.raises(ClosedError):
            await store.last_event()

    async def test_reopening_finds_what_was_committed(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        await store.open()
        await store.commit(*PREPARED)
        before, identity = await self.everything(tmp_path), store.identity
        await store.aclose()
        for again in (store, self.make_store(tmp_path)):
            await again.open()
            assert await again.cursor("cursor") == 7
            assert [each.uuid for each in await again.components()] == ["child", "parent"]
            assert again.identity == identity
            await again.aclose()
        assert await self.everything(tmp_path) == before

    async def test_two_stores_opened_at_once_on_nothing_share_one_identity(self, tmp_path: Path) -> None:
        stores = [self.make_store(tmp_path) for _ in range(4)]
        await asyncio.gather(*(each.open() for each in stores))
        identities = {each.identity for each in stores}
        await asyncio.gather(*(each.aclose() for each in stores))
        assert len(identities) == 1
        assert len(identities.pop()) == 32

    async def test_closing_ends_the_wait_for_commits(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        await store.open()
        waiting = asyncio.create_task(_forever(store))
        await asyncio.sleep(0)
        await store.aclose()
        with pytest.raises(ClosedError):
            await waiting

    # all or nothing

    @pytest.mark.parametrize(("change", "error"), REFUSED.values(), ids=REFUSED.keys())
    @pytest.mark.parametrize("place", ["first", "last"])
    async def test_a_condition_that_fails_leaves_nothing_of_its_commit(
        self, store: MetadataStore, tmp_path: Path, change: Change, error: type[AsyncDLError], place: str
    ) -> None:
        await store.commit(*PREPARED)
        before = await self.everything(tmp_path)
        fine: tuple[Change, ...] = (
            event("lost"),
            intent("lost"),
            PutComponent(component("lost", "lost"), children=["child"], artifacts=["b" * 64]),
            SetComponentState("parent", '{"lost": 1}'),
            PutJob(job("lost")),
            AdvanceJob("mine", "me", 5, 9, payload='{"lost": 1}'),
            MoveCursor("lost", 3),
        )
        with pytest.raises(error) as caught:
            await store.commit(*((change, *fine) if place == "first" else (*fine, change)))
        assert caught.type is error
        assert await self.everything(tmp_path) == before

        await store.commit(*fine)  # the store is as good as before
        assert await store.cursor("lost") == 3

    async def test_an_empty_commit_changes_nothing(self, store: MetadataStore, tmp_path: Path) -> None:
        await store.commit(*PREPARED)
        before = await self.everything(tmp_path)
        assert await store.commit() == []
        assert await self.everything(tmp_path) == before

    async def test_changes_of_a_commit_see_those_before_them(self, store: MetadataStore) -> None:
        await store.commit(
            PutComponent(component("a", "a")),
            SetComponentStatus("a", "ready"),
            PutComponent(component("b", "b"), children=["a"]),
            DeleteComponent("b"),
            DeleteComponent("a"),
            PutComponent(component("a2", "a")),
            PutJob(job()),
            ClaimJob("j", "me", 1.0, 2.0),
            FinishJob("j", "me", "succeeded", 1.5),
        )
        assert await store.components() == [component("a2", "a")]
        [done] = await store.jobs()
        assert (done.state, done.attempts) == ("succeeded", 1)

    async def test_200_cancelled_commits_leave_the_store_whole(
        self, store: MetadataStore, other: MetadataStore, tmp_path: Path
    ) -> None:
        turns, returned = random.Random(7), set()  # noqa: S311 - where to cancel
        for at in range(0, 200, 20):
            names = [f"{n:03}" for n in range(at, at + 20)]
            tasks = [asyncio.create_task(store.commit(event(name), intent(name))) for name in names]
            for task in turns.sample(tasks, len(tasks)):
                for _ in range(turns.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            returned |= {name for name, result in zip(names, results, strict=True) if isinstance(result, list)}
            assert all(isinstance(each, (list, asyncio.CancelledError)) for each in results)
        await store.commit(event("last"), intent("last"))
        await other.commit(event("other"), intent("other"))
        events = [each.topic for each in await store.events(0)]
        assert sorted(events) == sorted(each.id for each in await store.intents())
        assert returned | {"last", "other"} <= set(events)
        assert len(set(events)) == len(events) == len(await self.raw(tmp_path, "intents"))

    # intents

    async def test_intents_are_told_oldest_first_until_withdrawn(self, store: MetadataStore, tmp_path: Path) -> None:
        await store.commit(intent("new", 2.5), intent("old", 1.25), intent("middle", 2.0))
        assert [each.id for each in await store.intents()] == ["old", "middle", "new"]
        assert (await store.intents())[0] == IntentRecord("old", "{}", "process", 1.25)
        await store.commit(DeleteIntent("middle"), event())
        assert [each.id for each in await store.intents()] == ["old", "new"]
        assert len(await self.raw(tmp_path, "intents")) == 2

    # values

    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
    async def test_hostile_texts_are_only_texts(self, store: MetadataStore, text: str) -> None:
        record = component(identifier=text, data=text, state=text, status="ready")
        work = job(payload=text, error=text, stage=text, target=text[:32], state="failed")
        put = PutIntent(IntentRecord("i", text, text, 1.0))
        [made] = await store.commit(
            PutComponent(record), PutJob(work), put, event(text, text, text), MoveCursor(text, 4)
        )
        await store.commit(event("decoy", "decoy"), PutComponent(component("d", "decoy")))
        await store.commit(SetComponentState(record.uuid, "new", expected=text))
        assert await store.components(identifier=text) == [replace(record, state="new")]
        assert await store.jobs(JobFilter(target=text[:32])) == [work]
        assert await store.intents() == [put.record]
        assert await store.events(0, topics=[text]) == await store.events(0, types=[text]) == [made]
        assert made.payload == text
        assert await store.cursor(text) == 4

    async def test_a_text_with_nul_is_stored_whole_or_refused(self, store: MetadataStore) -> None:
        text = "before\x00after"
        try:
            await store.commit(event(payload=text), intent())
        except StoreError:
            assert (await store.events(0), await store.intents()) == ([], [])
        else:
            assert [each.payload for each in await store.events(0)] == [text]

    async def test_a_lone_surrogate_is_refused(self, store: MetadataStore) -> None:
        with pytest.raises(StoreError):
            await store.commit(intent(), event(payload="\ud800"))
        assert await store.intents() == []
        with pytest.raises(StoreError):
            await store.components(identifier="\ud800")

    @pytest.mark.parametrize("size", [100_000, 5_000_000])
    async def test_big_payloads(self, store: MetadataStore, other: MetadataStore, size: int) -> None:
        text = "\N{SNOWMAN}x'\\" * (size // 4)
        await store.commit(
            PutComponent(component(data=text)),
            event(payload=text),
            PutJob(job(payload=text, error=text, state="failed")),
        )
        [stored], [made], [work] = await other.components(), await other.events(0), await other.jobs()
        assert stored.data == made.payload == work.payload == work.error == text


async def _forever(store: MetadataStore) -> None:
    seen = 0
    while True:
        seen = await store.wait_for_commits(seen)
