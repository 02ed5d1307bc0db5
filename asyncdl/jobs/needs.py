"""What components need before there is work for them: a listener its model, a training its dataset, and so on.

Jobs of a component whose needs are not ready are planned all the same, so that whoever waits for them waits for all of it; they
are held back until what they need is ready, or become ``upstream_failed`` when it failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from asyncdl import codec
from asyncdl.events.types import ComponentReady, Event, JobCancelled, JobEvent, JobFailed
from asyncdl.jobs.planner import BACKFILL, MATERIALIZE, TRAIN, Plan
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.changes import Change, SetComponentStatus, SetJobState
from asyncdl.metadata.records import ComponentRecord
from asyncdl.query import load_query

HELD = 10 * 365 * 86_400.0
"""Seconds for which a job is held back, unless it is let go: what it needs becomes ready, or fails."""

_SETTING_UP = frozenset({TRAIN, MATERIALIZE, BACKFILL})
_MOST = 100_000


@dataclass(frozen=True)
class Needs:
    """Which installed components need which, and how those stand.

    Parameters
    ----------
    of
        A component's uuid to those that it needs.
    unready
        The uuid of each that is not ready to its status: ``"pending"`` or ``"failed"``; one that needs one that failed has
        failed, too.
    names
        A component's uuid to how messages name it.
    replacing
        The listeners whose older version is followed, and read, until they are complete.
    """

    of: Mapping[str, Collection[str]] = field(default_factory=dict)
    unready: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    replacing: Collection[str] = ()

    def hold(self, plan: Plan) -> Plan | None:
        """Return a plan as it is to be carried out, given what it needs; None: it need not be."""
        needed = [uuid for uuid in self.of.get(plan.target, ()) if uuid in self.unready]
        if not needed or plan.failed:
            return plan
        # What an unready listener's first backfill will see anyway needs no job; but whoever wrote a row waits for its output,
        # where no older version gives one.
        setting_up = plan.kind in _SETTING_UP and not plan.arguments.get("sweep")
        if not setting_up and (plan.target in self.replacing or plan.arguments.get("sweep")):
            return None
        arguments = {**plan.arguments, "waits": sorted(needed)}
        failed = [self.names[uuid] for uuid in needed if self.unready[uuid] == "failed"]
        why = f"it needs {', '.join(failed)}, which failed; retry that, or train it again" if failed else ""
        return replace(plan, arguments=arguments, failed=why)

    def dependents(self, uuid: str) -> list[str]:
        """Return what needs a component, directly or not, and is not ready itself."""
        found: list[str] = []
        newest = [uuid]
        while newest:
            newest = [each for each, needed in self.of.items() if each not in found and set(newest) & set(needed)]
            found += newest
        return found


def needs_of(records: Iterable[ComponentRecord]) -> Needs:
    """Return the needs of installed components."""
    records = list(records)
    listeners = [each for each in records if each.type_id == "listener"]
    # One version is needed: the newest that is complete, or, where none is, the newest.
    read = {each.identifier: each.uuid for each in listeners}
    read |= {each.identifier: each.uuid for each in listeners if each.status == "ready"}
    needs: dict[str, Collection[str]] = {}
    for each in records:
        children, upstream = _children(each)
        needs[each.uuid] = children | {read[name] for name in upstream if name in read}
    unready = {each.uuid: each.status for each in records if each.status in {"pending", "failed"}}
    found = Needs(
        {uuid: needed for uuid, needed in needs.items() if needed},
        unready,
        {each.uuid: f"{each.type_id} {each.identifier!r} version {each.version}" for each in records},
        _replacing(records),
    )
    failed = {each for uuid, status in unready.items() if status == "failed" for each in found.dependents(uuid)}
    return replace(found, unready={**unready, **dict.fromkeys(failed & set(unready), "failed")})


def _replacing(records: Sequence[ComponentRecord]) -> frozenset[str]:
    ready = [each for each in records if each.type_id == "listener" and each.status == "ready"]
    followed = {each.identifier: each.version for each in ready}
    return frozenset(
        each.uuid
        for each in records
        if each.type_id == "listener" and followed.get(each.identifier, each.version) < each.version
    )


def _children(record: ComponentRecord) -> tuple[set[str], frozenset[str]]:
    """Return the uuids, and the listeners, that a component needs."""
    data: dict[str, Any] = msgspec.json.decode(record.data)
    children = {name.partition("/")[0]: uuid for name, uuid in data["children"].items()}
    fields = data["fields"]
    if record.type_id == "listener":
        return {children["model"]}, frozenset()  # of other listeners it sees what there is
    if record.type_id == "validation":
        return {uuid for name, uuid in data["children"].items() if name.startswith("dataset/")}, frozenset()
    select = fields["select"] if record.type_id == "dataset" else trained_on(fields)
    if select is None:
        return set(), frozenset()
    if select["$"] == "component":
        return {data["children"]["/".join(select["v"])]}, frozenset()
    return set(), load_query(select["v"]).listeners()


def trained_on(fields: Mapping[str, Any]) -> Any:
    """Return the tree of what a declared model's trainer selects; None: it has no trainer."""
    trainer = fields.get("trainer", {"$": "value"})
    return trainer["v"][1]["select"] if trainer["$"] == "part" else None


async def let_go(metadata: MetadataStore, needs: Needs, events: Iterable[Event]) -> list[Change]:
    """Return what becomes of the jobs that are held back, after these events."""
    changes: list[Change] = []
    for event in events:
        if isinstance(event, ComponentReady):
            changes += await _release(metadata, needs, event.uuid)
        elif isinstance(event, (JobFailed, JobCancelled)) and event.kind in _SETTING_UP:
            changes += await _fail(metadata, needs, event)
    return changes


async def _release(metadata: MetadataStore, needs: Needs, uuid: str) -> list[Change]:
    now = metadata.clock.now()
    targets = [each for each, needed in needs.of.items() if uuid in needed and not set(needed) & set(needs.unready)]
    return [
        SetJobState(job, "pending", ("pending", "upstream_failed"), now)
        for job in await _held(metadata, targets, ("pending", "upstream_failed"))
    ]


async def _fail(metadata: MetadataStore, needs: Needs, event: JobEvent) -> list[Change]:
    if event.target not in needs.unready:
        return []
    now = metadata.clock.now()
    what = needs.names[event.target]
    ended = "failed" if isinstance(event, JobFailed) else "was cancelled"
    why = f"it depends on job {event.job} ({event.kind} of {what}), which {ended}; retry that"
    targets = needs.dependents(event.target)
    changes: list[Change] = [
        SetJobState(job, "upstream_failed", ("pending",), now, why)
        for job in await _held(metadata, targets, ("pending",))
    ]
    pending = [each for each in await metadata.components(uuids=targets) if each.status == "pending"]
    return [*changes, *(SetComponentStatus(each.uuid, "failed", expected="pending") for each in pending)]


async def _held(metadata: MetadataStore, targets: Collection[str], states: Any) -> list[str]:
    found = [
        job for target in targets for job in await metadata.jobs(JobFilter(states=states, target=target, limit=_MOST))
    ]
    return [job.id for job in found if "waits" in codec.loads(job.payload)]
