"""The conformance suite of metadata stores: events, who waits for them, and how far who has read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncdl.errors import ConflictError
from asyncdl.metadata.base import MetadataStore, Topic
from asyncdl.metadata.changes import AppendEvent, Change, DeleteCursor, DeleteEvents, MoveCursor, PutJob
from asyncdl.metadata.records import EventRecord
from asyncdl.testing.metadata_hooks import MetadataHooks
from asyncdl.testing.metadata_records import PREPARED, WAKING, event, job


class EventTests(MetadataHooks):
    """Events, who waits for them, and cursors."""

    async def test_events_are_numbered_in_the_order_of_their_commits(self, store: MetadataStore) -> None:
        caused = AppendEvent("B", "y", '{"n": 2}', 1764547200.25, first=1, last=4)
        records = await store.commit(event("x"), MoveCursor("c", 1), caused, PutJob(job()), event("z"))
        assert [each.seq for each in records] == sorted({each.seq for each in records})
        first, second, third = records
        assert first == EventRecord(first.seq, "RowsInserted", "x", "{}", 2.5, first.seq, first.seq)
        assert second == EventRecord(second.seq, "B", "y", '{"n": 2}', 1764547200.25, 1, 4)
        assert await store.events(0) == [first, second, third]
        assert await store.last_event() == third.seq

    async def test_events_are_filtered(self, store: MetadataStore) -> None:
        made = await store.commit(*(event(topic, kind) for topic in "xyz" for kind in "ABC"))
        numbers = [each.seq for each in made]
        assert await store.events(numbers[2]) == made[3:]
        assert await store.events(0, limit=2) == made[:2]
        assert await store.events(numbers[1], up_to=numbers[3]) == made[2:4]
        assert [each.topic for each in await store.events(0, types=["A"])] == ["x", "y", "z"]
        assert await store.events(0, types={"A", "C"}, topics=("x",)) == [made[0], made[2]]
        assert await store.events(0, topics=["z", "y"]) == made[3:]
        assert await store.events(numbers[-1]) == []

    async def test_there_has_been_no_event_yet(self, store: MetadataStore) -> None:
        assert await store.last_event() == 0
        assert await store.events(0) == []

    async def test_deleted_events_never_give_their_numbers_again(self, store: MetadataStore, tmp_path: Path) -> None:
        made = await store.commit(*map(event, "abc"))
        await store.commit(DeleteEvents(made[0].seq))
        assert await store.events(0) == made[1:]
        await store.commit(DeleteEvents(made[2].seq + 100))
        assert await store.last_event() == made[2].seq
        assert len(await self.raw(tmp_path, "events")) == 1
        await store.aclose()
        await store.open()
        [after] = await store.commit(event("d"))
        assert after.seq > made[2].seq

    async def test_of_two_that_delete_events_one_gets_through_at_a_time(
        self, store: MetadataStore, other: MetadataStore, tmp_path: Path
    ) -> None:
        made = await store.commit(*(event(f"{n}") for n in range(60)))

        async def delete(on: MetadataStore) -> int:
            steps, at = 0, 0
            while at < made[39].seq:
                up_to = made[min(40, steps * 5 + 5) - 1].seq
                try:
                    await on.commit(DeleteEvents(up_to), MoveCursor("deleted", up_to, expected=at), event("done"))
                except ConflictError:
                    return steps
                steps, at = steps + 1, up_to
            return steps

        steps = await asyncio.gather(delete(store), delete(other))
        assert sum(steps) == 8  # each step once, by whichever of them
        assert await store.cursor("deleted") == made[39].seq
        left = await store.events(0)
        assert left[:20] == made[40:]
        assert [each.topic for each in left[20:]] == ["done"] * 8
        assert len(await self.raw(tmp_path, "events")) == 28

    async def test_a_reader_misses_nothing_of_20_concurrent_committers(
        self, store: MetadataStore, other: MetadataStore
    ) -> None:
        async def write(n: int) -> None:
            for at in range(10):
                batch = [event(f"{n}", payload=f"{at}.{part}") for part in range(3)]
                made = await (store, other)[n % 2].commit(*batch)
                assert [each.payload for each in made] == [each.payload for each in batch]

        async def read(on: MetadataStore) -> list[EventRecord]:
            found: list[EventRecord] = []
            seen, last = 0, False
            while not last:
                last = writing.done()  # whoever is stepped over does not come any more
                while page := await on.events(found[-1].seq if found else 0, limit=50):
                    found += page
                if not last and len(found) < 600:
                    seen = await on.wait_for_commits(seen)
            return found

        writing = asyncio.gather(*map(write, range(20)))
        one, two = await asyncio.gather(read(store), read(other))
        await writing
        log = await store.events(0)
        assert len(log) == 600
        assert one == two == log
        assert [each.seq for each in log] == sorted({each.seq for each in log})
        for n in range(20):
            assert [each.payload for each in log if each.topic == f"{n}"] == [
                f"{at}.{part}" for at in range(10) for part in range(3)
            ]
        assert all(log[at].topic == log[at + 1].topic == log[at + 2].topic for at in range(0, 600, 3))

    # waking

    async def test_a_commit_between_looking_and_waiting_is_not_missed(self, store: MetadataStore) -> None:
        seen = await store.wait_for_commits(0)
        for n in range(1, 51):
            assert await store.last_event() == n - 1
            await store.commit(event())  # we have looked, and do not wait yet
            seen = await _until(store, seen, n)

    async def test_every_waiter_is_woken_by_a_commit_of_either_store(
        self, store: MetadataStore, other: MetadataStore
    ) -> None:
        for n in range(1, 6):
            tasks = [asyncio.create_task(_until(each, 0, n)) for each in (store, store, other, other)]
            await (store, other)[n % 2].commit(event())
            assert len(await asyncio.gather(*tasks)) == 4

    @pytest.mark.parametrize(("topic", "change"), WAKING)
    async def test_a_commit_wakes_those_whom_it_concerns(
        self, store: MetadataStore, other: MetadataStore, topic: Topic, change: Change
    ) -> None:
        await store.commit(*PREPARED)
        seen = [await each.wait_for_commits(0, topic) for each in (store, other)]
        await store.commit(change)
        for each, token in zip((store, other), seen, strict=True):
            assert await each.wait_for_commits(token, topic) != token

    async def test_who_is_woken_knows_of_the_event_and_of_none_that_is_not_there(
        self, store: MetadataStore, other: MetadataStore
    ) -> None:
        await store.commit(MoveCursor("c", 1))
        stores, heads = (store, other), [0, 0]
        for n in range(8):
            seen = [await each.wait_for_commits(0, "events") for each in stores]
            refused = [stores[n % 2].commit(event("x"), MoveCursor("c", 9, expected=7)) for _ in range(3)]
            made, *outcomes = await asyncio.gather(stores[n % 2].commit(event("y")), *refused, return_exceptions=True)
            assert not isinstance(made, BaseException)
            assert all(isinstance(each, ConflictError) for each in outcomes)
            for at, each in enumerate(stores):
                while heads[at] < made[0].seq:
                    heads[at] = await each.known_head()
                    assert heads[at] <= await each.last_event()
                    if heads[at] < made[0].seq:
                        seen[at] = await each.wait_for_commits(seen[at], "events")
        assert len(await store.events(0)) == 8

    async def test_wake_wakes_without_a_commit(self, store: MetadataStore) -> None:
        seen = await store.wait_for_commits(0)
        waiting = asyncio.create_task(store.wait_for_commits(seen))
        await asyncio.sleep(0)
        store.wake()
        assert await waiting != seen

    # cursors

    async def test_a_cursor_moves_from_where_it_is_expected(self, store: MetadataStore, tmp_path: Path) -> None:
        assert await store.cursor("c") is None
        await store.commit(MoveCursor("c", 0, expected=0))
        assert await store.cursor("c") == 0
        await store.commit(MoveCursor("c", 5, expected=0))
        await store.commit(MoveCursor("c", 9, expected=5))
        await store.commit(MoveCursor("d", 2**53 + 1, expected=0))
        assert (await store.cursor("c"), await store.cursor("d")) == (9, 2**53 + 1)
        assert await store.cursors() == {"c": 9, "d": 2**53 + 1}
        await store.commit(MoveCursor("c", 3))
        assert await store.cursor("c") == 3
        await store.commit(DeleteCursor("c"), DeleteCursor("never there"))
        assert await store.cursor("c") is None
        assert await store.cursors() == {"d": 2**53 + 1}
        assert len(await self.raw(tmp_path, "cursors")) == 1

    async def test_of_many_schedulers_one_gets_each_event(self, store: MetadataStore, other: MetadataStore) -> None:
        async def schedule(n: int) -> int:
            on, won = (store, other)[n % 2], 0
            while (cursor := await on.cursor("scheduler") or 0) < 40:
                page = await on.events(cursor, limit=3)
                jobs = [PutJob(job(f"{n}-{each.seq}", payload=each.topic)) for each in page]
                try:
                    await on.commit(*jobs, MoveCursor("scheduler", page[-1].seq, expected=cursor))
                except ConflictError:
                    continue
                won += len(page)
            return won

        await store.commit(*(event(str(n)) for n in range(40)))
        assert sum(await asyncio.gather(*map(schedule, range(10)))) == 40
        assert sorted(int(each.payload) for each in await store.jobs()) == list(range(40))


async def _until(store: MetadataStore, seen: int, last: int) -> int:
    """Wait until an event is visible, and return the token."""
    while await store.last_event() < last:
        seen = await store.wait_for_commits(seen)
    return seen
