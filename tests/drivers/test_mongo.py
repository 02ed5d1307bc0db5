"""MongoDB through motor: connecting, errors, transactions, cancellation, and servers that go away."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymongo
import pytest

import asyncdl
from asyncdl.artifact_store.gridfs import GridFSArtifactStore
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_calls import MongoTransaction, Write
from asyncdl.drivers.mongo_client import database_name
from asyncdl.drivers.mongo_errors import translated
from asyncdl.errors import (
    AsyncDLError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    ConstraintError,
    DuplicateKeyError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.metadata.mongo import MongoMetadataStore
from asyncdl.testing.metadata_records import event, intent
from tests.mongodb import failing, free_port, served

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(mongodb_replica_set: str) -> Iterator[str]:
    name = f"test_{uuid4().hex[:20]}"
    yield mongodb_replica_set + name
    with pymongo.MongoClient[Any](mongodb_replica_set) as client:
        client.drop_database(name)


@pytest.fixture
async def database(url: str) -> AsyncIterator[MongoDatabase]:
    database = MongoDatabase(url)
    await database.open()
    await database.create("c")
    yield database
    await database.aclose()


# connecting


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("mongodb://localhost", "asyncdl"),
        ("mongodb://localhost/", "asyncdl"),
        ("mongodb://localhost:27017/documents", "documents"),
        ("mongodb://u:p%40ss@a:1,b:2/docs?replicaSet=rs0&tls=true", "docs"),
        ("mongodb+srv://cluster.example.net/?retryWrites=true&w=majority", "asyncdl"),
        ("mongodb://h/my%2Ddb?authSource=admin", "my-db"),
    ],
)
def test_the_database_is_the_path_of_the_uri(uri: str, name: str) -> None:
    assert database_name(uri) == MongoDatabase(uri).name == name


@pytest.mark.parametrize(
    "uri", ["mongodb://", "mongodb:///name", "mongodb://h/a b", "mongodb://h/%24x", "mongodb://h/" + "x" * 64]
)
def test_a_uri_that_names_nothing_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        MongoDatabase(uri)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mongodb://u:secret@h/x", "mongodb://u:***@h/x"),
        (
            "mongodb://h/x?tls=true&tlsCertificateKeyFilePassword=secret",
            "mongodb://h/x?tls=true&tlsCertificateKeyFilePassword=***",
        ),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:secret&w=1",
            "mongodb://h/?authMechanismProperties=***&w=1",
        ),
    ],
)
def test_the_url_has_no_password(uri: str, shown: str) -> None:
    assert MongoDatabase(uri).url == shown


async def test_a_server_that_is_down_is_told_of_soon_and_can_be_tried_again() -> None:
    database = MongoDatabase(f"mongodb://user:secret@127.0.0.1:{free_port()}/x")
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError) as caught:
            await database.open()
        assert time.monotonic() - begun < 8
        assert "127.0.0.1" in str(caught.value)
        assert "secret" not in str(caught.value)
        with pytest.raises(ClosedError):
            await database.find("c", {})


@pytest.mark.parametrize(
    "option", ["tls=perhaps", "replicaSet=a&directConnection=maybe", "w=-5", "tsl=true", "tls=true&tlsCAFile=/none"]
)
async def test_an_option_that_the_driver_refuses_is_a_configuration_error(option: str) -> None:
    with pytest.raises(ConfigurationError):
        await MongoDatabase(f"mongodb://127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=200&{option}").open()


async def test_a_wrong_password_is_refused_without_showing_it() -> None:
    server = served(replica_set=False, auth=True)
    try:
        with pymongo.MongoClient[Any](server.url) as client:  # the first user may be made from this machine
            client.admin.command("createUser", "me", pwd="right-one", roles=["root"])
        wrong = MongoDatabase(server.url.replace("://", "://me:wrong-one@") + "x?authSource=admin")
        with pytest.raises(StoreUnavailableError) as caught:
            await wrong.open()
        assert "wrong-one" not in str(caught.value)
        with pytest.raises(StoreUnavailableError):
            await MongoDatabase(server.url + "x").open()
        right = MongoDatabase(
            server.url.replace("://", "://me:right-one@") + "x?authSource=admin&authMechanism=SCRAM-SHA-256"
        )
        await right.open()
        await right.insert("c", [{"_id": 1}])
        assert await right.find("c", {}) == [{"_id": 1}]
        await right.aclose()
    finally:
        server.stop()


async def test_a_user_without_rights_is_refused_by_each_store() -> None:
    server = served(replica_set=False, auth=True)
    try:
        with pymongo.MongoClient[Any](server.url) as client:
            client.admin.command("createUser", "root", pwd="root", roles=["root"])
        with pymongo.MongoClient[Any](server.url, username="root", password="root") as client:
            client["x"].command("createUser", "reader", pwd="secret", roles=["read"])
            client["y"].command("createUser", "stranger", pwd="secret", roles=[])
            made = MongoMetadataStore(MongoDatabase(server.url.replace("://", "://root:root@") + "x?authSource=admin"))
            await made.open()
            await made.commit(event())
            await made.aclose()
        for user in ("reader@x", "stranger@y"):
            name, _, database = user.partition("@")
            uri = server.url.replace("://", f"://{name}:secret@") + f"x?authSource={database}"
            for store in (MongoMetadataStore(MongoDatabase(uri)), GridFSArtifactStore(MongoDatabase(uri))):
                with pytest.raises(StoreUnavailableError) as caught:
                    await store.open()
                assert f"{name}:***@127.0.0.1" in str(caught.value)
                assert "secret" not in str(caught.value)
    finally:
        server.stop()


def test_only_the_driver_s_modules_import_it() -> None:
    root = Path(asyncdl.__file__).parent
    for path in root.rglob("*.py"):
        if path.parent == root / "drivers" and path.name.startswith("mongo"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported = {name.partition(".")[0] for name in names} & {"motor", "pymongo", "gridfs"}  # bson: values
            assert not imported, f"{path.relative_to(root)} imports {imported}"


async def test_openers_are_counted(url: str) -> None:
    database = MongoDatabase(url)
    await asyncio.gather(database.open(), database.open())
    await database.aclose()
    await database.insert("c", [{"_id": 1}])
    await database.aclose()
    await database.aclose()
    with pytest.raises(ClosedError):
        await database.find_one("c", {})
    await database.open()
    assert await database.find_one("c", {}) == {"_id": 1}
    await database.aclose()


async def test_it_knows_what_the_server_can_do(url: str, mongodb_standalone: str) -> None:
    for where, transactional in ((url, True), (mongodb_standalone + "x", False)):
        database = MongoDatabase(where)
        await database.open()
        assert database.transactional is transactional
        await database.aclose()


def test_importing_asyncdl_imports_no_driver() -> None:
    code = "import sys, asyncdl; assert not {'motor', 'pymongo', 'bson', 'gridfs'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# errors


def errors() -> list[Any]:
    from bson.errors import InvalidDocument
    from pymongo import errors

    bulk = {"writeErrors": [{"code": 11000}]}
    return [
        (errors.DuplicateKeyError("x", 11000), DuplicateKeyError),
        (errors.BulkWriteError(bulk), DuplicateKeyError),
        (errors.BulkWriteError({"writeErrors": [{"code": 11000}, {"code": 121}]}), ConstraintError),
        (errors.ServerSelectionTimeoutError("x"), StoreUnavailableError),
        (errors.AutoReconnect("x"), StoreUnavailableError),
        (errors.NotPrimaryError("x"), StoreUnavailableError),
        (errors.NetworkTimeout("x"), StoreTimeoutError),
        (errors.ExecutionTimeout("x"), StoreTimeoutError),
        (errors.WTimeoutError("x"), StoreTimeoutError),
        (errors.OperationFailure("x", 18), StoreUnavailableError),
        (errors.OperationFailure("x", 13), StoreUnavailableError),
        (errors.OperationFailure("x", 112), ConflictError),
        (errors.OperationFailure("x", 10334), ConstraintError),
        (errors.WriteError("x", 121), ConstraintError),
        (errors.OperationFailure("x", 59), StoreError),
        (errors.DocumentTooLarge("x"), ConstraintError),
        (InvalidDocument("x"), ConstraintError),
        (OverflowError("x"), ConstraintError),
        (errors.InvalidOperation("x"), ClosedError),
        (errors.InvalidURI("mongodb://u:secret@h"), ConfigurationError),
        (errors.PyMongoError("x"), StoreError),
    ]


@pytest.mark.parametrize(
    ("original", "kind"), errors(), ids=lambda each: getattr(each, "__name__", type(each).__name__)
)
def test_errors_of_the_driver(original: Exception, kind: type[AsyncDLError]) -> None:
    with pytest.raises(AsyncDLError) as caught, translated("mongodb://here"):
        raise original
    assert type(caught.value) is kind
    assert caught.value.__cause__ is original
    assert "mongodb://here" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_others_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), translated("mongodb://here"):
        raise ZeroDivisionError


async def test_what_the_server_refuses_is_typed(database: MongoDatabase) -> None:
    await database.insert("c", [{"_id": 1}])
    with pytest.raises(DuplicateKeyError):
        await database.insert("c", [{"_id": 1}])
    for value in ("x" * 2**24, "\ud800", 2**63, object()):
        with pytest.raises(ConstraintError):
            await database.insert("c", [{"_id": 2, "value": value}])
    with pytest.raises(StoreError):
        await database.find("c", {"$nonsense": 1})
    assert await database.find("c", {}) == [{"_id": 1}]


# transactions


async def test_a_transaction_is_all_or_nothing_and_its_own_error_comes_through(database: MongoDatabase) -> None:
    async def body(tx: MongoTransaction) -> None:
        await database.write("c", [Write("replace", {"_id": 1}, {"_id": 1})], tx=tx)
        assert await database.find("c", {}, tx=tx) == [{"_id": 1}]
        assert await database.find("c", {}) == []
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.transact(body)
    assert await database.find("c", {}) == []


async def test_last_writes_are_part_of_their_transaction(database: MongoDatabase) -> None:
    """They are made in the hop of the commit, which raises what they raise, undoes everything then, and makes them once."""
    await database.create("numbers", [("n", 1)], unique=True)
    await database.insert("numbers", [{"_id": 1, "n": 1}])

    async def body(tx: MongoTransaction, *, n: int) -> Any:
        found = await database.update_and_find(
            "numbers", {"_id": 0}, {"$inc": {"tries": 1}}, [("numbers", {"n": 1}, {"_id": 1})], tx=tx
        )
        database.write_last("others", [Write("replace", {"_id": 2}, {"n": n})], tx)
        database.write_last("numbers", [Write("replace", {"_id": 2}, {"n": n})], tx)
        return found

    with pytest.raises(DuplicateKeyError):
        await database.transact(lambda tx: body(tx, n=1))
    assert await database.find("numbers", {}) == [{"_id": 1, "n": 1}]
    assert await database.find("others", {}) == []
    assert await database.transact(lambda tx: body(tx, n=2)) == ({"_id": 0, "tries": 1}, [[{"_id": 1}]])
    assert await database.find("others", {}) == [{"_id": 2, "n": 2}]


async def test_transactions_that_meet_are_made_again(database: MongoDatabase) -> None:
    async def increment(tx: MongoTransaction) -> None:
        found = await database.find_one("c", {"_id": 1}, tx=tx)
        assert found is not None
        await database.find_and_update("c", {"_id": 1}, {"$set": {"n": found["n"] + 1}}, tx=tx)

    await database.insert("c", [{"_id": 1, "n": 0}])
    await asyncio.gather(*(database.transact(increment) for _ in range(60)))
    assert await database.find("c", {}) == [{"_id": 1, "n": 60}]


async def test_200_cancelled_transactions_leave_nothing_locked(database: MongoDatabase) -> None:
    turns, returned = random.Random(7), 0

    async def pair(n: int) -> None:
        async def body(tx: MongoTransaction) -> None:
            for part in "ab":
                await database.write("c", [Write("replace", {"_id": f"{n}{part}"}, {"n": n})], tx=tx)

        await database.transact(body)

    for at in range(0, 200, 10):
        tasks = [asyncio.create_task(pair(n)) for n in range(at, at + 10)]
        for task in tasks:
            await asyncio.sleep(turns.random() * 0.002)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(each is None or isinstance(each, asyncio.CancelledError) for each in results)
        returned += results.count(None)
    found = [each["n"] for each in await database.find("c", {})]
    assert all(found.count(n) == 2 for n in found)
    assert len(found) >= 2 * returned
    begun = time.monotonic()
    await database.transact(
        lambda tx: database.find_and_update("c", {"_id": "0a"}, {"$set": {"n": 0}}, upsert=True, tx=tx)
    )
    assert time.monotonic() - begun < 5, "a transaction that nobody ended holds locks for a minute"


UNKNOWN = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "it takes too long"}


@pytest.mark.parametrize(
    ("commands", "how"),
    [
        (["commitTransaction"], {"closeConnection": True}),
        (["commitTransaction"], {"writeConcernError": UNKNOWN}),  # it is committed, and does not say so
        (["commitTransaction"], {"errorCode": 251, "errorLabels": ["TransientTransactionError"]}),
        (["commitTransaction"], {"errorCode": 50, "errorLabels": ["UnknownTransactionCommitResult"]}),
        (["findAndModify"], {"closeConnection": True}),
        (["update"], {"closeConnection": True}),
        (["update", "insert"], {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}),
        (["update"], {"errorCode": 11602, "errorLabels": ["TransientTransactionError"]}),  # the primary steps down
    ],
    ids=str,
)
async def test_a_commit_that_is_interrupted_is_made_once(url: str, commands: list[str], how: dict[str, Any]) -> None:
    store = MongoMetadataStore(MongoDatabase(url))
    await store.open()
    for n in range(1, 6):
        with failing(url, commands, times=n, **how):
            made = await store.commit(event(f"{n}"), intent(f"{n}"))
        assert [each.seq for each in made] == [n]
    assert [each.topic for each in await store.events(0)] == [f"{n}" for n in range(1, 6)]
    assert len(await store.intents()) == 5
    await store.aclose()


async def test_a_primary_that_steps_down_loses_nothing() -> None:
    server = served(replica_set=True)
    store = MongoMetadataStore(MongoDatabase(server.url + "x"))
    try:
        await store.open()
        with pymongo.MongoClient[Any](server.url, directConnection=True) as client:
            for at in range(3):
                committing = [asyncio.create_task(store.commit(event(f"{at}"))) for _ in range(20)]
                await committing[0]
                await asyncio.to_thread(
                    client.admin.command, "replSetStepDown", 1, force=True, secondaryCatchUpPeriodSecs=0
                )
                await asyncio.gather(*committing)
        assert [each.seq for each in await store.events(0)] == list(range(1, 61))
    finally:
        await store.aclose()
        server.stop()


# changes


async def test_a_watcher_sees_what_changes_from_its_first_sign_on(database: MongoDatabase) -> None:
    async with contextlib.aclosing(database.watch("c", [1])) as changes:
        assert await anext(changes) is None
        await database.insert("c", [{"_id": 2}, {"_id": 1}])
        change = await anext(changes)
        assert change is not None
        assert change["documentKey"] == {"_id": 1}
        assert await anext(changes) is None  # nothing for a while


async def test_a_thousand_calls_at_once(database: MongoDatabase) -> None:
    await database.insert("c", [{"_id": n} for n in range(1000)])
    found = await asyncio.gather(*(database.find_one("c", {"_id": n}) for n in range(1000)))
    assert found == [{"_id": n} for n in range(1000)]


async def test_a_stream_holds_little_and_may_be_left(database: MongoDatabase) -> None:
    await database.insert("c", [{"_id": n} for n in range(1050)])
    batches = [batch async for batch in database.stream("c", {}, sort=[("_id", 1)], size=100)]
    assert [len(batch) for batch in batches] == [100] * 10 + [50]
    assert [each["_id"] for batch in batches for each in batch] == list(range(1050))
    async with contextlib.aclosing(database.stream("c", {}, size=100)) as stream:
        assert len(await anext(stream)) == 100


# servers that go away


@pytest.mark.parametrize("replica_set", [True, False])
async def test_a_server_killed_and_restarted_under_load_loses_nothing_acknowledged(replica_set: bool) -> None:
    server = served(replica_set=replica_set)
    store = MongoMetadataStore(MongoDatabase(server.url + "x"))
    other = MongoMetadataStore(MongoDatabase(server.url + "x"))
    acknowledged: list[str] = []
    progress = asyncio.Condition()
    stop = False

    async def commit(n: int) -> None:
        on, at = (store, other)[n % 2], 0
        while not stop:
            at += 1
            key = f"{n}-{at}"
            with contextlib.suppress(StoreUnavailableError, StoreTimeoutError):  # then it may be there, or not
                await on.commit(event(key), intent(key), event(key))
                acknowledged.append(key)
            async with progress:
                progress.notify_all()

    async def some_more() -> None:
        enough = len(acknowledged) + 30
        async with progress:
            await progress.wait_for(lambda: len(acknowledged) >= enough)

    tasks: list[asyncio.Task[None]] = []
    try:
        await store.open()
        await other.open()
        tasks += [asyncio.create_task(commit(n)) for n in range(6)]
        for _ in range(10):
            await some_more()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await some_more()
        stop = True
        await asyncio.gather(*tasks)
        log = await store.events(0, limit=100_000)
        topics = [each.topic for each in log[::2]]
        assert topics == [each.topic for each in log[1::2]]
        assert [each.seq for each in log] == list(range(1, len(log) + 1))
        assert len(set(topics)) == len(topics)
        assert set(topics) == {each.id for each in await other.intents()}
        assert set(acknowledged) <= set(topics)
        seen = await other.wait_for_commits(0)  # and wake-ups come again
        while await other.last_event() > len(log):
            seen = await other.wait_for_commits(seen)
        await store.commit(event("after"))
        while await other.last_event() == len(log):
            seen = await asyncio.wait_for(other.wait_for_commits(seen), 10)
    finally:
        stop = True
        await asyncio.gather(*tasks, return_exceptions=True)
        await other.aclose()
        await store.aclose()
        server.stop()


async def test_a_store_whose_server_is_gone_closes_soon() -> None:
    server = served(replica_set=True)
    store = MongoMetadataStore(MongoDatabase(server.url + "x?serverSelectionTimeoutMS=1000"))
    await store.open()
    server.stop()
    begun = time.monotonic()
    await store.aclose()
    assert time.monotonic() - begun < 4
