"""Planning: which work an event asks for. Pure functions over values; no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from asyncdl.databackend.base import Key, as_key
from asyncdl.events.types import (
    ComponentAdded,
    Event,
    OutputsReplaced,
    OutputsWritten,
    RecomputeRequested,
    ReconcileRequested,
    RetryRequested,
    RowsEvent,
)

BACKFILL = "backfill"
"""Compute what has no output yet, and with ``sweep`` delete what has no source row."""
REFRESH = "refresh"
"""Bring the outputs of some rows up to date."""
RECOMPUTE = "recompute"
"""Bring the outputs of all rows up to date."""

PLANNED: tuple[type[Event], ...] = (
    RowsEvent,
    ComponentAdded,
    OutputsWritten,
    OutputsReplaced,
    RetryRequested,
    RecomputeRequested,
    ReconcileRequested,
)
"""The events that `plan` may answer with jobs."""

_IDS_IN_A_JOB = 5000


@dataclass(frozen=True, slots=True)
class InstalledListener:
    """What planning knows of a listener."""

    uuid: str
    identifier: str
    root: str
    tables: Collection[str]
    listeners: Collection[str]
    active: bool = True


@dataclass(frozen=True, slots=True)
class Installation:
    """What planning knows of the installed components."""

    listeners: Collection[InstalledListener] = ()


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


@singledispatch
def plan(event: Event, installed: Installation, first: int, last: int) -> list[Plan]:
    """Return the jobs that an event asks for, given what is installed."""
    return []


@plan.register
def _(event: ComponentAdded, installed: Installation, first: int, last: int) -> list[Plan]:
    return [
        Plan(BACKFILL, each.uuid, event.seq, first, last, arguments={"setup": True})
        for each in installed.listeners
        if each.uuid == event.uuid and each.active
    ]


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
    return plans


@plan.register
def _(event: OutputsWritten, installed: Installation, first: int, last: int) -> list[Plan]:
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
        if event.identifier in each.listeners and each.active
    ]


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


def merge(plans: Iterable[Plan]) -> list[Plan]:
    """Merge plans that ask for the same, in order: ids are joined, and cut into jobs of bounded size."""
    merged: dict[tuple[str, str, str], list[Plan]] = {}
    for each in plans:
        merged.setdefault((each.kind, each.target, repr(sorted(each.arguments.items()))), []).append(each)
    jobs: list[Plan] = []
    for (kind, target, _), group in merged.items():
        since = max(each.since for each in group)
        first, last = min(each.first for each in group), max(each.last for each in group)
        ids = list(dict.fromkeys(as_key(key) for each in group for key in each.ids))
        for at in range(0, max(len(ids), 1), _IDS_IN_A_JOB):
            chunk = tuple(ids[at : at + _IDS_IN_A_JOB])
            jobs.append(Plan(kind, target, since, first, last, chunk, group[0].arguments))
    return jobs
