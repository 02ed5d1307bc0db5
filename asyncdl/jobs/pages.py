"""Planning a page of events: what all of them ask for, given what is installed once all of them have happened.

The events are dealt with some time after they happened, and what is installed may be newer than they are. So each is planned
for what was there at its place in the log, as far as the page, and what lies ahead of it, tell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from asyncdl.databackend.tables import as_key
from asyncdl.events.types import ComponentAdded, Event, OutputsReplaced, OutputsWritten
from asyncdl.jobs.planner import BACKFILL, RECOMPUTE, REFRESH, Installation, Plan, plan

_IDS_IN_A_JOB = 5000
_OF_LISTENERS = frozenset({REFRESH, RECOMPUTE, BACKFILL})


def plan_page(
    happened: Sequence[tuple[Event, int, int]], installed: Installation, ahead: Iterable[Event] = ()
) -> list[Plan]:
    """Return the jobs that events ask for.

    What happened before a listener was added is in what its first backfill reads. Outputs that a version wrote before it took
    over are read when it does: with all of its others, once. Of a trigger's versions the one is called that was the newest.

    Parameters
    ----------
    happened
        The events, in order, each with the range of events that caused it.
    ahead
        Those behind them that say that something was added.
    """
    known = [*(event for event, _, _ in happened), *ahead]
    added = {each.uuid: each.seq for each in known if isinstance(each, ComponentAdded)}
    taken_over = {event.uuid: event.seq for event, _, _ in happened if isinstance(event, OutputsReplaced)}
    plans: list[Plan] = []
    for told, first, last in happened:
        event = told
        if isinstance(told, OutputsWritten) and told.seq < taken_over.get(told.uuid, 0):
            event = OutputsReplaced(seq=told.seq, identifier=told.identifier, uuid=told.uuid)
        found = plan(event, _with_triggers_at(event.seq, installed, added), first, last)
        plans += [each for each in found if each.kind not in _OF_LISTENERS or each.since >= added.get(each.target, 0)]
    return without_covered(plans, installed)


def _with_triggers_at(seq: int, installed: Installation, added: Mapping[str, int]) -> Installation:
    """Return an installation with those versions of triggers that were the newest at a position in the log."""
    if not installed.triggers:
        return installed
    newest = {each.identifier: each for each in installed.triggers if added.get(each.uuid, 0) <= seq}
    return replace(installed, triggers=list(newest.values()))


def without_covered(plans: Collection[Plan], installed: Installation) -> list[Plan]:
    """Let one recomputation of all rows of a listener do for what earlier events ask for of some of them.

    A listener that is still set up keeps both: of its rows, only those that have outputs are recomputed.
    """
    ready = {each.uuid for each in installed.listeners if each.ready}
    whole = {each.target: each.since for each in plans if each.kind == RECOMPUTE and each.target in ready}
    return [
        replace(each, kind=RECOMPUTE, ids=())
        if each.kind == REFRESH and not each.failed and each.since <= whole.get(each.target, -1)
        else each
        for each in plans
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
            jobs.append(Plan(kind, target, since, first, last, chunk, group[0].arguments, group[0].failed))
    return jobs
