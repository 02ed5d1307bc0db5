"""Fixtures of all tests: one event loop library, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Datalayer, Query
from tests import mongodb
from tests import mysql as mysql_server
from tests import postgresql as postgresql_server
from tests.dask_processes import Processes
from tests.reporting import FailuresAtOnce, Hanging

_OURS = ("asyncdl", "_connection_worker_thread")  # the second: a connection of aiosqlite
_GRACE = 10.0
"""Seconds that what was told to end has to do so."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves tasks, or threads of ours, behind; what fixtures of a wider scope hold is theirs."""
    before = set(threading.enumerate())
    if "anyio_backend" in request.fixturenames:
        request.getfixturevalue("no_task_is_left")
    yield
    left = [each for each in set(threading.enumerate()) - before if any(name in each.name for name in _OURS)]
    for each in left:
        each.join(_GRACE)
    assert [each.name for each in left if each.is_alive()] == [], "threads are left behind"


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    # the runner of anyio is a task of its own
    left = {each for each in asyncio.all_tasks() - before if "TestRunner" not in repr(each.get_coro())}
    if left:
        await asyncio.wait(left, timeout=_GRACE)
    assert [each.get_name() for each in left if not each.done()] == [], "tasks are left behind"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave one of the tests that need a server where there can be none: its skip says why."""
    for fixture, server in (("postgresql", postgresql_server), ("mysql", mysql_server)):
        if os.environ.get("CI") or server.why_not() is None:
            continue
        lacking = [each for each in items if fixture in getattr(each, "fixturenames", ())]
        left_out = set(lacking[1:])
        config.hook.pytest_deselected(items=lacking[1:])
        items[:] = [each for each in items if each not in left_out]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # with xdist the workers' reports come to who started them
        config.pluginmanager.register(FailuresAtOnce(config))
    config.pluginmanager.register(Hanging(config))
    if os.environ.get("ASYNCDL_DELAYS"):
        from tests import delays

        delays.install(float(os.environ["ASYNCDL_DELAYS"]))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgresql_server.Server]:
    """A database on a real PostgreSQL server; where there can be none: a failure in CI, elsewhere a skip."""
    reason = postgresql_server.why_not()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no PostgreSQL: {reason}")
    with postgresql_server.serve() as server:
        yield server


@pytest.fixture(scope="session")
def mysql() -> Iterator[mysql_server.Server]:
    """A real MariaDB or MySQL server; where there can be none: a failure in CI, elsewhere a skip."""
    reason = mysql_server.why_not()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no MySQL: {reason}")
    with mysql_server.serve() as server:
        yield server


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Datalayer]:
    """An embedded datalayer on a database file of the test's own."""
    uris = {
        "databackend": f"sqlite:///{tmp_path / 'app.db'}",
        "artifact_store": f"filesystem://{tmp_path / 'artifacts'}",
    }
    async with asyncdl.connect(**uris) as db:
        yield db


@pytest.fixture(scope="session")
def mongodb_replica_set() -> Iterator[str]:
    """The URL of a MongoDB replica set: ASYNCDL_TEST_MONGODB, or a server of the tests' own."""
    given = os.environ.get("ASYNCDL_TEST_MONGODB")
    if given:
        yield given
        return
    server = mongodb.served(replica_set=True)
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def mongodb_standalone() -> Iterator[str]:
    """The URL of a standalone MongoDB server."""
    server = mongodb.served(replica_set=False)
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def dask_cluster() -> Iterator[Processes]:
    """A Dask scheduler and two workers, for tests that leave them alive."""
    processes = Processes()
    processes.start_scheduler()
    processes.start_worker()
    processes.start_worker()
    yield processes
    processes.stop()


@pytest.fixture
def dask() -> Iterator[Processes]:
    """A Dask scheduler of the test's own, which starts workers, and kills what it likes."""
    processes = Processes()
    processes.start_scheduler()
    yield processes
    processes.stop()


async def rows_of(db: Datalayer, query: Query) -> list[tuple[Any, ...]]:
    """Return a query's rows as sorted tuples."""
    return sorted(tuple(row.values()) for row in await (await db.execute(query)).to_list())
