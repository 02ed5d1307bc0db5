"""What works inside a datalayer: its parts, opened together and closed together."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from asyncdl.artifact_store.base import ArtifactStore
from asyncdl.artifacts import ArtifactLeases
from asyncdl.components.loading import InstalledModelLoader
from asyncdl.components.registry import Registry
from asyncdl.compute.base import ComputeBackend
from asyncdl.databackend.base import DataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.errors import ClosedError
from asyncdl.events.bus import EventBus
from asyncdl.events.log import EventLog
from asyncdl.events.types import ReconcileRequested
from asyncdl.following import Follower
from asyncdl.installer import Installer
from asyncdl.intents import Intents
from asyncdl.jobs.board import Jobs
from asyncdl.jobs.completion import Completion
from asyncdl.jobs.dropping import Dropping
from asyncdl.jobs.handle import Follow, Show
from asyncdl.jobs.limiting import LimitedCompute
from asyncdl.jobs.pausing import Pauses
from asyncdl.jobs.retention import Retention
from asyncdl.jobs.runner import Runner, RunnerOptions
from asyncdl.jobs.scheduler import Scheduler
from asyncdl.jobs.sites import Errands
from asyncdl.jobs.ticking import Ticking
from asyncdl.jobs.work import Stores
from asyncdl.learning import Learning
from asyncdl.metadata.base import MetadataStore
from asyncdl.prediction import Predictor
from asyncdl.streaming import Streams
from asyncdl.supervisor import Supervisor
from asyncdl.writer import Writer

_RECOVER_EVERY = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a datalayer works; `asyncdl.Settings` has the words for it."""

    allow_pickle: bool = True
    max_attempts: int = 3
    runner: RunnerOptions = field(default_factory=RunnerOptions)
    show: Show | None = None
    worker: bool = True
    shard_rows: int = 100_000
    reconcile_every: float | None = None
    events_keep: float | None = None


class Engine:
    """The parts of a datalayer, and their life: opened once, closed once.

    Opening it starts the tasks that follow the event log and run jobs; closing it ends them, and gives jobs under way back to
    the queue.
    """

    def __init__(
        self,
        databackend: DataBackend,
        artifact_store: ArtifactStore,
        metadata: MetadataStore,
        compute: ComputeBackend,
        *,
        datatypes: Datatypes,
        options: EngineOptions,
    ) -> None:
        self.artifact_store = artifact_store
        self.compute = compute
        self.registry = Registry(metadata, artifact_store, datatypes, allow_pickle=options.allow_pickle)
        limited = LimitedCompute(compute, metadata, options.runner.lease)
        self._intents = intents = Intents(metadata)
        self._leases = ArtifactLeases(metadata, artifact_store, intents)
        errands = Errands(metadata, databackend, limited)
        self.stores = stores = Stores(
            metadata, databackend, limited, self.registry, self._leases, intents, options.shard_rows, errands
        )
        self._dropping = Dropping(stores, intents, options.runner.lease)
        self.installer = Installer(stores, self._leases, self._dropping)
        self.writer = Writer(stores, intents)
        self._loader = InstalledModelLoader(self.registry)
        self.predictor = Predictor(stores)
        self.streams = Streams(self.predictor, self._loader, limited)
        self.pauses = Pauses(metadata)
        working = replace(stores, retrain=self.installer.retrain)
        self.runner = Runner(working, options.runner, self._dropping, self.pauses)
        self.completion = Completion(metadata, self.writer.settled)
        self.follow = Follow(metadata, self.completion, options.show)
        self.learning = Learning(stores, self.installer, self.follow)
        self.events = EventLog(metadata)
        self.jobs = Jobs(metadata, self.runner)
        self.bus = EventBus(self.events)
        self._worker = options.worker
        services = {"handlers": self._run_handlers, "completion": self.completion.run, "recovery": self._recover}
        if options.worker:
            services |= {
                "scheduler": Scheduler(
                    metadata, self.registry, max_attempts=options.max_attempts, taking=self.runner.taking
                ).run,
                "runner": self.runner.run,
                "schedules": Ticking(metadata, self.registry).run,
                "follower": Follower(stores, reconcile_every=options.reconcile_every).run,
            }
        if options.worker and options.events_keep is not None:
            services["retention"] = Retention(metadata, options.events_keep).run
        self._supervisor = Supervisor(services)
        self._stack = AsyncExitStack()
        self._handled_since: int | None = None
        self.state = "new"

    async def open(self) -> None:
        """Start working. The stores are open already: `asyncdl.connect` opens those that it makes."""
        if self.state != "new":
            raise ClosedError(f"a datalayer is opened once; this one is {self.state}")
        async with AsyncExitStack() as stack:
            await self.stores.compute.open(self._loader)
            stack.push_async_callback(self.stores.compute.aclose)
            await self._load_datatypes()
            self._handled_since = await self.events.last()
            await self._reconcile_at_start()
            self._supervisor.start()
            stack.push_async_callback(self._stop)
            self._stack = stack.pop_all()
        self.state = "open"

    def closes(self, stack: AsyncExitStack) -> None:
        """Take over what is to be closed after this."""
        self._stack, own = stack.pop_all(), self._stack
        self._stack.push_async_exit(own)

    def check_open(self) -> None:
        """Raise `ClosedError` unless it is open."""
        if self.state != "open":
            what = "closed" if self.state == "closed" else "not open yet: use `async with`, or await it"
            raise ClosedError(f"this datalayer is {what}")

    async def drain(self, grace: float) -> None:
        """Claim no more jobs, and wait until those that run have ended, for so many seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self.runner.drain()

    async def aclose(self) -> None:
        """Stop working, and close what was taken over; closing twice is allowed."""
        if self.state != "closed":
            self.state = "closed"
            await self._stack.aclose()

    async def _run_handlers(self) -> None:
        since, self._handled_since = self._handled_since, None
        await self.bus.run(since)

    async def _stop(self) -> None:
        self.events.close()
        self.completion.close()
        await self.writer.aclose()
        await self.predictor.aclose()
        await self.streams.aclose()
        await self._supervisor.stop()

    async def _load_datatypes(self) -> None:
        for record in await self.stores.metadata.components(type_id="datatype"):
            if self.registry.allow_pickle or not await self.stores.metadata.artifacts(record.uuid):
                await self.registry.load(record)

    async def _reconcile_at_start(self) -> None:
        """Have outputs compared with rows that other programs may have written meanwhile."""
        if self._worker and await self.stores.metadata.components(type_id="listener"):
            await self.stores.metadata.commit(ReconcileRequested().change())

    async def _recover(self) -> None:
        """Look for what was left half done: by processes that died, now and then; by a failure in this one, at once."""
        while True:
            self._intents.left.clear()
            await self.writer.recover()
            await self._leases.recover()
            again = await self._dropping.recover()
            await self.pauses.recover()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(again or _RECOVER_EVERY):
                    await self._intents.left.wait()
