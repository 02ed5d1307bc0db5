"""The work of triggers and schedules: a function called with an event."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from asyncdl import codec
from asyncdl.compute.base import ModelCall, ModelTask, RowError
from asyncdl.compute.futures import completed
from asyncdl.errors import ComponentNotFoundError, ModelError
from asyncdl.events.types import Event
from asyncdl.jobs.work import Work
from asyncdl.metadata.records import EventRecord


class CallWork(Work):
    """One call."""

    async def run(self) -> None:
        """Call the function."""
        records = await self._stores.metadata.components(uuids=[self._job.target])
        if not records:
            raise ComponentNotFoundError(f"the component of job {self._job.id} has been removed")
        component: Any = await self._stores.registry.load(records[0])
        function = component.object
        on_loop = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        source = msgspec.json.decode(records[0].data)["fields"]["object"]
        call = ModelCall(
            uuid=records[0].uuid,
            artifact=source["v"] if source["$"] == "artifact" else None,
            reference=source["v"] if source["$"] == "reference" else None,
            placement="loop" if on_loop else "thread",
            timeout=getattr(component, "timeout", None),
        )
        event = Event.from_record(EventRecord(**codec.loads(self._job.payload)["event"]))
        task = ModelTask(f"asyncdl-{self._job.id}-{self._job.attempts}", call, [event])
        [output] = await completed(self._stores.compute.submit(task))
        if isinstance(output, RowError):
            raise ModelError(f"{component} failed on {event!r}: {output.type}: {output.message}\n{output.traceback}")
        self._done = 1
