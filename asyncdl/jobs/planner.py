"""Planning: which work an event asks for. Pure functions over values; no I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import singledispatch
from typing import Any

from asyncdl.databackend.tables import Key
from asyncdl.events.types import (
    ComponentAdded,
    ComponentReady,
    ComponentRemoved,
    Event,
    JobCancelled,
    JobEvent,
    JobFailed,
    OutputsReplaced,
    OutputsWritten,
    RecomputeRequested,
    ReconcileRequested,
    RetryRequested,
    RowsDeleted,
    RowsEvent,
    RowsInserted,
    RowsUpdated,
    ScheduleFired,
    TrainingRequested,
    ValidationRequested,
)

FEW_FIRST = 10
"""What the priority of a job for a few rows is larger by: it goes before the same listener's whole table."""
PER_PRIORITY = 100
"""What a listener's priority counts for in its jobs'."""

BACKFILL = "backfill"
"""Compute what has no output yet, and with ``sweep`` delete what has no source row."""
REFRESH = "refresh"
"""Bring the outputs of some rows up to date."""
RECOMPUTE = "recompute"
"""Bring the outputs of all rows up to date."""
CALL = "call"
"""Call the function of a trigger or schedule."""
TRAIN = "train"
"""Train a model."""
RETRAIN = "retrain"
"""Install a new version of a model, which is then trained."""
MATERIALIZE = "materialize"
"""Keep the rows of a dataset."""
VALIDATE = "validate"
"""Measure a model."""

PLANNED: tuple[type[Event], ...] = (
    RowsEvent,
    ComponentAdded,
    ComponentReady,
    ComponentRemoved,
    OutputsWritten,
    OutputsReplaced,
    RetryRequested,
    RecomputeRequested,
    ReconcileRequested,
    JobFailed,
    JobCancelled,
    ScheduleFired,
    TrainingRequested,
    ValidationRequested,
)
"""The events that `plan` may answer with jobs."""

_CHANGES: Mapping[str, type[RowsEvent]] = {"insert": RowsInserted, "update": RowsUpdated, "delete": RowsDeleted}


@dataclass(frozen=True, slots=True)
class InstalledListener:
    """What planning knows of a listener."""

    uuid: str
    identifier: str
    root: str
    tables: Collection[str]
    listeners: Collection[str]
    active: bool = True
    ready: bool = True
    """Whether its first backfill has been completed."""
    version: int = 0
    failed: bool = False
    """Whether its first backfill has failed for good."""


@dataclass(frozen=True, slots=True)
class InstalledTrigger:
    """What planning knows of a version of a trigger: its table, and the changes that it is called on."""

    uuid: str
    identifier: str
    table: str
    on: Collection[str]


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """What planning knows of a version of a model: whether it is still to be trained, what it is validated by.

    A version that a newer one has overtaken is trained, and validated, like any other: listeners, and users, wait for it.
    """

    uuid: str
    identifier: str
    untrained: bool = False
    validation: str | None = None
    newest: bool = True


@dataclass(frozen=True, slots=True)
class Installation:
    """What planning knows of the installed components.

    Parameters
    ----------
    calling
        The uuids of the schedules that call a function.
    datasets
        The uuids of the datasets whose rows are still to be kept.
    dependents
        The uuid of a component that is not ready to those of what needs it.
    """

    listeners: Collection[InstalledListener] = ()
    triggers: Collection[InstalledTrigger] = ()
    calling: Collection[str] = ()
    models: Collection[InstalledModel] = ()
    datasets: Collection[str] = ()
    dependents: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A job to be.

    Parameters
    ----------
    since
        The event that asks for it: outputs from rows read after it need not be computed again.
    first, last
        The range of events that caused it.
    """

    kind: str
    target: str
    since: int
    first: int
    last: int
    ids: tuple[Key, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""
    """Why the job cannot be done: it is kept beside those that failed, and not run."""


@singledispatch
def plan(event: Event, installed: Installation, first: int, last: int) -> list[Plan]:
    """Return the jobs that an event asks for, given what is installed."""
    return []


@plan.register
def _(event: ComponentAdded, installed: Installation, first: int, last: int) -> list[Plan]:
    if event.uuid in installed.datasets:
        return [Plan(MATERIALIZE, event.uuid, event.seq, first, last)]
    if any(each.uuid == event.uuid and each.untrained for each in installed.models):
        return [Plan(TRAIN, event.uuid, event.seq, first, last)]
    return [
        Plan(BACKFILL, each.uuid, event.seq, first, last, arguments={"setup": True})
        for each in installed.listeners
        if each.uuid == event.uuid and each.active
    ]


@plan.register
def _(event: ComponentReady, installed: Installation, first: int, last: int) -> list[Plan]:
    if event.type_id == "model":
        return [
            Plan(VALIDATE, each.validation, event.seq, first, last, arguments={"model": event.uuid})
            for each in installed.models
            if each.uuid == event.uuid and each.validation is not None
        ]
    return _complete_readers(event.identifier, event, installed, first, last) if event.type_id == "listener" else []


def _complete_readers(read: str, event: Event, installed: Installation, first: int, last: int) -> list[Plan]:
    """Have those completed that were waiting for a listener: their own backfill may have come before all that they read."""
    return [
        Plan(BACKFILL, each.uuid, event.seq, first, last, arguments={"setup": True})
        for each in installed.listeners
        if read in each.listeners and each.active and not each.ready
    ]


@plan.register
def _(event: JobFailed, installed: Installation, first: int, last: int) -> list[Plan]:
    """Say of all that depends on a failed job that it was not done, and because of what."""
    return _not_done(event, "failed", installed, first, last)


@plan.register
def _(event: JobCancelled, installed: Installation, first: int, last: int) -> list[Plan]:
    """Say of all that depends on a training, or a dataset, that was cancelled that it was not done."""
    return _not_done(event, "was cancelled", installed, first, last) if event.kind in {TRAIN, MATERIALIZE} else []


def _not_done(event: JobEvent, ended: str, installed: Installation, first: int, last: int) -> list[Plan]:
    affected = {event.target, *installed.dependents.get(event.target, ())}
    found = [each for each in installed.listeners if each.uuid in affected]
    plans: dict[str, Plan] = {}
    made_up: list[Plan] = []
    for listener in found:
        why = f"it depends on job {event.job} ({event.kind} of listener {listener.identifier!r}), which {ended}; retry that"
        if listener.uuid != event.target:
            why = f"it depends on listener {listener.identifier!r}, and that on job {event.job} ({event.kind}), which {ended}"
        for each in _downstream(listener, installed):
            arguments = {"upstream": event.job}
            plans[each.uuid] = Plan(REFRESH, each.uuid, event.seq, first, last, failed=why, arguments=arguments)
        older = [each for each in _versions(listener, installed) if each.version < listener.version]
        if event.kind in {BACKFILL, TRAIN, MATERIALIZE} and older:
            made_up += _bring_up_to_date(older[-1], event, installed, first, last)  # the new version won't take over
    return [*plans.values(), *made_up]


def _bring_up_to_date(
    version: InstalledListener, event: Event, installed: Installation, first: int, last: int
) -> list[Plan]:
    """Make up for what was left undone while a newer version was to take over."""
    plans = _complete_readers(version.identifier, event, installed, first, last)
    if version.listeners and version.active:
        plans.append(Plan(RECOMPUTE, version.uuid, event.seq, first, last))
    return plans


def _versions(listener: InstalledListener, installed: Installation) -> list[InstalledListener]:
    found = [each for each in installed.listeners if each.identifier == listener.identifier]
    return sorted(found, key=lambda each: each.version)


def _is_superseded(listener: InstalledListener, installed: Installation) -> bool:
    """Return whether a newer version is being set up, and then takes over."""
    return any(
        each.version > listener.version and each.active and not each.failed for each in _versions(listener, installed)
    )


def _downstream(listener: InstalledListener, installed: Installation) -> list[InstalledListener]:
    """Return the listeners that read a listener's outputs, directly or not."""
    found: dict[str, InstalledListener] = {}
    names = {listener.identifier}
    while True:
        new = [
            each
            for each in installed.listeners
            if each.uuid not in found and each.active and names.intersection(each.listeners)
        ]
        if not new:
            return list(found.values())
        found |= {each.uuid: each for each in new}
        names |= {each.identifier for each in new}


@plan.register
def _(event: RowsEvent, installed: Installation, first: int, last: int) -> list[Plan]:
    plans = []
    for each in installed.listeners:
        if not each.active:
            continue
        if each.root == event.table:
            # A chained listener follows when its upstream's outputs are written, which always comes.
            if not each.listeners:
                plans.append(Plan(REFRESH, each.uuid, event.seq, first, last, ids=tuple(event.ids)))
        elif event.table in each.tables:
            # A table that is joined: which rows of the root it touches cannot be told from its ids.
            plans.append(Plan(RECOMPUTE, each.uuid, event.seq, first, last))
    for trigger in installed.triggers:
        concerned = any(isinstance(event, _CHANGES[change]) for change in trigger.on)
        if concerned and trigger.table == event.table:
            plans.append(_call(trigger.uuid, event, first, last))
    return plans


@plan.register
def _(event: ScheduleFired, installed: Installation, first: int, last: int) -> list[Plan]:
    return [_call(event.uuid, event, first, last)] if event.uuid in installed.calling else []


@plan.register
def _(event: TrainingRequested, installed: Installation, first: int, last: int) -> list[Plan]:
    return [
        Plan(RETRAIN, each.uuid, event.seq, first, last)
        for each in installed.models
        if each.identifier == event.identifier and each.newest
    ]


@plan.register
def _(event: ValidationRequested, installed: Installation, first: int, last: int) -> list[Plan]:
    return [Plan(VALIDATE, event.validation, event.seq, first, last, arguments={"model": event.uuid})]


def _call(target: str, event: Event, first: int, last: int) -> Plan:
    change = event.change(first, last)
    told = {"seq": event.seq, **asdict(change)}
    return Plan(CALL, target, event.seq, first, last, arguments={"event": told})


@plan.register
def _(event: OutputsWritten, installed: Installation, first: int, last: int) -> list[Plan]:
    written = next((each for each in installed.listeners if each.uuid == event.uuid), None)
    if written is not None and not written.ready and any(each.ready for each in _versions(written, installed)):
        return []  # nobody reads them yet: when they are complete, an `OutputsReplaced` tells
    return [
        Plan(REFRESH, each.uuid, event.seq, first, last, ids=tuple(event.ids))
        for each in installed.listeners
        if event.identifier in each.listeners and each.active
    ]


@plan.register
def _(event: RetryRequested, installed: Installation, first: int, last: int) -> list[Plan]:
    return [
        Plan(REFRESH, each.uuid, event.seq, first, last, ids=tuple(event.ids))
        for each in installed.listeners
        if event.identifier == each.identifier and each.active
    ]


@plan.register
def _(event: OutputsReplaced, installed: Installation, first: int, last: int) -> list[Plan]:
    return [
        Plan(RECOMPUTE, each.uuid, event.seq, first, last)
        for each in installed.listeners
        if event.identifier in each.listeners and each.active and not _is_superseded(each, installed)
    ]


@plan.register
def _(event: ComponentRemoved, installed: Installation, first: int, last: int) -> list[Plan]:
    """Have the version before a removed one brought up to date: while that was to take over, it was not."""
    left = [each for each in installed.listeners if each.identifier == event.identifier]
    newest = max(left, key=lambda each: each.version, default=None)
    if event.type_id != "listener" or newest is None or newest.version > event.version:
        return []
    return _bring_up_to_date(newest, event, installed, first, last)


@plan.register
def _(event: RecomputeRequested, installed: Installation, first: int, last: int) -> list[Plan]:
    return [
        Plan(RECOMPUTE, each.uuid, event.seq, first, last)
        for each in installed.listeners
        if event.table in each.tables and not each.listeners and each.active
    ]


@plan.register
def _(event: ReconcileRequested, installed: Installation, first: int, last: int) -> list[Plan]:
    return [
        Plan(BACKFILL, each.uuid, event.seq, first, last, arguments={"sweep": True})
        for each in installed.listeners
        if event.identifier in {"", each.identifier} and each.active
    ]
