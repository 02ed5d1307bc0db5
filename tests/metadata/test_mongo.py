"""The MongoDB metadata store, on a replica set and on a standalone server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest

from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.errors import (
    ClosedError,
    ConfigurationError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.metadata.changes import (
    Change,
    DeleteComponent,
    DeleteCursor,
    DeleteEvents,
    MoveCursor,
    PutComponent,
    PutJob,
    SetJobState,
)
from asyncdl.metadata.mongo import MongoMetadataStore
from asyncdl.metadata.mongo_changesets import ChangeSetCommits
from asyncdl.testing.metadata import MetadataStoreTests
from asyncdl.testing.metadata_records import PREPARED, RecordKind, component, event, intent, job
from tests.mongodb import served

pytestmark = pytest.mark.anyio


class FailingDatabase(MongoDatabase):
    """A real database whose connection breaks at some write: before it, or before its answer."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.countdown = -1
        self.answer_only = False

    async def _call(self, call: Any, *, to_the_end: bool) -> Any:
        if to_the_end:
            self.countdown -= 1
        if self.countdown != 0 or not to_the_end:
            return await super()._call(call, to_the_end=to_the_end)
        if self.answer_only:
            await super()._call(call, to_the_end=to_the_end)
        self.countdown = 0 if self.answer_only else 1  # gone for good: the process might as well be dead
        raise StoreError("the connection broke")


def name_of(where: Path) -> str:
    return "test_" + hashlib.sha256(str(where).encode()).hexdigest()[:20]


class OnMongoDB(MetadataStoreTests):
    url: str

    @pytest.fixture(autouse=True)
    def _dropped(self, tmp_path: Path, _server: None) -> Iterator[None]:
        yield
        with pymongo.MongoClient(self.url) as client:
            client.drop_database(name_of(tmp_path))

    def make_store(self, where: Path) -> MongoMetadataStore:
        return MongoMetadataStore(MongoDatabase(self.url + name_of(where)))

    async def raw(self, where: Path, kind: RecordKind) -> Sequence[Any]:
        with pymongo.MongoClient(self.url) as client:
            database = client[name_of(where)]
            if kind in {"links", "artifacts"}:
                field = "children" if kind == "links" else kind
                found = database["_asyncdl_components"].find({"gone": None})
                return [(each["_id"], name) for each in found for name in each[field]]
            return [without(each) for each in database[f"_asyncdl_{kind}"].find({"gone": None})]


def without(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out the number of the commit that wrote it last."""
    return {name: value for name, value in sorted(document.items()) if name != "_v"}


class TestMongoMetadataStoreOnReplicaSet(OnMongoDB):
    @pytest.fixture
    def _server(self, mongodb_replica_set: str) -> None:
        self.url = mongodb_replica_set

    async def test_other_processes_commits_are_told_of_at_once(self, tmp_path: Path) -> None:
        store, other = self.make_store(tmp_path), self.make_store(tmp_path)
        await store.open()
        await other.open()
        loop, late = asyncio.get_running_loop(), []
        for n in range(1, 21):
            seen = await other.wait_for_commits(0, "events")
            while await other.last_event() < n - 1:
                seen = await other.wait_for_commits(seen, "events")
            await store.commit(event())
            begun = loop.time()
            while await other.last_event() < n:
                seen = await other.wait_for_commits(seen, "events")
            late.append(loop.time() - begun)
        await other.aclose()
        await store.aclose()
        assert sorted(late)[10] < 0.05

    async def test_a_process_that_died_in_a_transaction_is_not_waited_for(self, store: MongoMetadataStore) -> None:
        dead = MongoDatabase(store.database.url)
        await dead.open()
        held = asyncio.Event()

        async def body(tx: Any) -> None:
            await dead.find_and_update("_asyncdl_store", {"_id": "log"}, {"$inc": {"seq": 1}}, tx=tx)
            held.set()
            await asyncio.Event().wait()

        holding = asyncio.create_task(dead.transact(body))
        await held.wait()
        begun = asyncio.get_running_loop().time()
        [made] = await store.commit(event())
        assert asyncio.get_running_loop().time() - begun < 10
        assert made.seq == 1
        holding.cancel()
        await asyncio.wait([holding])
        await dead.aclose()


class TestMongoMetadataStoreOnStandalone(OnMongoDB):
    @pytest.fixture
    def _server(self, mongodb_standalone: str) -> None:
        self.url = mongodb_standalone

    @pytest.mark.parametrize("answer_only", [False, True])
    async def test_a_process_that_dies_at_any_write_leaves_all_or_nothing(
        self, tmp_path: Path, answer_only: bool
    ) -> None:
        changes: tuple[Change, ...] = (
            event("new"),
            PutComponent(component("new", "new"), children=["child"], artifacts=["b" * 64]),
            DeleteComponent("parent"),
            PutJob(job("new")),
            MoveCursor("cursor", 8, expected=7),
            intent("new"),
            event("newer"),
        )
        outcomes = set()
        for died_at in range(1, 40):
            where = tmp_path / f"{died_at}"
            whole = self.make_store(where)
            await whole.open()
            await whole.commit(*PREPARED)
            before = await self.everything(where)
            database = FailingDatabase(self.url + name_of(where))
            commits = ChangeSetCommits(database)
            await database.open()
            await commits.settle()
            database.countdown, database.answer_only = died_at, answer_only
            try:
                await commits.commit(changes)
            except StoreError:
                survived = False
            else:
                survived = True
            await database.aclose()
            [last] = (await whole.events(0))[-1:]  # reading takes up what was left
            now = await self.everything(where)
            if last.topic == "newer":
                assert [each.uuid for each in await whole.components()] == ["child", "new"]
                assert await whole.cursor("cursor") == 8
                assert sorted(each.id for each in await whole.intents()) == ["announced", "new"]
                assert len(await whole.jobs()) == 5
                assert [each.seq for each in await whole.events(0)] == [1, 2, 3]
            else:
                assert now == before
            outcomes.add(last.topic)
            await whole.commit(event("after"))
            await whole.database.drop()
            await whole.aclose()
            if survived:
                assert last.topic == "newer"
                break
        assert survived
        assert outcomes == {"prepared", "newer"} or answer_only

    async def test_whoever_applies_late_changes_nothing(self, store: MongoMetadataStore, tmp_path: Path) -> None:
        steps: list[tuple[Change, ...]] = [
            PREPARED,
            (DeleteComponent("parent"), MoveCursor("cursor", 8), event("a")),
            (PutComponent(component("parent", "parent", status="new")), DeleteCursor("cursor"), event("b")),
            (DeleteComponent("parent"), MoveCursor("cursor", 1), event("c")),
        ]
        late = ChangeSetCommits(store.database)
        for step in steps:
            await store.commit(*step)
            now = await self.everything(tmp_path)
            for change_set in await store.database.find("_asyncdl_commits", {}, sort=[("_id", 1)]):
                await late._apply(change_set)
                assert await self.everything(tmp_path) == now
        await store.commit(DeleteEvents(2))
        assert [each.topic for each in await store.events(0)] == ["b", "c"]

    async def test_a_commit_whose_answer_was_lost_is_made_once(self, tmp_path: Path) -> None:
        class Forgetful(MongoDatabase):
            lost = 0

            async def update(self, collection: str, *args: Any, **options: Any) -> int:
                found = await super().update(collection, *args, **options)
                if collection == "_asyncdl_commits" and options.get("upsert"):
                    self.lost += 1
                    if self.lost % 2:
                        raise StoreUnavailableError("the answer was lost")
                return found

        store = MongoMetadataStore(Forgetful(self.url + name_of(tmp_path)))
        await store.open()
        for n in range(1, 11):
            [made] = await store.commit(event(f"{n}"), MoveCursor("c", n, expected=n - 1))
            assert made.seq == n
        assert [each.topic for each in await store.events(0)] == [f"{n}" for n in range(1, 11)]
        await store.aclose()

    async def test_a_commit_that_arrives_after_it_was_given_up_is_made_once(self, tmp_path: Path) -> None:
        """The answer does not come, and the write is still on its way: it lands whenever it wants to."""

        class Slow(MongoDatabase):
            held: Any = None

            async def update(self, collection: str, *args: Any, **options: Any) -> int:
                if collection == "_asyncdl_commits" and options.get("upsert") and self.held is None:
                    self.held = super().update(collection, *args, **options)
                    raise StoreTimeoutError("no answer")
                return await super().update(collection, *args, **options)

            async def find(self, collection: str, *args: Any, **options: Any) -> Any:
                await self.land("find")
                return await super().find(collection, *args, **options)

            async def aggregate(self, collection: str, *args: Any, **options: Any) -> Any:
                found = await super().aggregate(collection, *args, **options)
                await self.land("aggregate")
                return found

            async def land(self, when: str) -> None:
                if self.held is not None and when == self.when:
                    held, self.held = self.held, False
                    if held:
                        with contextlib.suppress(DuplicateKeyError):
                            await held

            when = ""

        for when in ("find", "aggregate", "never"):
            database = Slow(self.url + name_of(tmp_path))
            database.held, database.when = False, when
            store = MongoMetadataStore(database)
            await store.open()
            last = await store.last_event()
            await store.commit(MoveCursor(f"c{when}", 1))
            database.held = None
            [made] = await store.commit(event(when), MoveCursor(f"c{when}", 2, expected=1))
            if database.held:
                with contextlib.suppress(DuplicateKeyError):
                    await database.held
            database.held = False
            assert made.seq == last + 1
            [after] = await store.commit(event("after"), MoveCursor(f"c{when}", 3, expected=2))
            assert after.seq == last + 2
            assert [each.topic for each in await store.events(last)] == [when, "after"]
            await store.aclose()

    async def test_old_change_sets_and_tombstones_are_cleared_away(
        self, store: MongoMetadataStore, tmp_path: Path
    ) -> None:
        await store.commit(MoveCursor("gone", 1), event())
        await store.commit(DeleteCursor("gone"))
        for n in range(210):
            await store.commit(MoveCursor("c", n))
        with pymongo.MongoClient[Any](self.url) as client:
            raw = client[name_of(tmp_path)]
            assert raw["_asyncdl_commits"].count_documents({"effects": {"$ne": None}}) <= 200
            assert raw["_asyncdl_cursors"].count_documents({}) == 2
            long_ago = datetime.now(UTC) - timedelta(days=2)
            raw["_asyncdl_cursors"].update_many({"gone": {"$ne": None}}, {"$set": {"gone": long_ago}})
            raw["_asyncdl_commits"].update_many({}, {"$set": {"at": long_ago}})
            await store.aclose()
            await store.open()
            assert raw["_asyncdl_cursors"].count_documents({}) == 1
            assert raw["_asyncdl_commits"].count_documents({}) <= 101
        await store.commit(MoveCursor("c", 1000, expected=209))

    async def test_what_could_never_be_applied_is_refused(self, store: MongoMetadataStore, tmp_path: Path) -> None:
        await store.commit(*PREPARED)
        await store.commit(PutJob(job("large", payload="x" * 10_000_000)))
        before = await self.everything(tmp_path)
        with pytest.raises(ConstraintError):
            await store.commit(event(payload="x" * 16_000_000))
        with pytest.raises(ConstraintError):
            await store.commit(
                intent("lost"), SetJobState("large", "failed", ("pending",), 1.0, error="x" * 10_000_000)
            )
        assert await self.everything(tmp_path) == before
        await store.commit(event())


@pytest.fixture(params=["replica set", "standalone"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    server = request.getfixturevalue(f"mongodb_{request.param.replace(' ', '_')}")
    yield server + name_of(tmp_path)
    with pymongo.MongoClient[Any](server) as client:
        client.drop_database(name_of(tmp_path))


async def test_a_schema_of_another_version_is_refused_and_left_alone(url: str) -> None:
    with pymongo.MongoClient[Any](url) as client:
        raw = client.get_default_database()
        raw["_asyncdl_store"].insert_one({"_id": "schema", "version": 2, "something": "new"})
        store = MongoMetadataStore(MongoDatabase(url))
        with pytest.raises(ConfigurationError, match="schema 2"):
            await store.open()
        with pytest.raises(ClosedError):
            await store.last_event()
        assert raw.list_collection_names() == ["_asyncdl_store"]
        assert raw["_asyncdl_store"].count_documents({}) == 1


async def test_what_a_standalone_server_left_is_applied_when_it_has_become_a_replica_set() -> None:
    class DiesBeforeItApplies(ChangeSetCommits):
        async def _apply(self, change_set: dict[str, Any]) -> None:
            raise StoreUnavailableError("dead")

    server = served(replica_set=False)
    try:
        store = MongoMetadataStore(MongoDatabase(server.url + "x"))
        await store.open()
        await store.commit(*PREPARED)
        await store.commit(event("b"), MoveCursor("cursor", 8, expected=7))
        await DiesBeforeItApplies(store.database).commit([event("c"), MoveCursor("cursor", 9, expected=8)])
        await store.aclose()
        await asyncio.to_thread(server.kill)
        server.replica_set = True
        await asyncio.to_thread(server.start)
        stores = [MongoMetadataStore(MongoDatabase(server.url + "x")) for _ in range(2)]
        await asyncio.gather(*(each.open() for each in stores))
        for at, each in enumerate(stores):
            assert each.database.transactional
            await each.commit(event("d"), MoveCursor("cursor", 10 + at, expected=9 + at))
        found = await stores[0].events(0)
        assert [(each.seq, each.topic) for each in found] == [(1, "prepared"), (2, "b"), (3, "c"), (4, "d"), (5, "d")]
        for each in stores:
            await each.aclose()
    finally:
        server.stop()


async def test_commits_that_go_together_are_each_all_or_nothing(url: str) -> None:
    store, other = (MongoMetadataStore(MongoDatabase(url)) for _ in range(2))
    await store.open()
    await other.open()
    await store.commit(intent("taken"))

    async def commit(n: int) -> list[int] | str:
        on, key = (store, other)[n % 2], "taken" if n % 3 == 0 else f"{n}"
        try:
            made = await on.commit(event(f"{n}"), intent(key), event(f"{n}"))
        except ConflictError:
            return "conflict"
        return [each.seq for each in made]

    outcomes = await asyncio.gather(*(commit(n) for n in range(120)))
    assert [n for n in range(120) if outcomes[n] == "conflict"] == list(range(0, 120, 3))
    log = await other.events(0)
    assert [each.seq for each in log] == list(range(1, 161))
    for n in range(120):
        assert outcomes[n] == ([each.seq for each in log if each.topic == f"{n}"] or "conflict")
    assert len(await store.intents()) == 81
    await store.aclose()
    await other.aclose()


async def test_one_commit_that_is_too_large_does_not_take_others_along(url: str) -> None:
    store = MongoMetadataStore(MongoDatabase(url))
    await store.open()
    large = [event(payload="x" * 17_000_000), intent("large")]
    error = "x" * 999_000  # of these some go together, and the job holds no more than some
    await store.commit(PutJob(job("j", payload="x" * 15_000_000)))
    results = await asyncio.gather(
        *(store.commit(intent(f"{n}")) for n in range(5)),
        store.commit(*large),
        store.commit(SetJobState("j", "failed", ("pending",), 1.0, error=error * 2), intent("with the job")),
        *(store.commit(intent(f"{n}")) for n in range(5, 10)),
        return_exceptions=True,
    )
    refused = [each for each in results if isinstance(each, BaseException)]
    assert [type(each) for each in refused] == [ConstraintError] * 2
    assert all(store.url in str(each) for each in refused)
    assert sorted(each.id for each in await store.intents()) == [f"{n}" for n in range(10)]
    assert await store.last_event() == 0
    await store.aclose()


async def test_cancelled_commits_are_made_or_not_and_leave_nothing_under_way(url: str) -> None:
    store, turns = MongoMetadataStore(MongoDatabase(url)), random.Random(5)
    await store.open()
    returned: set[str] = set()

    async def commit(key: str) -> None:
        await store.commit(event(key), intent(key), event(key))
        returned.add(key)

    for at in range(20):
        tasks = [asyncio.create_task(commit(f"{at}-{n}")) for n in range(10)]
        for task in turns.sample(tasks, 8):
            await asyncio.sleep(turns.random() * 0.003)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        whole = [each.topic for each in await store.events(0, limit=10_000)]
        assert whole[::2] == whole[1::2]
        assert returned <= set(whole) == {each.id for each in await store.intents()}
    await store.aclose()


async def test_a_commit_that_fails_with_others_tells_each(url: str) -> None:
    class Broken(MongoDatabase):
        broken = False

        async def _call(self, call: Any, *, to_the_end: bool) -> Any:
            if self.broken:
                raise StoreError("it is full")
            return await super()._call(call, to_the_end=to_the_end)

    database = Broken(url)
    store = MongoMetadataStore(database)
    await store.open()
    database.broken = True
    results = await asyncio.gather(*(store.commit(event()) for _ in range(5)), return_exceptions=True)
    assert [str(each) for each in results] == ["it is full"] * 5
    assert len({id(each) for each in results}) == 5
    database.broken = False
    [made] = await store.commit(event())
    assert made.seq == 1
    await store.aclose()
