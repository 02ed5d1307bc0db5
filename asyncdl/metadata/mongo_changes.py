"""Changes as writes of documents: conditions are checked against what was read, and nothing is done here.

What a commit must know is read first (`needs`). Then its changes are planned, one after the other, on a `Plan` that stands
for the store as they leave it; what differs in the end is what is to be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import singledispatch
from typing import Any, Literal

from asyncdl.errors import ComponentInUseError, ConflictError, LeaseLostError
from asyncdl.metadata.changes import (
    AdvanceJob,
    AppendEvent,
    Change,
    ClaimJob,
    DeleteComponent,
    DeleteCursor,
    DeleteEvents,
    DeleteIntent,
    FinishJob,
    HoldJob,
    LinkArtifacts,
    MoveCursor,
    PrioritizeJobs,
    PutComponent,
    PutIntent,
    PutJob,
    RenewLeases,
    SetComponentData,
    SetComponentState,
    SetComponentStatus,
    SetJobState,
)
from asyncdl.metadata.records import UNFINISHED, EventRecord

Collection = Literal["components", "events", "jobs", "cursors", "intents"]
Document = dict[str, Any]
Key = tuple[Collection, Any]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a commit does to one document, in terms that may be applied again.

    Parameters
    ----------
    kind
        ``"put"``: it is ``what``. ``"set"``: these fields of it are. ``"drop"``: it is gone. ``"prune"``: the events up to
        ``key`` are gone.
    """

    kind: Literal["put", "set", "drop", "prune"]
    collection: Collection
    key: Any
    what: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Needs:
    """What is to be read before changes are planned.

    Parameters
    ----------
    keys
        By collection, the documents that they concern.
    identities
        The types, identifiers and versions that must be free.
    children
        The components whose parents matter.
    """

    keys: Mapping[Collection, list[Any]]
    identities: list[tuple[str, str, int]]
    children: list[str]

    def queries(self) -> Iterator[tuple[Collection, Document, dict[str, int]]]:
        """Yield collections, filters and fields: what is large, and no condition's matter, is left out."""
        large = {"components": {"data": 0}, "jobs": {"payload": 0, "error": 0}, "intents": {"payload": 0}}
        for collection, keys in self.keys.items():
            where: Document = {"_id": {"$in": keys}, "gone": None}
            if collection == "components" and (self.identities or self.children):
                taken = [{"type_id": t, "identifier": i, "version": v} for t, i, v in self.identities]
                where = {"$or": [{"_id": {"$in": keys}}, {"children": {"$in": self.children}}, *taken], "gone": None}
            yield collection, where, large.get(collection, {})


_CONCERNED: dict[type[Any], tuple[Collection, str]] = {
    SetComponentStatus: ("components", "uuid"),
    SetComponentState: ("components", "uuid"),
    SetComponentData: ("components", "uuid"),
    LinkArtifacts: ("components", "uuid"),
    DeleteComponent: ("components", "uuid"),
    ClaimJob: ("jobs", "id"),
    AdvanceJob: ("jobs", "id"),
    HoldJob: ("jobs", "id"),
    FinishJob: ("jobs", "id"),
    SetJobState: ("jobs", "id"),
    MoveCursor: ("cursors", "name"),
    DeleteCursor: ("cursors", "name"),
    DeleteIntent: ("intents", "id"),
}
"""The collection, and the attribute that holds the key, of changes that concern one document."""


def _concerned(change: Change) -> tuple[Collection, list[str]] | None:
    match change:
        case PutComponent(record):
            return "components", [record.uuid, *change.children]
        case PutJob(record):
            return "jobs", [record.id]
        case PutIntent(record):
            return "intents", [record.id]
        case RenewLeases():
            return "jobs", list(change.ids)
        case PrioritizeJobs():
            return "jobs", list(change.priorities)
    found = _CONCERNED.get(type(change))
    return None if found is None else (found[0], [getattr(change, found[1])])


def needs(changes: Iterable[Change]) -> Needs:
    """Return what must be read in order to plan changes."""
    keys: dict[Collection, dict[Any, None]] = {}
    identities, children = [], []
    for change in changes:
        concerned = _concerned(change)
        if concerned is not None:
            keys.setdefault(concerned[0], {}).update(dict.fromkeys(concerned[1]))
        if isinstance(change, ClaimJob) and change.gate is not None:
            keys.setdefault("cursors", {})[change.gate] = None
        elif isinstance(change, PutComponent):
            identities.append((change.record.type_id, change.record.identifier, change.record.version))
        elif isinstance(change, DeleteComponent):
            children.append(change.uuid)
    return Needs({collection: list(of) for collection, of in keys.items()}, identities, children)


class Plan:
    """The store as the changes planned so far leave it.

    Parameters
    ----------
    read
        The documents that `needs` asked for, in part at least.
    seq
        The last event's number.
    """

    def __init__(self, read: Mapping[Key, Document], seq: int) -> None:
        self._read = read
        self._now: dict[Key, Document | None] = dict(read)
        self.seq = seq
        self.events: list[EventRecord] = []
        self._pruned = 0

    def copy(self) -> tuple[dict[Key, Document | None], int, int, int]:
        """Return what `back_to` takes."""
        return dict(self._now), self.seq, len(self.events), self._pruned

    def back_to(self, before: tuple[dict[Key, Document | None], int, int, int]) -> None:
        """Forget what was planned since a `copy`."""
        self._now, self.seq, events, self._pruned = before
        del self.events[events:]

    def get(self, collection: Collection, key: Any) -> Document | None:
        """Return a document as it is now."""
        return self._now.get((collection, key))

    def components(self) -> Iterator[Document]:
        """Yield the components among what was read or planned."""
        for (collection, _), found in self._now.items():
            if collection == "components" and found is not None:
                yield found

    def put(self, collection: Collection, key: Any, what: Document) -> None:
        """Make a document."""
        self._now[collection, key] = {**what, "_id": key}

    def set(self, collection: Collection, found: Document, **what: Any) -> None:
        """Change fields of a document."""
        self._now[collection, found["_id"]] = {**found, **what}

    def drop(self, collection: Collection, key: Any) -> None:
        """Take a document away."""
        self._now[collection, key] = None

    def append(self, change: AppendEvent) -> None:
        """Give an event the next number."""
        self.seq += 1
        first, last = change.first or self.seq, change.last or self.seq
        event = EventRecord(self.seq, change.type, change.topic, change.payload, change.created, first, last)
        self.events.append(event)
        what = asdict(event)
        self.put("events", what.pop("seq"), what)

    def prune(self, up_to: int) -> None:
        """Take away the events up to a number, but for the newest."""
        up_to = min(up_to, self.seq - 1)
        self._pruned = max(self._pruned, up_to)
        for key in [key for key in self._now if key[0] == "events" and key[1] <= up_to]:
            del self._now[key]

    def effects(self) -> list[Effect]:
        """Return what is to be written; events last, in their order: who sees one sees what came with it."""
        found = []
        for (collection, key), now in self._now.items():
            was = self._read.get((collection, key))
            if now is None:
                if was is not None:
                    found.append(Effect("drop", collection, key))
            elif was is None:
                found.append(Effect("put", collection, key, now))
            elif now is not was:
                changed = {name: value for name, value in now.items() if name not in was or was[name] != value}
                if changed:
                    found.append(Effect("set", collection, key, changed))
        if self._pruned > 0:
            found.append(Effect("prune", "events", self._pruned))
        return sorted(found, key=lambda effect: effect.collection == "events")


@singledispatch
def plan(change: Any, on: Plan) -> None:
    """Plan a change.

    Raises
    ------
    ConflictError
        Its condition does not hold, after the changes before it; with the subclass that `MetadataStore.commit` names.
    """
    raise TypeError(f"not a change: {change!r}")


@plan.register
def _(change: PutComponent, on: Plan) -> None:
    record = change.record
    identity = (record.type_id, record.identifier, record.version)
    taken = any((each["type_id"], each["identifier"], each["version"]) == identity for each in on.components())
    if taken or on.get("components", record.uuid) is not None:
        raise ConflictError(f"{record.type_id} {record.identifier!r} version {record.version} is installed already")
    what = asdict(record)
    what |= {"children": list(dict.fromkeys(change.children)), "artifacts": list(dict.fromkeys(change.artifacts))}
    on.put("components", what.pop("uuid"), what)
    for child in change.children:
        if on.get("components", child) is None:
            raise ConflictError(
                f"component {child}, which {record.type_id} {record.identifier!r} refers to, is not installed any more"
            )


@plan.register
def _(change: SetComponentStatus, on: Plan) -> None:
    found = on.get("components", change.uuid)
    if found is None or change.expected not in {None, found["status"]}:
        raise ConflictError(f"component {change.uuid} was removed, or its status changed by another process")
    on.set("components", found, status=change.status)


@plan.register
def _(change: SetComponentState, on: Plan) -> None:
    found = on.get("components", change.uuid)
    if found is None or change.expected not in {None, found["state"]}:
        raise ConflictError(f"component {change.uuid} was removed, or its state changed by another process")
    on.set("components", found, state=change.state)


@plan.register
def _(change: SetComponentData, on: Plan) -> None:
    found = on.get("components", change.uuid)
    if found is None:
        raise ConflictError(f"component {change.uuid} was removed")
    on.set("components", found, data=change.data)


@plan.register
def _(change: LinkArtifacts, on: Plan) -> None:
    found = on.get("components", change.uuid)
    if found is None:
        raise ConflictError(f"component {change.uuid} is not installed any more")
    kept = [each for each in found["artifacts"] if each not in change.unlinked]
    on.set("components", found, artifacts=list(dict.fromkeys([*kept, *change.linked])))


@plan.register
def _(change: DeleteComponent, on: Plan) -> None:
    used = any(change.uuid in each["children"] for each in on.components() if each["_id"] != change.uuid)
    if used or on.get("components", change.uuid) is None:
        raise ComponentInUseError(
            f"component {change.uuid} has been removed already, or another component refers to it"
        )
    on.drop("components", change.uuid)


@plan.register
def _(change: AppendEvent, on: Plan) -> None:
    on.append(change)


@plan.register
def _(change: DeleteEvents, on: Plan) -> None:
    on.prune(change.up_to)


@plan.register
def _(change: PutJob, on: Plan) -> None:
    what = asdict(change.record)
    key = what.pop("id")
    if on.get("jobs", key) is not None:
        raise ConflictError(f"there is a job {key} already")
    on.put("jobs", key, what)


@plan.register
def _(change: ClaimJob, on: Plan) -> None:
    found = on.get("jobs", change.id)
    if (
        found is None
        or not _claimable(found, change.now)
        or (change.gate is not None and _closed(on, change.gate))
        or (change.attempts is not None and found["attempts"] != change.attempts)
    ):
        raise ConflictError(f"job {change.id} was claimed by another worker, or is not to be begun now")
    on.set(
        "jobs",
        found,
        state="running",
        owner=change.owner,
        lease=change.lease,
        started=change.now,
        attempts=found["attempts"] + 1,
    )


def _claimable(job: Document, now: float) -> bool:
    if job["state"] == "pending":
        return bool(job["not_before"] <= now)
    return bool(job["state"] == "running" and job["lease"] <= now)


def _closed(on: Plan, gate: str) -> bool:
    found = on.get("cursors", gate)
    return found is not None and bool(found["seq"] < 0)


@plan.register
def _(change: PrioritizeJobs, on: Plan) -> None:
    for each, priority in change.priorities.items():
        found = on.get("jobs", each)
        if found is not None:
            on.set("jobs", found, priority=priority)


@plan.register
def _(change: RenewLeases, on: Plan) -> None:
    for each in change.ids:
        found = on.get("jobs", each)
        if found is not None and _held(found, change.owner):
            on.set("jobs", found, lease=change.lease)


def _held(job: Document, owner: str) -> bool:
    return bool(job["state"] == "running" and job["owner"] == owner)


def _mine(on: Plan, job: str, owner: str) -> Document:
    found = on.get("jobs", job)
    if found is None or not _held(found, owner):
        raise LeaseLostError(f"job {job} was taken over by another worker, or cancelled")
    return found


@plan.register
def _(change: AdvanceJob, on: Plan) -> None:
    found = _mine(on, change.id, change.owner)
    what = {"done": change.done, "total": change.total, "stage": change.stage}
    on.set("jobs", found, **what if change.payload is None else {**what, "payload": change.payload})


@plan.register
def _(change: HoldJob, on: Plan) -> None:
    _mine(on, change.id, change.owner)


@plan.register
def _(change: FinishJob, on: Plan) -> None:
    found = _mine(on, change.id, change.owner)
    on.set(
        "jobs",
        found,
        state=change.state,
        owner=None,
        lease=0.0,
        error=change.error,
        not_before=change.not_before,
        attempts=found["attempts"] - int(change.refund),
        finished=None if change.state in UNFINISHED else change.now,
    )


@plan.register
def _(change: SetJobState, on: Plan) -> None:
    found = on.get("jobs", change.id)
    if found is None or found["state"] not in change.among:
        raise ConflictError(f"job {change.id} is not in one of the states {', '.join(change.among)}")
    again = change.state == "pending"
    on.set(
        "jobs",
        found,
        state=change.state,
        owner=None,
        lease=0.0,
        not_before=change.now if again else 0.0,
        error=change.error,
        finished=None if change.state in UNFINISHED else change.now,
        attempts=0 if again else found["attempts"],
    )


@plan.register
def _(change: MoveCursor, on: Plan) -> None:
    found = on.get("cursors", change.name)
    stands = 0 if found is None else found["seq"]
    if change.expected is not None and stands != change.expected:
        raise ConflictError(f"the cursor {change.name!r} was moved by another process")
    on.put("cursors", change.name, {"seq": change.seq})


@plan.register
def _(change: DeleteCursor, on: Plan) -> None:
    on.drop("cursors", change.name)


@plan.register
def _(change: PutIntent, on: Plan) -> None:
    what = asdict(change.record)
    key = what.pop("id")
    if on.get("intents", key) is not None:
        raise ConflictError(f"there is an intent {key} already")
    on.put("intents", key, what)


@plan.register
def _(change: DeleteIntent, on: Plan) -> None:
    if on.get("intents", change.id) is None:
        raise ConflictError(f"the intent {change.id} was settled by another process")
    on.drop("intents", change.id)
