"""Retraining on request: a new version of a model is installed, once for each request, and then trained as every new one is."""

from __future__ import annotations

from asyncdl import codec
from asyncdl.errors import ComponentNotFoundError
from asyncdl.jobs.work import Work
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import AdvanceJob


class RetrainingWork(Work):
    """The installation of a new version."""

    async def run(self) -> None:
        """Install it, unless an attempt before this one did."""
        [mine] = await self._stores.metadata.jobs(JobFilter(ids=[self._job.id]))
        arguments = codec.loads(mine.payload)
        if "installed" not in arguments:
            records = await self._stores.metadata.components(uuids=[self._job.target])
            if not records:
                raise ComponentNotFoundError(f"the model of job {self._job.id} has been removed")
            installed = codec.dumps({**arguments, "installed": True}).decode()
            advance = AdvanceJob(self._job.id, self._owner, 1, 1, "installed", installed)
            assert self._stores.retrain is not None  # noqa: S101 - the engine gives it to the runner
            await self._stores.retrain(records[0].identifier, self._job.first, self._job.last, advance)
        self._done = 1
