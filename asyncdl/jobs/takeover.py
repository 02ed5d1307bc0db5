"""What a complete backfill changes: its listener becomes ready, and takes over from its older version."""

from __future__ import annotations

from typing import Any

from asyncdl.components.registry import ListenerState
from asyncdl.databackend.base import OutputTable
from asyncdl.events.types import ComponentReady, OutputsReplaced
from asyncdl.jobs.work import Stores
from asyncdl.metadata.base import Change, JobRecord, SetComponentStatus


class TakeOver:
    """Collects the changes, for one commit with the job's end."""

    def __init__(self, stores: Stores, job: JobRecord) -> None:
        self._stores = stores
        self._job = job
        self._dropped: list[OutputTable] = []
        self.changes: list[Change] = []

    async def prepare(self) -> None:
        """Find out what changes; nothing does where the listener was ready before."""
        metadata, job = self._stores.metadata, self._job
        for record in await metadata.components(uuids=[job.target]):
            if record.status not in {"pending", "failed"}:
                continue
            identity = {name: getattr(record, name) for name in ("type_id", "identifier", "version", "uuid")}
            self.changes += [
                SetComponentStatus(record.uuid, "ready"),
                ComponentReady(**identity).change(job.first, job.last),
            ]
            for older in await metadata.components(type_id=record.type_id, identifier=record.identifier):
                if older.version < record.version and older.status != "retired":
                    self.changes.append(SetComponentStatus(older.uuid, "retired"))
                    self._dropped.append(ListenerState.loads(older.state).output)
            if self._dropped:
                replaced = OutputsReplaced(identifier=record.identifier, uuid=record.uuid)
                self.changes.append(replaced.change(job.first, job.last))

    async def drop_outputs(self, tx: Any) -> None:
        """Drop the outputs of older versions."""
        for table in self._dropped:
            await self._stores.databackend.drop_outputs(table, tx)
