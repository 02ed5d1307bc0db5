"""What a complete backfill changes: its listener becomes ready, and takes over from its older version."""

from __future__ import annotations

from asyncdl.events.types import ComponentReady, OutputsReplaced
from asyncdl.jobs.work import Conclusion
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.changes import Change, SetComponentStatus
from asyncdl.metadata.records import ComponentRecord, JobRecord


async def take_over(metadata: MetadataStore, job: JobRecord) -> Conclusion:
    """Return what changes; nothing does where the listener was ready before."""
    changes: list[Change] = []
    retired: list[ComponentRecord] = []
    for record in await metadata.components(uuids=[job.target]):
        if record.status not in {"pending", "failed"}:
            continue
        changes.append(SetComponentStatus(record.uuid, "ready", expected=record.status))
        for older in await metadata.components(type_id=record.type_id, identifier=record.identifier):
            if older.version < record.version and older.status != "retired":
                changes.append(SetComponentStatus(older.uuid, "retired"))
                retired.append(older)
        if (
            retired
        ):  # first: what becomes ready by the next event then reads later than this, and need not be read again
            replaced = OutputsReplaced(identifier=record.identifier, uuid=record.uuid)
            changes.append(replaced.change(job.first, job.last))
        changes.append(ComponentReady(**record.identity).change(job.first, job.last))
    return Conclusion(changes, retired)
