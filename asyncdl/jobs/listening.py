"""A listener's work: read rows, have the model called, write the outputs.

Reading, computing and writing (`asyncdl.jobs.writing`) overlap, with a bounded number of batches between them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asyncdl import codec
from asyncdl.components.listener import Listener
from asyncdl.components.model import Model, signature_of
from asyncdl.components.registry import ListenerState, not_ready
from asyncdl.compute.base import ModelCall, ModelTask, kinds_of
from asyncdl.compute.futures import completed
from asyncdl.databackend.tables import Outputs, as_key
from asyncdl.errors import (
    ComponentNotReadyError,
    LeaseLostError,
    ModelError,
    QueryError,
    StoreError,
)
from asyncdl.jobs.batching import LARGEST, SMALLEST, BatchSize, ReadAhead, weight_of
from asyncdl.jobs.errands import Assignment, Delegation, Report
from asyncdl.jobs.planner import BACKFILL, RECOMPUTE, REFRESH
from asyncdl.jobs.reading import Batch, Reader
from asyncdl.jobs.shaping import Shape
from asyncdl.jobs.shards import Shard, split
from asyncdl.jobs.takeover import take_over
from asyncdl.jobs.upstream import Upstream, UpstreamReplacedError
from asyncdl.jobs.work import Conclusion, InterruptedWork, Stores, Work
from asyncdl.jobs.writing import Attempt, Progress, RetiredError, Writer
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import Change, HoldJob, PutJob, SetComponentStatus
from asyncdl.metadata.records import UNFINISHED, JobRecord, JobState
from asyncdl.together import both, raise_if_cancelled

_TARGET = 0.8
"""Seconds of the model's that a worker's own batches aim at: there may be many workers, and each batch is some work here."""
_FIRST = 100
"""Of a listener's unfinished jobs so many are looked at, those that were planned first."""
_SAY = 0.25
"""Seconds between two commits of progress, where that is not one with outputs."""


class ListenerWork(Work):
    """One job for one listener."""

    def __init__(self, stores: Stores, job: JobRecord, owner: str) -> None:
        super().__init__(stores, job, owner)
        self._arguments: dict[str, Any] = codec.loads(job.payload)
        self._attempt = Attempt(job, owner, self.lease)
        self._progress = Progress()
        self._batches = 0
        self._say = 0.0
        self._shard = Shard.of_job(self._arguments)
        self._split: list[PutJob] = []
        self._rules: ModelCall | None = None
        self._waits = False
        """Whether there was nothing to be done, and nothing follows."""

    @property
    def done(self) -> int:
        """How many source rows have been dealt with."""
        return self._progress.done

    async def run(self) -> None:
        """Do the work; a listener that a newer version took over from meanwhile needs none."""
        try:
            while not await self._pass():
                self._progress.done = 0
        except RetiredError:
            self._waits, self._split = True, []

    async def _pass(self) -> bool:
        """Do the work; return whether it was done, or a newer version took over from one that was being read."""
        await self._load()
        try:
            setting_up = self._job.kind == BACKFILL and self._shard is None and self._record.status != "ready"
            self._waits = not await self._upstream.is_due(self._record, self._writer.output, setting_up=setting_up)
            if not self._waits:
                await self._work()
        except UpstreamReplacedError:
            return False
        except LeaseLostError:
            raise
        except (StoreError, QueryError):  # its outputs may have been dropped under it, or those that it reads
            await self._attempt.record(self._stores)
            if not await self._is_gone():
                if await self._upstream.was_replaced():
                    return False
                raise
            await self._writer.empty()
        return True

    async def _is_gone(self) -> bool:
        """Return whether the table of the rows is there no longer: another program dropped it."""
        return self._writer.root not in await self._stores.databackend.tables()

    async def _work(self) -> None:
        if self._job.kind == BACKFILL:
            if self._shard is not None:
                self._progress.total = self._job.total
                await self._process(self._reader.scan(missing=True, after=self._shard.after, until=self._shard.until))
                await self._writer.advance("computing")
                return
            if self._arguments.get("sweep"):
                await self._check_is_next(*UNFINISHED)  # it is planned by who starts, perhaps to help with a backfill
                await self._writer.sweep(None)
            if not await self._in_shards():
                await self._backfill()
        elif self._job.kind == RECOMPUTE:
            since, died = self._arguments["since"], self._job.attempts > 1
            await self._process(self._reader.scan_stale(since, again=died, written=await self._leaves_the_rest()))
            await self._writer.sweep(None)
        elif self._job.kind == REFRESH:
            ids = [as_key(each) for each in self._arguments["ids"]]
            self._progress.total = len(ids)
            await self._process(self._reader.refresh(ids, self._arguments["since"], self._as_of))

    async def _leaves_the_rest(self) -> bool:
        """Return whether rows without outputs can be left to the backfill that sets the listener up, and reads them later.

        Not to one that is under way since before: what it has read, and not written yet, may be out of date.
        """
        if self._record.status == "ready":
            return False
        await self._check_is_next("running")
        return True

    async def _check_is_next(self, *states: JobState) -> None:
        """Raise unless this listener's earlier jobs have ended, or are not in one of these states.

        What is missing now they compute, and it is not to be computed twice.
        """
        where = JobFilter(states=states, target=self._job.target, limit=_FIRST)
        for job in await self._stores.metadata.jobs(where):
            if job.id != self._job.id and codec.loads(job.payload)["since"] < self._arguments["since"]:
                raise ComponentNotReadyError(
                    f"{self._listener} has earlier work, after which comes this; one is job {job.id}"
                )

    async def conclude(self) -> Conclusion:
        """Have the listener take over from its older version, after a backfill."""
        if self._job.kind != BACKFILL or self._waits:
            return Conclusion()
        if self._split:
            [own] = await self._stores.metadata.jobs(JobFilter(ids=[self._job.id]))
            return Conclusion([PutJob(replace(each.record, priority=own.priority)) for each in self._split])
        counted: list[Change] = []
        if self._shard is not None:
            counted, last = await self._shard.succeeded(self._stores.metadata)
            if not last:
                return Conclusion(counted)
        if not await self._upstream.is_ready():
            return Conclusion(counted)  # when that becomes ready, another backfill is planned
        conclusion = await take_over(self._stores.metadata, self._job)
        return Conclusion([*counted, *conclusion.changes], conclusion.retired)

    def gives_up_on(self, error: Exception) -> bool:
        """Return whether the model's rules say that such an error, of its own or not, is not worth another attempt."""
        if self._rules is None:
            return False
        if isinstance(error, ModelError):
            return not self._rules.retries_after(error)
        return self._rules.gives_up_on(kinds_of(error))

    async def give_up(self) -> Sequence[Change]:
        """Say that a listener whose first backfill failed is not ready."""
        if self._job.kind != BACKFILL:
            return ()
        records = await self._stores.metadata.components(uuids=[self._job.target])
        return [SetComponentStatus(record.uuid, "failed") for record in records if record.status == "pending"]

    async def _in_shards(self) -> bool:
        """Prepare to leave a large backfill to shards, which become jobs together with this one's end."""
        size = self._stores.shard_rows
        boundaries = await self._reader.boundaries(size)
        if len(boundaries) < 2:
            return False
        total = await self._reader.count_missing()
        self._split = split(
            self._job, boundaries, size, max(total, len(boundaries) * size), self._stores.metadata.clock.now()
        )
        self._progress.total = 0
        await self._writer.advance("split")
        return True

    async def _backfill(self) -> None:
        """Compute what is missing, and meanwhile count it: on a large table that takes a while, and is one query."""
        counting = asyncio.create_task(
            self._reader.count_missing(),
            name=f"asyncdl: counting for job {self._job.id}",
        )
        counting.add_done_callback(self._counted)
        try:
            await self._process(self._reader.scan(missing=True))
        except BaseException:
            counting.cancel()
            raise
        finally:
            await asyncio.wait({counting})
        counting.result()
        await self._writer.advance("computing")

    def _counted(self, counting: asyncio.Task[int]) -> None:
        if not counting.cancelled() and counting.exception() is None:
            self._progress.total = max(counting.result(), self._progress.done)

    async def _load(self) -> None:
        registry, metadata = self._stores.registry, self._stores.metadata
        wanted = [self._job.target, *registry.held_by(self._job.target)]
        records, self._as_of = await both(metadata.components(uuids=wanted), metadata.last_event())
        self._record = self._attempt.needed(records)
        component = await registry.load(self._record)
        assert isinstance(component, Listener)  # noqa: S101 - the planner makes these jobs for listeners only
        self._listener = component
        uuid = str(component.model.uuid)
        found = [each for each in records if each.uuid == uuid] or await metadata.components(uuids=[uuid])
        model = found[0]
        if model.status != "ready":
            raise ComponentNotReadyError(not_ready(model), failed=model.status == "failed")
        called = await registry.load(model)  # trained, and with the limits that it has by now
        assert isinstance(called, Model)  # noqa: S101 - listeners have no other models
        self._rules = self._call = registry.call(called, model, signature_of(component.key))
        self._upstream = await Upstream.read(self._stores, component.select)
        names = tuple(component.key) if isinstance(component.key, Mapping) else ()
        width = len(ListenerState.loads(self._record.state).output.key)
        self._shape = Shape(str(component.model), self._call.signature, names, width, component.flatten)
        stores, on_loop = self._stores, self._call.placement == "loop"
        self._delegation = self._delegated()
        at_least, at_most = self._call.max_concurrency if on_loop else 1, self._in_a_second()
        if self._delegation is None:
            self._size = BatchSize(at_least, at_most)
        else:
            self._size = BatchSize(at_least, at_most, target=_TARGET, first=SMALLEST)
        self._ahead = ReadAhead(self._most_ahead, at_once=on_loop)
        self._writer = Writer(
            stores,
            self._attempt,
            self._progress,
            self._record,
            component,
            self._upstream.outputs,
            self._shape,
            self._ahead,
        )
        self._reader = Reader(
            stores.metadata,
            stores.databackend,
            component,
            self._upstream,
            lambda: self._writer.output,
            self._size,
            self._ahead,
            self._by_keys,
        )

    def _in_a_second(self) -> int:
        """Return how many rows a rate limit lets through in a second: more of them in a batch would only be told of later."""
        rate = self._call.rate_limit
        return LARGEST if rate is None or self._call.batch else max(int(rate), 1)

    def _most_ahead(self) -> int:
        """Return how many batches are worth having under way; workers may come and go meanwhile."""
        compute = self._stores.compute
        if self._call.placement == "loop":
            return max(2, 2 * self._call.max_concurrency // LARGEST) * compute.loops
        return 1 + compute.parallelism

    # computing

    def _delegated(self) -> Delegation | None:
        """Return what has workers read and write this job's rows by themselves; the few rows of a write are not worth it."""
        errands = self._stores.errands
        site = None if errands is None or self._job.kind == REFRESH else errands.site(self._call)
        return None if errands is None or site is None else Delegation(errands, site, self._call, self._assignment)

    def _assignment(self) -> Assignment:
        return Assignment(
            self._listener.select,
            self._upstream.outputs,
            self._listener.columns,
            len(self._writer.output.root),
            self._writer.output,
            self._shape,
            HoldJob(self._job.id, self._owner),
            self._listener.identifier,
            self._record.uuid,
            self._job.first,
            self._job.last,
        )

    def _by_keys(self) -> bool:
        """Return whether workers read what is read now, and write its outputs, whose table is there."""
        delegation = self._delegation
        return delegation is not None and self._writer.output.datatype is not None and delegation.possible

    def _submit(self, batch: Batch) -> None:
        if batch.size:
            self._batches += 1
            key = f"asyncdl-{self._job.id}-{self._batches}-{self._job.attempts}"
            if batch.keys_only and self._delegation is not None:
                self._ahead.widen()
                task = self._delegation.task(key, batch)
            else:
                self._size.weighed(weight_of(batch.columns[-1]))
                task = ModelTask(key, self._call, self._shape.inputs(batch.columns))
            batch.future = self._stores.compute.submit(task)

    async def _process(self, batches: AsyncIterator[Batch]) -> None:
        """Compute and write batches, reading ahead."""
        window: asyncio.Queue[Batch | None] = asyncio.Queue()  # bounded by the permits to read
        complete = False

        async def read() -> None:
            nonlocal complete
            try:
                async for batch in batches:
                    if self._pausing:
                        break
                    if batch.keys_only and not self._stores.shared:
                        await self._writer.hold()  # where its writing is no condition of the lease
                    self._submit(batch)
                    await window.put(batch)
                else:
                    complete = True
            finally:
                await batches.aclose()  # type: ignore[attr-defined]
            await window.put(None)

        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(read(), name=f"asyncdl: reading for job {self._job.id}")
                while (batch := await window.get()) is not None:
                    await self._finish(batch)
                del reader
        except BaseExceptionGroup as failures:
            raise_if_cancelled()
            raise _first(failures) from None
        finally:
            while not window.empty():
                left = window.get_nowait()
                if left is not None and left.future is not None:
                    left.future.cancel()
        if not complete:
            raise InterruptedWork

    # writing

    async def _finish(self, batch: Batch) -> None:
        if batch.keys_only and self._delegation is not None:
            try:
                report = await self._delegation.report(batch)
            finally:
                batch.writing = True
                self._ahead.writing()
            if report is not None:
                await self._told(batch, report)
                return
            batch = await self._reader.filled(batch)
            self._submit(batch)
        results = Outputs((), ())
        if batch.future is not None:
            begun = time.perf_counter()
            outputs = await completed(batch.future)
            self._ahead.computed(time.perf_counter() - begun)
            results = self._shape.results(batch.columns, outputs)
        begun = time.perf_counter()
        await self._writer.write(batch, results)
        moving = batch.reading + time.perf_counter() - begun
        self._size.took(batch.size, 0.0 if batch.future is None else batch.future.took, moving)
        await self._writer.look_again(batch)

    async def _told(self, batch: Batch, report: Report) -> None:
        """Take in that a worker has written a batch's outputs."""
        self._size.weighed(report.weight)
        self._size.took(report.rows, report.computing, report.moving + batch.reading)
        if not self._stores.shared:
            await self._writer.tell(batch, report.errors)
        self._progress.done += self._writer.units(batch)
        if self._stores.shared and time.monotonic() >= self._say:
            self._say = time.monotonic() + _SAY
            await self._writer.advance("computing")
        await self._writer.look_again(batch)


def _first(failures: BaseExceptionGroup) -> BaseException:
    """Return the failure that says most: a lost lease before what it caused."""
    flat = [_first(each) if isinstance(each, BaseExceptionGroup) else each for each in failures.exceptions]
    return next((each for each in flat if isinstance(each, LeaseLostError)), flat[0])
