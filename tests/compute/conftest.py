"""Fixtures of the tests of the compute backends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from asyncdl.compute.local import LocalComputeBackend
from asyncdl.testing.compute import Models
from tests.dask_processes import Processes


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
async def backend(models: Models) -> AsyncIterator[LocalComputeBackend]:
    backend = LocalComputeBackend(threads=2, processes=2, grace=10)
    await backend.open(models)
    yield backend
    await backend.aclose()


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
