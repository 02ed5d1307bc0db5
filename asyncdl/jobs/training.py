"""A training: rows read, a model fitted where it was asked to be, its progress and checkpoints kept, and the result installed.

The trained object, the end of its checkpoints and the model's readiness are one commit, which also takes the job's lease for its
condition. An attempt that finds the model ready has nothing left to do.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cloudpickle
import msgspec

from asyncdl import codec
from asyncdl.components.component import Component
from asyncdl.components.declaration import blobs_of, resolve
from asyncdl.components.model import Model
from asyncdl.components.states import ModelState
from asyncdl.components.training import Trainer
from asyncdl.compute.base import ModelCall, ModelTask, RowError
from asyncdl.compute.fitting import FIT, FIT_ON_LOOP, FITTING, Fitting
from asyncdl.compute.futures import completed
from asyncdl.compute.links import linked
from asyncdl.errors import ComponentNotFoundError, JobCancelledError, ModelError
from asyncdl.events.types import ComponentReady, MetricReported
from asyncdl.jobs.rows import grouped, pages_of_dataset, pages_of_query, values
from asyncdl.jobs.work import Stores, Work
from asyncdl.metadata.base import JobFilter
from asyncdl.metadata.changes import AdvanceJob, Change, LinkArtifacts, SetComponentState, SetComponentStatus
from asyncdl.metadata.records import ComponentRecord, JobRecord


class TrainingWork(Work):
    """One attempt of a training."""

    def __init__(self, stores: Stores, job: JobRecord, owner: str) -> None:
        super().__init__(stores, job, owner)
        self._total: int | None = None
        self._kept: dict[str, Any] = {}
        self._failure: Exception | None = None
        self._run = ""
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Train the model, unless an attempt before this one got as far as that."""
        record = await self._record()
        if record.status == "ready":
            return
        if record.status == "failed":  # it is tried again
            await self._stores.metadata.commit(SetComponentStatus(record.uuid, "pending", expected="failed"))
            record = replace(record, status="pending")
        model = await self._stores.registry.load(record)
        assert isinstance(model, Model) and model.trainer is not None  # noqa: S101, PT018 - so it was planned
        [mine] = await self._stores.metadata.jobs(JobFilter(ids=[self._job.id]))  # as the attempt before left it
        self._kept = codec.loads(mine.payload)
        self._done, self._total = mine.done, mine.total
        self._model = record
        await self._advance("reading rows")
        arguments = await self._arguments(model.trainer)
        await self._advance("training")
        trained = await self._fitted(model, model.trainer, arguments)
        await self._install(trained)

    async def _record(self) -> ComponentRecord:
        records = await self._stores.metadata.components(uuids=[self._job.target])
        if not records:
            raise ComponentNotFoundError(f"the model of job {self._job.id} has been removed")
        return records[0]

    async def _advance(self, stage: str, *besides: Change) -> None:
        payload = codec.dumps(self._kept).decode()
        advance = AdvanceJob(self._job.id, self._owner, self._done, self._total, stage, payload)
        await self._stores.metadata.commit(advance, *besides)

    # fitting

    async def _arguments(self, trainer: Trainer) -> list[tuple[str | None, Sequence[Any]]]:
        """Return what ``fit`` is called with, by parameter."""
        if isinstance(trainer.select, Component):
            [dataset] = await self._stores.metadata.components(uuids=[str(trainer.select.uuid)])
            pages = pages_of_dataset(self._stores, dataset, ["train"])
        else:
            pages = pages_of_query(self._stores, trainer.select)
        arguments: list[tuple[str | None, list[Any]]] = [(name, []) for name, _ in trainer.groups]
        async for page in pages:
            rows = values(page, trainer.columns)
            for (_, taken), (_, group) in zip(arguments, trainer.groups, strict=True):
                taken.extend(grouped(rows, trainer.columns, group))
        if arguments and not arguments[0][1]:
            raise ModelError(f"there are no rows to train model {self._model.identifier!r} on")
        return list(arguments)

    async def _fitted(self, model: Model, trainer: Trainer, arguments: list[tuple[str | None, Sequence[Any]]]) -> bytes:
        """Return the trained object, pickled."""
        fields = msgspec.json.decode(self._model.data)["fields"]
        own = {"$": "value", "v": None} if trainer.fit is None else fields["trainer"]["v"][1]["fit"]
        call = ModelCall(
            uuid=FITTING if trainer.placement != "loop" else f"{FITTING}-on-loop",
            reference=FIT if trainer.placement != "loop" else FIT_ON_LOOP,
            placement=trainer.placement,
            timeout=trainer.timeout,
            resources=dict(trainer.resources),
            long=True,
        )
        async with linked(self._heard, self._stores.compute.reachable_at(call.placement)) as link:
            fitting = Fitting(
                object=await self._pickled(fields["object"]),
                fit=None if trainer.fit is None else await self._pickled(own),
                arguments=arguments,
                kwargs=dict(trainer.kwargs),
                method=model.method or "",
                link=link,
            )
            key = f"asyncdl-{self._job.id}-{self._job.attempts}"
            try:
                [output] = await completed(self._stores.compute.submit(ModelTask(key, call, [fitting])))
            except ModelError as error:
                raise ModelError(f"the training of {model} failed: {error}") from error
        if self._failure is not None:  # what the fit was told of as an end of its training
            raise self._failure
        if isinstance(output, RowError):
            raise ModelError(f"the training of {model} failed: {output.type}: {output.message}\n{output.traceback}")
        trained: bytes = output
        return trained

    async def _pickled(self, tree: Any) -> bytes:
        """Return a declared object pickled: as it was added, never as it is by now."""
        if tree["$"] == "artifact":
            return await self._stores.registry.artifact_store.get(tree["v"])
        return await asyncio.to_thread(lambda: bytes(cloudpickle.dumps(resolve(tree["v"]))))

    # what is heard of it

    async def _heard(self, head: dict[str, Any], body: bytes) -> bytes:
        """Do what a message asks for; what is raised ends the fit that sent it."""
        async with self._one_at_a_time:
            if head["kind"] == "begin":
                self._run = head["run"]
            elif head["run"] != self._run:
                raise JobCancelledError(f"another run of job {self._job.id} has begun")
            try:
                return await self._dealt_with(head, body)
            except Exception as error:
                self._failure = self._failure or error
                raise

    async def _dealt_with(self, head: dict[str, Any], body: bytes) -> bytes:
        if head["kind"] == "report":
            await self._report(head)
        elif head["kind"] == "checkpoint":
            await self._keep(body)
        elif "checkpoint" in self._kept:
            return await self._stores.registry.artifact_store.get(self._kept["checkpoint"])
        return b""

    async def _report(self, head: dict[str, Any]) -> None:
        self._done, self._total = head["done"], head["total"]
        events: list[Change] = []
        if head["metrics"]:
            self._kept["metrics"] = head["metrics"]
            event = MetricReported(
                identifier=self._model.identifier,
                uuid=self._model.uuid,
                version=self._model.version,
                job=self._job.id,
                done=self._done,
                total=self._total,
                metrics=head["metrics"],
            )
            events.append(event.change(self._job.first, self._job.last))
        await self._advance("training", *events)

    async def _keep(self, state: bytes) -> None:
        """Keep a checkpoint in the place of the one before."""
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(state).hexdigest())
        older = self._kept.get("checkpoint")
        if older == sha256:
            return
        unlinked = self._unlinked(older, sha256)
        async with self._stores.leases.held([sha256]) as held, self._stores.leases.dropping(unlinked) as dropped:
            await self._stores.registry.artifact_store.put(state)
            self._kept["checkpoint"] = sha256
            link = LinkArtifacts(self._model.uuid, linked=[sha256], unlinked=unlinked)
            await self._advance("training", link, *held, *dropped)

    def _unlinked(self, older: str | None, newer: str) -> list[str]:
        """Return what the model does not refer to any more; a checkpoint may equal what was declared, byte for byte."""
        return (
            [] if older in {None, newer, *blobs_of(msgspec.json.decode(self._model.data)["fields"])} else [str(older)]
        )

    async def _install(self, trained: bytes) -> None:
        """Have the model be what was trained."""
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(trained).hexdigest())
        unlinked = self._unlinked(self._kept.pop("checkpoint", None), sha256)
        state = ModelState(trained=sha256, metrics=self._kept.get("metrics", {}))
        if self._done == 0:  # it reported nothing: it counts as one
            self._done = self._total = 1
        model = self._model
        async with self._stores.leases.held([sha256]) as held, self._stores.leases.dropping(unlinked) as dropped:
            await self._stores.registry.artifact_store.put(trained)
            await self._advance(
                "trained",
                LinkArtifacts(model.uuid, linked=[sha256], unlinked=unlinked),
                SetComponentState(model.uuid, state.dumps(), expected=model.state),
                SetComponentStatus(model.uuid, "ready", expected="pending"),
                ComponentReady(**model.identity).change(self._job.first, self._job.last),
                *held,
                *dropped,
            )

    async def give_up(self) -> Sequence[Change]:
        """Say that the model was not trained."""
        records = await self._stores.metadata.components(uuids=[self._job.target])
        return [SetComponentStatus(record.uuid, "failed") for record in records if record.status == "pending"]
