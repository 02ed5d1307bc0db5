"""Fixtures of the tests of the compute backends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from asyncdl.compute.local import LocalComputeBackend
from asyncdl.testing.compute import Models


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
async def backend(models: Models) -> AsyncIterator[LocalComputeBackend]:
    backend = LocalComputeBackend(threads=2, processes=2, grace=10)
    await backend.open(models)
    yield backend
    await backend.aclose()
