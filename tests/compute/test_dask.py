"""Compute on Dask: the conformance suite, on a scheduler and two workers that are processes of their own."""

from __future__ import annotations

import pytest

from asyncdl.compute.base import ComputeBackend
from asyncdl.compute.dask import DaskComputeBackend
from asyncdl.testing.compute import ComputeBackendTests
from tests.dask_processes import Processes

pytestmark = pytest.mark.anyio


class TestDaskComputeBackend(ComputeBackendTests):
    @pytest.fixture(autouse=True)
    def cluster(self, dask_cluster: Processes) -> None:
        self.url = dask_cluster.url

    async def make(self) -> ComputeBackend:
        return DaskComputeBackend(self.url)
