"""Work: what one attempt of a job does. Each kind of job has a class; `asyncdl.jobs.kinds` knows which."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from asyncdl.artifacts import ArtifactLeases
from asyncdl.components.registry import Registry
from asyncdl.compute.base import ComputeBackend
from asyncdl.databackend.base import DataBackend
from asyncdl.errors import LeaseLostError
from asyncdl.intents import Intents
from asyncdl.jobs.sites import Errands
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import Change
from asyncdl.metadata.clock import StoreClock
from asyncdl.metadata.records import ComponentRecord, JobRecord


class Retrain(Protocol):
    """Installs a new version of a model, and of what uses it."""

    async def __call__(self, identifier: str, first: int, last: int, *besides: Change) -> Any:
        """Install it, in one commit with other changes; its events are caused by those from ``first`` to ``last``."""


@dataclass(frozen=True, slots=True)
class Stores:
    """What work is done on."""

    metadata: MetadataStore
    databackend: DataBackend
    compute: ComputeBackend
    registry: Registry
    leases: ArtifactLeases
    intents: Intents
    shard_rows: int = 100_000
    """Rows in a shard of a backfill; one of less than twice as many is not split."""
    errands: Errands | None = None
    """Has workers read and write rows by themselves, where they can."""
    retrain: Retrain | None = None
    """Installs a new version of a model, to be trained: the installer's, which stands above."""

    @property
    def shared(self) -> bool:
        """Whether rows and records are committed together."""
        return self.metadata.joins(self.databackend)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What the success of a job changes besides its own record: in one commit with it.

    Parameters
    ----------
    changes
        Records and events.
    retired
        Listeners whose outputs are no longer read by anyone, as they were before.
    """

    changes: Sequence[Change] = ()
    retired: Sequence[ComponentRecord] = ()


class InterruptedWork(Exception):  # noqa: N818 - not an error: it stopped because it was asked to
    """Work stopped because it was asked to."""


class Lease:
    """What this process knows of a job's lease without asking.

    Parameters
    ----------
    job
        The job's id.
    until
        When another process may take the job over, as of the last renewal, by the store's clock.
    clock
        That clock.
    """

    def __init__(self, job: str, until: float, clock: StoreClock) -> None:
        self.job = job
        self.until = until
        self._clock = clock

    def check(self) -> None:
        """Raise `LeaseLostError` when the job may be another process's by now: this one was stopped, or asleep.

        Of use before writing where the lease cannot be a condition of the write itself.
        """
        if self._clock.now() >= self.until:
            raise LeaseLostError(
                f"the lease of job {self.job} ran out before it was renewed; another may have taken it over"
            )


class Work(ABC):
    """One attempt of a job.

    Parameters
    ----------
    owner
        Who holds the job's lease.
    """

    def __init__(self, stores: Stores, job: JobRecord, owner: str) -> None:
        self._stores = stores
        self._job = job
        self._owner = owner
        self.lease = Lease(job.id, job.lease, stores.metadata.clock)
        self._done = 0
        self._pausing = False

    def pause(self) -> None:
        """Ask it to stop soon, at a point from which it can go on later: `run` then raises `InterruptedWork`.

        Work that does not last may end instead.
        """
        self._pausing = True

    @property
    def target(self) -> str:
        """The uuid of the component that it works for."""
        return self._job.target

    @property
    def done(self) -> int:
        """How many units (source rows, for a listener) have been dealt with."""
        return self._done

    @abstractmethod
    async def run(self) -> None:
        """Do the work. It may have been begun, and even ended, by an attempt that died: it must bear to be done again.

        Raises
        ------
        LeaseLostError
            The job was cancelled or taken over; nothing was written after that.
        InterruptedWork
            It was asked to `pause`, and is not done.
        ComponentNotFoundError
            What it works for has been removed: the job ends as cancelled.
        """

    async def conclude(self) -> Conclusion:
        """Return what success changes; called when `run` has returned."""
        return Conclusion()

    def gives_up_on(self, error: Exception) -> bool:
        """Return whether an attempt that failed so is to be the last one."""
        return False

    async def give_up(self) -> Sequence[Change]:
        """Return what is changed when the last attempt has failed."""
        return ()
