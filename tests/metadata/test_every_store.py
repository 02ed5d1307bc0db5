"""What several processes, and several stores in one, do to a metadata store at once: on each kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from asyncdl.drivers.sql import MARK, Statement
from asyncdl.errors import ConflictError, DuplicateKeyError
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.changes import Change, ClaimJob, DeleteComponent, MoveCursor, PutComponent, PutJob
from asyncdl.metadata.records import EventRecord
from asyncdl.metadata.sql import SQLMetadataStore
from asyncdl.testing.metadata_records import component, event, intent, job
from tests.metadata.committing import committer
from tests.places import METADATA, PLACES, metadata_store

pytestmark = pytest.mark.anyio

SQL = pytest.mark.parametrize("uri", ["sqlite", "postgresql", "mysql"], indirect=True)
SQL_SERVERS = pytest.mark.parametrize("uri", ["postgresql", "mysql"], indirect=True)


@pytest.fixture(params=METADATA)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with PLACES[request.param](request, tmp_path) as uri:
        yield uri


@pytest.fixture
async def store(uri: str) -> AsyncIterator[MetadataStore]:
    store = metadata_store(uri)
    await store.open()
    yield store
    await store.aclose()


async def test_two_processes_committing_at_once_lose_nothing(uri: str) -> None:
    processes = [committer(uri, name, 100, 10) for name in "ab"]  # all three make the schema, too
    store = metadata_store(uri)
    await store.open()
    seen, found = 0, list[EventRecord]()
    while len(found) < 402:
        seen = await store.wait_for_commits(seen)
        if not found:
            await store.commit(event("mine"), event("mine"))
        found += await store.events(found[-1].seq if found else 0)
    for each in processes:
        out, errors = await asyncio.to_thread(each.communicate)
        assert (each.returncode, errors) == (0, "")
        assert len(out.split()) == 100
    assert found == await store.events(0)
    assert all(found[at].topic == found[at + 1].topic for at in range(0, 402, 2))
    assert len({each.topic for each in found}) == 201
    assert len(await store.intents()) == 200
    await store.aclose()


async def test_a_process_killed_while_committing_leaves_whole_commits(uri: str) -> None:
    lines: list[str] = []
    for life in range(4):
        process = committer(uri, f"life{life}", 1_000_000, 5)
        assert process.stdout is not None
        lines += [await asyncio.to_thread(process.stdout.readline) for _ in range(20 + life)]
        process.kill()
        # By the same reader: communicate() reads past what that has in its buffer, and would begin in the middle of a line.
        out = await asyncio.to_thread(process.stdout.read)
        _, errors = await asyncio.to_thread(process.communicate)
        assert process.returncode == -9, errors
        lines += [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
    acknowledged = {line.rstrip("\n") for line in lines}
    assert len(acknowledged) == len(lines) >= 86
    store = metadata_store(uri)
    await store.open()
    # What was under way has been applied by then, or never is; and nobody holds a lock any more.
    await store.commit(event("after"), event("after"), intent("after"))
    events = await store.events(0, limit=10_000_000)
    topics = [each.topic for each in events[::2]]
    assert topics == [each.topic for each in events[1::2]]
    assert set(topics) == {each.id for each in await store.intents()}
    assert acknowledged <= set(topics)
    seqs = [each.seq for each in events]
    assert seqs == sorted(set(seqs))
    await store.aclose()


async def test_a_parent_put_while_its_child_is_deleted(uri: str, store: MetadataStore) -> None:
    other = metadata_store(uri)
    await other.open()
    for n in range(20):
        child = component(f"child{n}", f"child{n}")
        await store.commit(PutComponent(child))
        parent = PutComponent(component(f"parent{n}", f"parent{n}"), children=[child.uuid])
        results = await asyncio.gather(
            store.commit(parent), other.commit(DeleteComponent(child.uuid)), return_exceptions=True
        )
        assert sorted(isinstance(each, Exception) for each in results) == [False, True], results
        left = {each.uuid for each in await store.components(identifier=f"parent{n}")}
        assert left == ({f"parent{n}"} if isinstance(results[1], Exception) else set())
    await other.aclose()


@SQL_SERVERS
async def test_a_smaller_number_never_becomes_visible_after_a_larger_one(uri: str, store: SQLMetadataStore) -> None:
    other = metadata_store(uri)
    await other.open()
    appended, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> None:
        async with store.database.transaction() as tx:
            await tx.run(*store.database.lock(store._of_ours("commit")), *store._changes.statements(event("slow")))
            appended.set()
            await go_on.wait()

    slow = asyncio.create_task(slowly())
    await appended.wait()
    quick = asyncio.create_task(other.commit(event("quick")))
    await asyncio.wait([quick], timeout=0.2)
    assert await other.events(0) == []  # it waits, and steps over nothing
    go_on.set()
    await slow
    [made] = await quick
    assert [each.topic for each in await other.events(0)] == ["slow", "quick"]
    assert made.seq == 2
    await other.aclose()


@SQL
async def test_rows_and_events_commit_together_or_not_at_all(store: SQLMetadataStore) -> None:
    database = store.database
    await database.open()  # as the databackend does
    mark = "?" if database.url.startswith("sqlite") else MARK
    await database.write(Statement("CREATE TABLE docs (id INTEGER PRIMARY KEY)"))
    async with database.transaction() as tx:
        tx.defer(Statement(f"INSERT INTO docs VALUES ({mark})", [(1,), (2,)], many=True))
        [made] = await store.commit(event("docs"), PutJob(job()), joining=tx)
    assert await store.events(0) == [made]
    assert await database.fetch("SELECT id FROM docs") == [(1,), (2,)]

    async def write(row: int, *changes: Change) -> None:
        async with database.transaction() as tx:
            tx.defer(Statement(f"INSERT INTO docs VALUES ({mark})", (row,)))
            await store.commit(event("lost"), *changes, joining=tx)

    with pytest.raises(ConflictError):
        await write(3, MoveCursor("c", 2, expected=1))
    with pytest.raises(DuplicateKeyError):  # a row of the user's, and so not a conflict of ours
        await write(1, ClaimJob("j", "me", 5.0, 6.0))
    assert await store.events(0) == [made]
    assert (await store.jobs())[0].attempts == 0
    await store.aclose()
    assert await database.fetch("SELECT count(*) FROM docs") == [(2,)]  # what we did not open stays open
    await database.aclose()


# MariaDB keeps what it shows of transactions for as long as somebody looks at it more often than every 0.1 s.
WAITING = {
    "postgresql": "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
    "mysql": "SELECT 1 FROM information_schema.innodb_trx, (SELECT sleep(0.15)) AS pause WHERE trx_state = 'LOCK WAIT'",
}


async def _until_one_waits_for_a_lock(store: SQLMetadataStore) -> None:
    """Wait until the server says so: what is held up then is held up by the transaction that is open."""
    look = WAITING[store.database.url.partition(":")[0]]
    async with asyncio.timeout(60):
        while not await store.database.fetch(look):
            pass  # each look is a round trip


@SQL_SERVERS
async def test_who_closes_a_gate_waits_for_a_claim_under_way_and_sees_it(store: SQLMetadataStore) -> None:
    await store.commit(PutJob(job("a")), PutJob(job("b")))
    async with store.database.transaction() as tx:
        assert await store.claim_within(tx, ClaimJob("a", "me", 3.0, 9.0, gate="gate")) == {"a"}
        closing = asyncio.create_task(store.commit(MoveCursor("gate", -1, expected=0)))
        await _until_one_waits_for_a_lock(store)
        assert await store.jobs(JobFilter(states=["running"])) == []  # who looked now would miss it
        await tx.commit()
    await closing
    assert [each.id for each in await store.jobs(JobFilter(states=["running"]))] == ["a"]
    assert await store.claim(ClaimJob("b", "me", 3.0, 9.0, gate="gate")) == set()


@SQL_SERVERS
async def test_a_claim_waits_for_who_is_closing_a_gate_and_is_refused(store: SQLMetadataStore) -> None:
    await store.commit(PutJob(job("a")), PutJob(job("b")))
    async with store.database.transaction() as tx:
        await tx.run(*store.database.exclude(store._of_ours("gates")))  # as `commit` does
        await tx.run(*store._changes.statements(MoveCursor("gate", -1, expected=0)))
        claims = ClaimJob("a", "me", 3.0, 9.0, gate="gate"), ClaimJob("b", "me", 3.0, 9.0, gate="of another")
        claiming = asyncio.create_task(store.claim(*claims))
        await _until_one_waits_for_a_lock(store)
        assert not claiming.done()
        await tx.commit()
    assert await claiming == {"b"}


@SQL_SERVERS
async def test_claims_pass_over_what_others_are_claiming_and_wait_for_no_commit(store: SQLMetadataStore) -> None:
    await store.commit(PutJob(job("a")), PutJob(job("b")))
    async with store.database.transaction() as held, store.database.transaction() as tx:
        await held.run(*store.database.lock(store._of_ours("commit")))
        assert await store.claim_within(tx, ClaimJob("a", "me", 3.0, 9.0)) == {"a"}
        both = [ClaimJob(each, "you", 3.0, 9.0) for each in "ab"]
        assert await asyncio.wait_for(store.claim(*both), 60) == {"b"}
        await tx.commit()
    assert {(each.id, each.owner) for each in await store.jobs()} == {("a", "me"), ("b", "you")}
