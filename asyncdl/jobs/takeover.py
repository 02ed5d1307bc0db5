"""What a complete backfill changes: its listener becomes ready, and takes over from its older version."""

from __future__ import annotations

from collections.abc import Sequence

from asyncdl.events.types import ComponentReady, OutputsReplaced
from asyncdl.jobs.work import Conclusion
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.changes import Change, SetComponentStatus
from asyncdl.metadata.records import UNFINISHED, ComponentRecord, JobRecord

_MOST = 100_000


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
        if retired:
            # First: what becomes ready by the next event then reads later than this, and need not be read again.
            replaced = OutputsReplaced(identifier=record.identifier, uuid=record.uuid)
            changes.append(replaced.change(*await _causes(metadata, job, retired)))
        changes.append(ComponentReady(**record.identity).change(job.first, job.last))
    return Conclusion(changes, retired)


async def _causes(metadata: MetadataStore, job: JobRecord, retired: Sequence[ComponentRecord]) -> tuple[int, int]:
    """Return what a takeover is caused by: also what the jobs were that the retired versions leave undone.

    Whoever waits for those waits for what reads them, too, and that is brought up to date by the takeover.
    """
    undone = [job]
    for each in retired:
        undone += await metadata.jobs(JobFilter(states=UNFINISHED, target=each.uuid, limit=_MOST))
    return min(each.first for each in undone), max(each.last for each in undone)
