"""The conformance suite of metadata stores.

Derive a class named ``Test...`` from `MetadataStoreTests`, implement its two hooks, and pytest runs the suite against your
store. It needs the pytest plugin of anyio, on asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from asyncdl.errors import AsyncDLError, ClosedError, ComponentInUseError, ConflictError, LeaseLostError, StoreError
from asyncdl.metadata.base import (
    AdvanceJob,
    AppendEvent,
    Change,
    ClaimJob,
    ComponentRecord,
    DeleteComponent,
    DeleteCursor,
    DeleteEvents,
    DeleteIntent,
    EventRecord,
    FinishJob,
    HoldJob,
    IntentRecord,
    JobFilter,
    JobRecord,
    LinkArtifacts,
    MetadataStore,
    MoveCursor,
    PrioritizeJobs,
    PutComponent,
    PutIntent,
    PutJob,
    RenewLeases,
    SetComponentData,
    SetComponentState,
    SetComponentStatus,
    SetJobState,
    Topic,
)

RecordKind = Literal["components", "links", "artifacts", "events", "jobs", "cursors", "intents"]
KINDS: tuple[RecordKind, ...] = ("components", "links", "artifacts", "events", "jobs", "cursors", "intents")

HOSTILE = {
    "quotes": "it's \"quoted\" `twice` '' \\",
    "statement": "'); DROP TABLE _asyncdl_events; --",
    "parameters": ":name ?1 %s %(x)s $1 {x}",
    "patterns": "%_*[a-z]\\%",
    "emoji": "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{PILE OF POO}",
    "direction": "\N{RIGHT-TO-LEFT OVERRIDE}abc\N{COMBINING ACUTE ACCENT}",
    "whitespace": " \t\r\n trailing ",
    "empty": "",
}


def component(uuid: str = "c" * 32, identifier: str = "model", version: int = 1, **others: Any) -> ComponentRecord:
    """Return a component's record, its type "model" unless given."""
    fields: dict[str, Any] = {"type_id": "model", "fingerprint": "f" * 64, "status": "pending", "data": "{}"}
    return ComponentRecord(uuid=uuid, identifier=identifier, version=version, **fields | {"created": 1.5} | others)


def job(id: str = "j", **others: Any) -> JobRecord:
    """Return the record of a pending job."""
    fields: dict[str, Any] = {"kind": "refresh", "target": "t", "payload": "{}", "first": 1, "last": 1, "created": 1.5}
    return JobRecord(id=id, **fields | others)


def event(topic: str = "docs", type: str = "RowsInserted", payload: str = "{}") -> AppendEvent:
    """Return the change that appends an event."""
    return AppendEvent(type, topic, payload, 2.5)


def intent(id: str = "i", created: float = 3.5) -> PutIntent:
    """Return the change that announces a write."""
    return PutIntent(IntentRecord(id, "{}", "process", created))


PREPARED: tuple[Change, ...] = (
    PutComponent(component("child", "child")),
    PutComponent(component("parent", "parent"), children=["child"], artifacts=["a" * 64]),
    PutJob(job("waiting")),
    PutJob(job("later", not_before=1000.0)),
    PutJob(job("mine")),
    ClaimJob("mine", "me", now=10.0, lease=20.0),
    PutJob(job("done", state="succeeded")),
    MoveCursor("cursor", 7),
    MoveCursor("closed", -3),
    intent("announced"),
    event("prepared"),
)
"""The state in which `REFUSED` is tried."""

REFUSED: dict[str, tuple[Change, type[AsyncDLError]]] = {
    "component: identity taken": (PutComponent(component("new", "child")), ConflictError),
    "component: uuid taken": (PutComponent(component("child", "new")), ConflictError),
    "component: child missing": (PutComponent(component("new", "new"), children=["child", "nobody"]), ConflictError),
    "status: not installed": (SetComponentStatus("nobody", "ready"), ConflictError),
    "status: not as expected": (SetComponentStatus("child", "ready", expected="ready"), ConflictError),
    "state: not installed": (SetComponentState("nobody", "{}"), ConflictError),
    "data: not installed": (SetComponentData("nobody", "{}"), ConflictError),
    "artifacts: not installed": (LinkArtifacts("nobody", ["a" * 64]), ConflictError),
    "state: not as expected": (SetComponentState("child", '{"a": 1}', expected='{"b": 1}'), ConflictError),
    "delete component: not installed": (DeleteComponent("nobody"), ComponentInUseError),
    "delete component: in use": (DeleteComponent("child"), ComponentInUseError),
    "job: id taken": (PutJob(job("waiting")), ConflictError),
    "claim: no such job": (ClaimJob("nothing", "me", 15.0, 30.0), ConflictError),
    "claim: not due": (ClaimJob("later", "me", 999.0, 1010.0), ConflictError),
    "claim: held": (ClaimJob("mine", "you", 19.0, 30.0), ConflictError),
    "claim: held by oneself": (ClaimJob("mine", "me", 19.0, 30.0), ConflictError),
    "claim: attempted meanwhile": (ClaimJob("mine", "you", 25.0, 30.0, attempts=7), ConflictError),
    "claim: finished": (ClaimJob("done", "me", 5000.0, 5010.0), ConflictError),
    "claim: gate closed": (ClaimJob("waiting", "me", 15.0, 30.0, gate="closed"), ConflictError),
    "take over: gate closed": (ClaimJob("mine", "you", 25.0, 30.0, gate="closed"), ConflictError),
    "advance: not running": (AdvanceJob("waiting", "me", 1, 2), LeaseLostError),
    "advance: another's": (AdvanceJob("mine", "you", 1, 2), LeaseLostError),
    "advance: no such job": (AdvanceJob("nothing", "me", 1, 2), LeaseLostError),
    "hold: not running": (HoldJob("waiting", "me"), LeaseLostError),
    "hold: another's": (HoldJob("mine", "you"), LeaseLostError),
    "hold: no such job": (HoldJob("nothing", "me"), LeaseLostError),
    "finish: not running": (FinishJob("waiting", "me", "succeeded", 15.0), LeaseLostError),
    "finish: another's": (FinishJob("mine", "you", "succeeded", 15.0), LeaseLostError),
    "set job: not among": (SetJobState("done", "pending", ("failed", "cancelled"), 15.0), ConflictError),
    "set job: no such job": (SetJobState("nothing", "pending", ("failed",), 15.0), ConflictError),
    "cursor: moved meanwhile": (MoveCursor("cursor", 9, expected=8), ConflictError),
    "cursor: not new": (MoveCursor("cursor", 9, expected=0), ConflictError),
    "cursor: none there": (MoveCursor("other", 9, expected=7), ConflictError),
    "intent: id taken": (intent("announced"), ConflictError),
    "delete intent: settled": (DeleteIntent("settled"), ConflictError),
}
"""Changes whose condition does not hold in the state that `PREPARED` makes, and the error that says so."""

WAKING: list[tuple[Topic, Change]] = [
    ("anything", SetComponentStatus("child", "ready")),
    ("components", SetComponentStatus("child", "ready")),
    ("components", PutComponent(component("another"))),
    ("events", event()),
    ("work", PutJob(job("new"))),
    ("work", SetJobState("done", "pending", ("succeeded",), 15.0)),
    ("work", FinishJob("mine", "me", "pending", 15.0)),
    ("completion", FinishJob("mine", "me", "succeeded", 15.0)),
    ("completion", SetJobState("waiting", "cancelled", ("pending",), 15.0)),
    ("stops", SetJobState("mine", "cancelled", ("running",), 15.0)),
    ("stops", MoveCursor("closed", -4, expected=-3)),
    ("completion", FinishJob("mine", "me", "paused", 15.0, refund=True)),
    ("completion", MoveCursor("cursor", 8, expected=7)),
]
"""Changes, and a topic whose waiters each must wake."""

READS: dict[str, Callable[[MetadataStore], Awaitable[Any]]] = {
    "components": lambda store: store.components(),
    "parents": lambda store: store.parents("c"),
    "children": lambda store: store.children("c"),
    "artifacts": lambda store: store.artifacts(),
    "events": lambda store: store.events(0),
    "last_event": lambda store: store.last_event(),
    "cursor": lambda store: store.cursor("c"),
    "cursors": lambda store: store.cursors(),
    "pending_causes": lambda store: store.pending_causes("nobody"),
    "jobs": lambda store: store.jobs(),
    "claimable": lambda store: store.claimable(1.0, limit=1),
    "next_due": lambda store: store.next_due(1.0),
    "intents": lambda store: store.intents(),
    "commit": lambda store: store.commit(event()),
    "wait_for_commits": lambda store: store.wait_for_commits(0),
}


class MetadataStoreTests(ABC):
    """What every metadata store must do.

    Note for implementers: the tests decide on times that they make up (``now`` and ``lease`` are small numbers), so a store
    must compare them with each other only, never with a clock of its own.
    """

    pytestmark = pytest.mark.anyio

    @abstractmethod
    def make_store(self, where: Path) -> MetadataStore:
        """Return a store, not open yet; two for one folder are on the same data, as if of two processes."""

    @abstractmethod
    async def raw(self, where: Path, kind: RecordKind) -> Sequence[Any]:
        """Return the records of a kind as the database itself shows them, past the code under test."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[MetadataStore]:
        """Yield an open store."""
        store = self.make_store(tmp_path)
        await store.open()
        yield store
        await store.aclose()

    @pytest.fixture
    async def other(self, store: MetadataStore, tmp_path: Path) -> AsyncIterator[MetadataStore]:
        """Yield a second store on the same data."""
        other = self.make_store(tmp_path)
        await other.open()
        yield other
        await other.aclose()

    async def everything(self, where: Path) -> dict[RecordKind, list[str]]:
        """Return the raw records of each kind, comparable."""
        return {kind: sorted(map(repr, await self.raw(where, kind))) for kind in KINDS}

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

    # components

    async def test_components_come_back_as_they_were_put(self, store: MetadataStore, tmp_path: Path) -> None:
        records = [
            component("1" * 32, "alpha", 1, created=1764547200.123456, data='{"a": [1, 2.5, null]}', status="ready"),
            component("2" * 32, "alpha", 2, state='{"table": "x"}'),
            component("3" * 32, "alpha", 10),
            component("4" * 32, "beta", 1, type_id="listener"),
        ]
        for record in reversed(records):
            await store.commit(PutComponent(record))
        everything = [records[3], *records[:3]]
        assert await store.components() == everything
        assert len(await self.raw(tmp_path, "components")) == 4
        assert await store.components(type_id="model") == records[:3]
        assert await store.components(identifier="beta") == [records[3]]
        assert await store.components(type_id="model", identifier="alpha", version=2) == [records[1]]
        assert await store.components(type_id="model", identifier="beta") == []
        assert await store.components(uuids=["1" * 32, "4" * 32, "nobody"]) == [records[3], records[0]]
        assert await store.components(uuids=[]) == []
        assert await store.components(uuids=["1" * 32], version=2) == []

    async def test_thousands_can_be_asked_for_at_once(self, store: MetadataStore) -> None:
        await store.commit(PutComponent(component("x", "x")), PutJob(job("x")), event("x", "X"))
        names = [*map(str, range(5000)), "x"]
        assert [each.uuid for each in await store.components(uuids=names)] == ["x"]
        assert [each.id for each in await store.jobs(JobFilter(ids=names))] == ["x"]
        assert [each.topic for each in await store.events(0, topics=names)] == ["x"]

    async def test_status_and_state_are_replaced(self, store: MetadataStore) -> None:
        await store.commit(PutComponent(component("a", "a")), PutComponent(component("b", "b")))
        await store.commit(SetComponentStatus("a", "ready"), SetComponentState("a", '{"n": 1}'))
        await store.commit(SetComponentState("a", '{"n": 2}', expected='{"n": 1}'))
        assert await store.components() == [component("a", "a", status="ready", state='{"n": 2}'), component("b", "b")]

    async def test_what_a_component_declares_is_replaced(self, store: MetadataStore) -> None:
        await store.commit(PutComponent(component(data='{"a": 1}', state='{"kept": 1}')))
        await store.commit(SetComponentData("c" * 32, '{"a": 2}'))
        assert await store.components() == [component(data='{"a": 2}', state='{"kept": 1}')]

    async def test_artifacts_are_linked_and_unlinked_later(self, store: MetadataStore) -> None:
        first, second, third = "a" * 64, "b" * 64, "c" * 64
        await store.commit(PutComponent(component("a", "a"), artifacts=[first]), PutComponent(component("b", "b")))
        await store.commit(LinkArtifacts("a", [first, second, second]), LinkArtifacts("b", [second]))
        assert await store.artifacts("a") == {first, second}
        await store.commit(LinkArtifacts("a", [second, third], [first, second, "d" * 64]))
        assert await store.artifacts("a") == {second, third}
        assert await store.artifacts() == {second, third}
        await store.commit(LinkArtifacts("a", unlinked=[second]), LinkArtifacts("b"))
        assert (await store.artifacts("a"), await store.artifacts("b")) == ({third}, {second})
        await store.commit(DeleteComponent("a"))
        assert await store.artifacts() == {second}

    async def test_links_lead_both_ways_and_artifacts_are_counted_once(self, store: MetadataStore) -> None:
        leaf, middle, top = component("leaf", "leaf"), component("middle", "middle"), component("top", "top")
        await store.commit(
            PutComponent(leaf, artifacts=["a" * 64, "b" * 64, "a" * 64]),
            PutComponent(middle, children=["leaf", "leaf"], artifacts={"b" * 64}),
            PutComponent(top, children=["leaf", "middle"]),
        )
        assert {each.uuid for each in await store.parents("leaf")} == {"middle", "top"}
        assert {each.uuid for each in await store.children("top")} == {"leaf", "middle"}
        assert await store.children("middle") == [leaf]
        assert await store.parents("top") == await store.children("leaf") == await store.parents("nobody") == []
        assert await store.artifacts("leaf") == {"a" * 64, "b" * 64}
        assert await store.artifacts("top") == set()
        assert await store.artifacts() == {"a" * 64, "b" * 64}

    async def test_a_component_is_removed_with_its_links_once_nothing_refers_to_it(
        self, store: MetadataStore, tmp_path: Path
    ) -> None:
        await store.commit(*PREPARED)
        with pytest.raises(ComponentInUseError):
            await store.commit(DeleteComponent("child"), DeleteComponent("parent"))
        await store.commit(DeleteComponent("parent"), DeleteComponent("child"))
        for kind in ("components", "links", "artifacts"):
            assert await self.raw(tmp_path, kind) == []
        await store.commit(PutComponent(component("child", "child")))
        assert await store.parents("child") == []

    async def test_20_concurrent_adders_make_20_versions(self, store: MetadataStore, other: MetadataStore) -> None:
        async def add(n: int) -> int:
            on = (store, other)[n % 2]
            while True:
                version = max((each.version for each in await on.components()), default=0) + 1
                try:
                    await on.commit(PutComponent(component(f"{n}", "model", version)), event())
                except ConflictError:
                    continue
                return version

        assert sorted(await asyncio.gather(*map(add, range(20)))) == list(range(1, 21))
        assert [each.version for each in await other.components()] == list(range(1, 21))
        assert await store.last_event() == 20

    # events

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

    # jobs

    async def test_jobs_come_back_as_they_were_put(self, store: MetadataStore) -> None:
        plain = job("plain")
        full = JobRecord(
            *("full", "backfill", "target", '{"ids": [1]}', 3, 2**53 + 1, 1764547200.123456, "failed", 2, 5, -3),
            *(1764547200.75, "owner", 1764547300.5, 2**53 + 1, 2**60 + 1, "stage", "Traceback: …", 1.25, 2.125),
        )
        await store.commit(PutJob(full), PutJob(plain))
        assert await store.jobs() == [plain, full]

    async def test_jobs_are_filtered_oldest_first(self, store: MetadataStore) -> None:
        records = [
            job("b", created=1.0, target="x", first=1, last=3),
            job("a", created=2.0, kind="backfill", first=3, last=5),
            job("c", created=2.0, state="failed", first=6, last=6),
            job("d", created=3.0, state="running", owner="me", lease=9.0, target="x", first=7, last=9, not_before=5.5),
        ]
        await store.commit(*(PutJob(each) for each in reversed(records)))

        async def ids(**where: Any) -> str:
            return "".join(each.id for each in await store.jobs(JobFilter(**where)))

        assert await ids() == "bacd"
        assert await ids(states=["pending"]) == "ba"
        assert await ids(states={"failed", "running"}) == "cd"
        assert await ids(target="x") == "bd"
        assert await ids(kind="backfill") == "a"
        assert await ids(covers=3) == "ba"
        assert await ids(covers=8) == "d"
        assert await ids(first=4, covers=6) == "ac"
        assert await ids(ids=["c", "a", "nothing"]) == "ac"
        assert await ids(owner="me") == "d"
        assert await ids(due=5.25) == "bac"
        assert await ids(due=5.5) == "bacd"
        assert await ids(target="x", due=5.25) == "b"
        assert await ids(limit=2) == "ba"
        assert await ids(target="x", states=["pending"], covers=2) == "b"
        assert await ids(target="x", states=["failed"]) == ""

    async def test_an_attempt_from_claim_to_end(self, store: MetadataStore) -> None:
        await store.commit(PutJob(job(not_before=5.0)))
        await store.commit(ClaimJob("j", "me", now=5.0, lease=15.0, attempts=0))
        running = job(not_before=5.0, state="running", attempts=1, owner="me", lease=15.0, started=5.0)
        assert await store.jobs() == [running]
        await store.commit(RenewLeases(["j", "nothing"], "me", 25.0), AdvanceJob("j", "me", 10, None, "reading"))
        await store.commit(HoldJob("j", "me"))  # which changes nothing
        assert await store.jobs() == [replace(running, lease=25.0, done=10, total=None, stage="reading")]
        await store.commit(AdvanceJob("j", "me", 20, 30, payload='{"after": 20}'))
        assert await store.jobs() == [replace(running, lease=25.0, done=20, total=30, payload='{"after": 20}')]
        await store.commit(FinishJob("j", "me", "succeeded", now=7.0))
        ended = replace(running, state="succeeded", owner=None, lease=0.0, not_before=0.0, finished=7.0)
        assert await store.jobs() == [replace(ended, done=20, total=30, payload='{"after": 20}')]

    async def test_a_failed_attempt_goes_back_to_the_queue(self, store: MetadataStore) -> None:
        await store.commit(PutJob(job()), ClaimJob("j", "me", 1.0, 2.0))
        await store.commit(FinishJob("j", "me", "pending", 1.5, error="Traceback", not_before=9.0))
        [back] = await store.jobs()
        assert back == job(attempts=1, error="Traceback", not_before=9.0, started=1.0)
        await store.commit(ClaimJob("j", "you", 9.0, 12.0))
        await store.commit(FinishJob("j", "you", "pending", 10.0, refund=True))
        [refunded] = await store.jobs()
        assert (refunded.attempts, refunded.state, refunded.not_before) == (1, "pending", 0.0)
        await store.commit(ClaimJob("j", "you", 11.0, 12.0), FinishJob("j", "you", "failed", 11.5, error="again"))
        [failed] = await store.jobs()
        assert (failed.attempts, failed.state, failed.error, failed.finished) == (2, "failed", "again", 11.5)

    async def test_a_lease_that_has_run_out_is_taken_over(self, store: MetadataStore, other: MetadataStore) -> None:
        await store.commit(PutJob(job()), ClaimJob("j", "me", 100.0, 110.0))
        with pytest.raises(ConflictError):
            await other.commit(ClaimJob("j", "you", 109.5, 120.0))
        await other.commit(ClaimJob("j", "you", 110.0, 120.0, attempts=1))  # at the lease's time it may be
        late: list[Change] = [AdvanceJob("j", "me", 1, 2), FinishJob("j", "me", "succeeded", 111.0)]
        for change in late:
            with pytest.raises(LeaseLostError):
                await store.commit(change, event("lost"))
        await store.commit(RenewLeases(["j"], "me", 999.0))
        [mine] = await store.jobs()
        assert (mine.owner, mine.lease, mine.attempts, mine.done) == ("you", 120.0, 2, 0)
        assert await store.last_event() == 0

    async def test_jobs_are_moved_by_hand(self, store: MetadataStore) -> None:
        await store.commit(PutJob(job(state="failed", attempts=3, error="Traceback", finished=4.0, not_before=7.0)))
        await store.commit(SetJobState("j", "pending", ("failed", "cancelled"), 5.0))
        assert await store.jobs() == [job(not_before=5.0)]
        await store.commit(ClaimJob("j", "me", 6.0, 16.0))
        await store.commit(SetJobState("j", "cancelled", ("pending", "running"), 7.0, error="by hand"))
        with pytest.raises(LeaseLostError):
            await store.commit(FinishJob("j", "me", "succeeded", 8.0))
        [cancelled] = await store.jobs()
        assert cancelled == job(state="cancelled", attempts=1, error="by hand", started=6.0, finished=7.0)

    async def test_claimable_by_priority_then_age(self, store: MetadataStore) -> None:
        await store.commit(
            PutJob(job("old", created=1.0)),
            PutJob(job("young", created=2.0)),
            PutJob(job("also young", created=2.0)),
            PutJob(job("urgent", created=3.0, priority=5)),
            PutJob(job("unimportant", created=0.0, priority=-1)),
            PutJob(job("later", created=0.0, priority=9, not_before=50.5)),
            PutJob(job("held", created=0.0, priority=9, state="running", owner="me", lease=60.5)),
            PutJob(job("done", created=0.0, priority=9, state="succeeded")),
        )

        async def order(now: float, limit: int = 100) -> list[str]:
            return [each.id for each in await store.claimable(now, limit=limit)]

        usual = ["urgent", "old", "also young", "young", "unimportant"]
        assert await order(10.0) == usual
        assert await order(10.0, limit=2) == usual[:2]
        assert await order(50.5) == ["later", *usual]
        assert await order(60.5) == ["held", "later", *usual]
        for each in await order(60.5):
            await store.commit(ClaimJob(each, "me", 60.5, 100.0))
        assert await order(60.5) == []

    async def test_a_new_priority_counts_for_the_next_claim(self, store: MetadataStore) -> None:
        await store.commit(*(PutJob(job(each, created=float(n), priority=1)) for n, each in enumerate("abcd")))
        await store.commit(ClaimJob("d", "me", 1.0, 2.0))
        await store.commit(PrioritizeJobs({"a": 0, "c": 5, "d": -7, "nobody": 3}))
        assert [each.id for each in await store.claimable(9.0, limit=9)] == ["c", "b", "a", "d"]
        assert {each.id: each.priority for each in await store.jobs()} == {"a": 0, "b": 1, "c": 5, "d": -7}
        await store.commit(FinishJob("d", "me", "succeeded", 1.5))

    async def test_a_closed_gate_keeps_jobs_from_being_claimed(self, store: MetadataStore) -> None:
        await store.commit(*(PutJob(job(each)) for each in ("held back", "free", "taken over")))
        await store.commit(ClaimJob("taken over", "dead", 1.0, 2.0), MoveCursor("gate", -1, expected=0))
        for each in ("held back", "taken over"):
            with pytest.raises(ConflictError):
                await store.commit(ClaimJob(each, "me", 3.0, 9.0, gate="gate"))
        await store.commit(ClaimJob("free", "me", 3.0, 9.0, gate="of another"))
        await store.commit(MoveCursor("gate", 2, expected=-1))
        await store.commit(ClaimJob("held back", "me", 3.0, 9.0, gate="gate"))
        with pytest.raises(ConflictError):  # closed by the commit itself
            await store.commit(MoveCursor("gate", -3), ClaimJob("taken over", "me", 3.0, 9.0, gate="gate"))
        await store.commit(DeleteCursor("gate"), ClaimJob("taken over", "me", 3.0, 9.0, gate="gate"))
        assert {each.state for each in await store.jobs()} == {"running"}

    async def test_of_claims_and_a_closing_gate_at_once_none_gets_through_after_it(
        self, store: MetadataStore, other: MetadataStore
    ) -> None:
        await store.commit(*(PutJob(job(f"{n}")) for n in range(40)))

        async def claim(n: int) -> bool:
            try:
                await (store, other)[n % 2].commit(ClaimJob(f"{n}", "me", 3.0, 9.0, gate="gate"), event("claimed"))
            except ConflictError:
                return False
            return True

        async def close() -> int:
            [closed] = await store.commit(MoveCursor("gate", -1, expected=0), event("closed"))
            return closed.seq

        *claimed, closed = await asyncio.gather(*map(claim, range(40)), close())
        seen = [each.seq for each in await other.events(0, topics=["claimed"])]
        assert len(seen) == sum(map(bool, claimed))
        assert all(seq < closed for seq in seen)

    async def test_a_paused_job_waits_and_is_not_claimed(self, store: MetadataStore) -> None:
        await store.commit(PutJob(job("a", first=3, last=4)), PutJob(job("b", first=5, last=6)))
        await store.commit(ClaimJob("a", "me", 1.0, 2.0))
        await store.commit(FinishJob("a", "me", "paused", 1.5, refund=True))
        await store.commit(SetJobState("b", "paused", ("pending",), 1.5))
        paused = await store.jobs(JobFilter(states=["paused"]))
        assert [(each.attempts, each.finished, each.owner) for each in paused] == [(0, None, None)] * 2
        assert await store.claimable(1e9, limit=9) == []
        assert await store.next_due(0.0) is None
        assert sorted(await store.pending_causes("nobody")) == [(3, 4), (5, 6)]
        assert await store.pending_causes("nobody", states=["pending", "running"]) == []
        await store.commit(*(SetJobState(each, "pending", ("paused",), 2.5) for each in "ab"))
        assert len(await store.claimable(2.5, limit=9)) == 2

    async def test_next_due_is_when_claimable_grows(self, store: MetadataStore) -> None:
        assert await store.next_due(0.0) is None
        await store.commit(
            PutJob(job("now")),
            PutJob(job("later", not_before=50.5)),
            PutJob(job("held", state="running", owner="me", lease=60.5)),
            PutJob(job("done", state="succeeded", not_before=70.0, lease=70.0)),
        )
        now, steps = 0.0, []
        while (due := await store.next_due(now)) is not None:
            before = len(await store.claimable(now, limit=9))
            assert len(await store.claimable(due, limit=9)) == before + 1
            now = due
            steps.append(due)
        assert steps == [50.5, 60.5]

    async def test_of_claims_made_together_each_stands_for_itself(self, store: MetadataStore) -> None:
        await store.commit(*(PutJob(job(each)) for each in ["free", "taken", "gated", "open", "attempted", "not due"]))
        await store.commit(ClaimJob("taken", "you", 5.0, 99.0), MoveCursor("shut", -1), MoveCursor("up", 1))
        await store.commit(SetJobState("not due", "pending", ("pending",), 50.0))
        await store.commit(ClaimJob("attempted", "dead", 1.0, 2.0))
        gates = {"gated": "shut", "open": "up", "free": None, "attempted": "none of this name"}
        tries = ["free", "taken", "gated", "open", "no such job", "attempted", "not due"]
        claims = [ClaimJob(each, "me", 6.0, 16.0, 0, gates.get(each)) for each in tries]
        seen = await store.wait_for_commits(0)
        assert await store.claim(*claims) == {"free", "open"}
        assert await store.wait_for_commits(seen) > seen
        begun = await store.jobs(JobFilter(owner="me"))
        assert {each.id for each in begun} == {"free", "open"}
        assert {(each.state, each.attempts, each.lease, each.started) for each in begun} == {("running", 1, 16.0, 6.0)}
        assert await store.claim(*claims) == set()
        later = [ClaimJob("attempted", "you", 16.0, 20.0, 1), ClaimJob("free", "you", 16.0, 20.0)]
        assert await store.claim(*later) == {"attempted", "free"}
        assert await store.claim() == set()

    async def test_of_20_workers_one_claims_each_job(self, store: MetadataStore, other: MetadataStore) -> None:
        async def work(n: int) -> list[str]:
            on, mine = (store, other)[n % 2], list[str]()
            while waiting := await on.claimable(5.0, limit=4):
                mine += await on.claim(*(ClaimJob(each.id, f"{n}", 5.0, 10.0) for each in waiting[:2]))
                for each in waiting[2:]:
                    with contextlib.suppress(ConflictError):
                        await on.commit(ClaimJob(each.id, f"{n}", 5.0, 10.0))
                        mine.append(each.id)
            return mine

        await store.commit(*(PutJob(job(f"{n}")) for n in range(60)))
        claims = [each for mine in await asyncio.gather(*map(work, range(20))) for each in mine]
        assert sorted(claims, key=int) == [f"{n}" for n in range(60)]
        assert {each.attempts for each in await store.jobs()} == {1}

    async def test_pending_causes_are_unfinished_jobs_and_unread_events(self, store: MetadataStore) -> None:
        made = await store.commit(event(), event(), AppendEvent("B", "b", "{}", 1.0, first=1, last=2))
        await store.commit(
            PutJob(job("a", first=1, last=2)),
            PutJob(job("b", first=1, last=2)),
            PutJob(job("c", first=2, last=2, state="running", owner="me", lease=9.0)),
            PutJob(job("d", first=1, last=1, state="failed")),
        )
        last = made[-1].seq
        await store.commit(MoveCursor("all", last), MoveCursor("first", made[0].seq))
        assert sorted(await store.pending_causes("all")) == [(1, 2), (2, 2)]
        await store.commit(SetJobState("c", "cancelled", ("running",), 1.0))
        assert sorted(await store.pending_causes("first")) == [(1, 2), (2, 2)]
        assert sorted(await store.pending_causes("new")) == [(1, 1), (1, 2), (2, 2)]
        await store.commit(*(SetJobState(each, "succeeded", ("pending",), 1.0) for each in "ab"))
        assert await store.pending_causes("all") == []
        assert await store.pending_causes("new", types=["B"]) == [(1, 2)]
        assert await store.pending_causes("new", types=["C"]) == []

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


async def _until(store: MetadataStore, seen: int, last: int) -> int:
    """Wait until an event is visible, and return the token."""
    while await store.last_event() < last:
        seen = await store.wait_for_commits(seen)
    return seen


async def _forever(store: MetadataStore) -> None:
    seen = 0
    while True:
        seen = await store.wait_for_commits(seen)
