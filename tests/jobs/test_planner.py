"""Planning, without any I/O."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncdl.events.types import (
    ComponentAdded,
    ComponentReady,
    ComponentRemoved,
    Event,
    JobFailed,
    JobSucceeded,
    OutputsReplaced,
    OutputsWritten,
    RecomputeRequested,
    ReconcileRequested,
    RetryRequested,
    RowsDeleted,
    RowsEvent,
    RowsInserted,
    RowsUpdated,
    TrainingRequested,
)
from asyncdl.jobs.pages import merge, plan_page, without_covered
from asyncdl.jobs.planner import (
    BACKFILL,
    CALL,
    PLANNED,
    RECOMPUTE,
    REFRESH,
    RETRAIN,
    TRAIN,
    Installation,
    InstalledListener,
    InstalledModel,
    InstalledTrigger,
    Plan,
    plan,
)

PLAIN = InstalledListener("u-plain", "plain", "docs", ["docs"], [])
JOINED = InstalledListener("u-joined", "joined", "docs", ["docs", "authors"], [])
CHAINED = InstalledListener("u-chained", "chained", "docs", ["docs"], ["plain"])
BOTH = InstalledListener("u-both", "both", "docs", ["docs", "authors"], ["plain", "joined"])
OTHER = InstalledListener("u-other", "other", "pages", ["pages"], [])
RETIRED = InstalledListener("u-retired", "plain", "docs", ["docs"], ["plain"], active=False)
ALL = [PLAIN, JOINED, CHAINED, BOTH, OTHER, RETIRED]


def planned(event: Event) -> dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Return what an event asks for, by listener; the range of causes and ``since`` are checked here."""
    plans = plan(event, Installation(ALL), 3, 8)
    assert {(each.since, each.first, each.last) for each in plans} <= {(event.seq, 3, 8)}
    assert len({each.target for each in plans}) == len(plans)
    return {each.target.removeprefix("u-"): (each.kind, each.ids, dict(each.arguments)) for each in plans}


@pytest.mark.parametrize("kind", [RowsInserted, RowsUpdated, RowsDeleted])
def test_rows_of_the_root_are_refreshed_and_chains_wait_for_their_upstream(kind: type[RowsEvent]) -> None:
    assert planned(kind(seq=7, table="docs", ids=[1, (2, "x")])) == {
        "plain": (REFRESH, (1, (2, "x")), {}),
        "joined": (REFRESH, (1, (2, "x")), {}),
    }


def test_rows_of_a_joined_table_concern_all_outputs() -> None:
    assert planned(RowsUpdated(seq=7, table="authors", ids=[1])) == {
        "joined": (RECOMPUTE, (), {}),
        "both": (RECOMPUTE, (), {}),
    }
    assert planned(RowsUpdated(seq=7, table="unknown", ids=[1])) == {}


def test_outputs_are_followed_by_those_chained_to_them() -> None:
    written = OutputsWritten(seq=9, identifier="plain", uuid="u-plain", ids=[4, 5])
    assert planned(written) == {"chained": (REFRESH, (4, 5), {}), "both": (REFRESH, (4, 5), {})}
    assert planned(OutputsWritten(seq=9, identifier="other", uuid="u-other", ids=[4])) == {}
    replaced = OutputsReplaced(seq=9, identifier="joined", uuid="new")
    assert planned(replaced) == {"both": (RECOMPUTE, (), {})}


def test_a_new_listener_is_backfilled_by_its_uuid() -> None:
    def added(uuid: str) -> ComponentAdded:
        return ComponentAdded(seq=5, type_id="listener", identifier="plain", version=1, uuid=uuid)

    assert planned(added("u-plain")) == {"plain": (BACKFILL, (), {"setup": True})}
    assert planned(added("u-retired")) == planned(added("model")) == {}


def test_requests() -> None:
    retry = RetryRequested(seq=5, identifier="chained", ids=[1, 2])
    assert planned(retry) == {"chained": (REFRESH, (1, 2), {})}
    one = ReconcileRequested(seq=5, identifier="plain")
    assert planned(one) == {"plain": (BACKFILL, (), {"sweep": True})}
    assert planned(ReconcileRequested(seq=5)) == {
        name: (BACKFILL, (), {"sweep": True}) for name in ("plain", "joined", "chained", "both", "other")
    }
    assert planned(RecomputeRequested(seq=5, table="authors")) == {"joined": (RECOMPUTE, (), {})}
    assert planned(RecomputeRequested(seq=5, table="docs")) == {
        "plain": (RECOMPUTE, (), {}),
        "joined": (RECOMPUTE, (), {}),
    }


def test_other_events_ask_for_nothing() -> None:
    ready = ComponentReady(seq=5, type_id="listener", identifier="plain", version=1, uuid="u-plain")
    succeeded = JobSucceeded(seq=5, job="j", kind=REFRESH, target="u-plain", done=1)
    assert planned(ready) == planned(succeeded) == {}
    assert not isinstance(succeeded, PLANNED)


def test_what_waits_for_a_listener_is_completed_when_it_is_ready() -> None:
    waiting = replace(CHAINED, ready=False)
    ready = ComponentReady(seq=5, type_id="listener", identifier="plain", version=1, uuid="u-plain")
    assert plan(ready, Installation([PLAIN, waiting, BOTH]), 3, 8) == [
        Plan(BACKFILL, "u-chained", 5, 3, 8, arguments={"setup": True})
    ]
    model = ComponentReady(seq=5, type_id="model", identifier="plain", version=1, uuid="m")
    assert plan(model, Installation([waiting]), 3, 8) == []


def test_what_depends_on_a_failed_job_names_it() -> None:
    third = InstalledListener("u-third", "third", "docs", ["docs"], ["chained"])
    failed = JobFailed(seq=5, job="j", kind=REFRESH, target="u-plain", error="...", attempts=3)
    plans = plan(failed, Installation([*ALL, third]), 3, 8)
    assert {each.target for each in plans} == {"u-chained", "u-both", "u-third"}
    assert all("job j (refresh of listener 'plain')" in each.failed for each in plans)
    assert {each.arguments["upstream"] for each in merge(plans)} == {"j"}
    assert plan(replace(failed, target="u-other"), Installation(ALL), 3, 8) == []
    assert plan(replace(failed, target="gone"), Installation(ALL), 3, 8) == []


def test_every_event_that_is_answered_is_declared() -> None:
    answered = {kind for kind in plan.registry if kind not in {object, Event}}
    assert answered == set(PLANNED)


def refresh(*ids: Any, target: str = "a", seq: int = 1, **others: Any) -> Plan:
    return Plan(
        REFRESH, target, seq, others.pop("first", seq), others.pop("last", seq), ids, others.pop("arguments", {})
    )


def test_merging_joins_ids_and_ranges() -> None:
    plans = [
        refresh(1, 2, seq=4, first=1, last=3),
        refresh(2, [3, "x"], (3, "x"), seq=6, first=4, last=6),
        refresh(1, target="b", seq=5),
    ]
    assert merge(plans) == [
        Plan(REFRESH, "a", 6, 1, 6, (1, 2, (3, "x"))),
        Plan(REFRESH, "b", 5, 5, 5, (1,)),
    ]


def test_what_differs_in_kind_or_arguments_is_not_merged() -> None:
    plans = [
        Plan(BACKFILL, "a", 1, 1, 1, arguments={"setup": True}),
        Plan(BACKFILL, "a", 2, 2, 2, arguments={"setup": False}),
        Plan(BACKFILL, "a", 3, 3, 3, arguments={"sweep": True}),
        Plan(RECOMPUTE, "a", 4, 4, 4),
        refresh(1, seq=5),
    ]
    assert merge(plans) == plans
    assert merge([*plans, *plans]) == plans
    assert merge([]) == []


def test_many_ids_become_jobs_of_bounded_size() -> None:
    jobs = merge([refresh(*range(0, 8000), seq=1), refresh(*range(6000, 12_001), seq=2)])
    assert [len(each.ids) for each in jobs] == [5000, 5000, 2001]
    assert [key for each in jobs for key in each.ids] == list(range(12_001))
    assert {(each.since, each.first, each.last) for each in jobs} == {(2, 1, 2)}


@settings(suppress_health_check=[HealthCheck.too_slow])  # says that the machine is busy
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([REFRESH, RECOMPUTE]), st.lists(st.integers(0, 9)))))
def test_merging_loses_no_work_and_forgets_no_cause(asked: list[tuple[str, str, list[int]]]) -> None:
    plans = [Plan(kind, target, at, at, at, tuple(ids)) for at, (target, kind, ids) in enumerate(asked, 1)]
    jobs = merge(plans)
    for each in plans:
        same = [job for job in jobs if (job.kind, job.target) == (each.kind, each.target)]
        assert len(same) == 1
        assert set(each.ids) <= set(same[0].ids)
        assert same[0].first <= each.first <= each.last <= same[0].last
        assert same[0].since >= each.since
    for job in jobs:
        assert len(set(job.ids)) == len(job.ids)


OLD = InstalledListener("u-a0", "a", "docs", ["docs"], ["up"], version=0)
NEW = InstalledListener("u-a1", "a", "docs", ["docs"], ["up"], ready=False, version=1)
UP = InstalledListener("u-up", "up", "docs", ["docs"], [])
READER = InstalledListener("u-reader", "reader", "docs", ["docs"], ["a"])
WAITING = InstalledListener("u-waiting", "waiting", "docs", ["docs"], ["a"], ready=False)


def asked(event: Event, *installed: InstalledListener) -> list[tuple[str, str]]:
    return [(each.kind, each.target) for each in plan(event, Installation(installed), 3, 8) if not each.failed]


def test_nobody_follows_outputs_that_are_not_read_yet() -> None:
    written = OutputsWritten(seq=9, identifier="a", uuid="u-a1", ids=[1])
    assert asked(written, OLD, NEW, READER, WAITING) == []
    assert asked(written, NEW, READER) == [(REFRESH, "u-reader")]  # there are no others
    assert asked(replace(written, uuid="u-a0"), OLD, NEW, READER) == [(REFRESH, "u-reader")]
    assert asked(replace(written, uuid="gone"), OLD, READER) == [(REFRESH, "u-reader")]


def test_what_a_newer_version_is_to_take_over_from_is_not_computed_again() -> None:
    replaced = OutputsReplaced(seq=9, identifier="up", uuid="u-up")
    assert asked(replaced, UP, OLD, NEW) == [(RECOMPUTE, "u-a1")]
    assert asked(replaced, UP, OLD, replace(NEW, failed=True)) == [(RECOMPUTE, "u-a0"), (RECOMPUTE, "u-a1")]
    assert asked(replaced, UP, OLD, replace(NEW, active=False)) == [(RECOMPUTE, "u-a0")]


def test_it_is_made_up_for_once_the_newer_version_has_failed_or_is_gone() -> None:
    failed = JobFailed(seq=9, job="j", kind=BACKFILL, target="u-a1", error="", attempts=3)
    expected = [(BACKFILL, "u-waiting"), (RECOMPUTE, "u-a0")]
    assert asked(failed, UP, OLD, NEW, READER, WAITING) == expected
    assert asked(replace(failed, kind=REFRESH), UP, OLD, NEW, READER, WAITING) == []
    assert asked(replace(failed, target="u-a0"), UP, OLD, NEW, READER, WAITING) == []
    removed = ComponentRemoved(seq=9, type_id="listener", identifier="a", version=1, uuid="u-a1")
    assert asked(removed, UP, OLD, READER, WAITING) == expected
    assert asked(replace(removed, version=0), UP, NEW, READER, WAITING) == []
    assert asked(replace(removed, type_id="model"), UP, OLD, READER, WAITING) == []
    assert asked(removed, UP, READER) == []


def page(installed: Installation, *events: Event, ahead: int = 0) -> list[tuple[str, str, int]]:
    """Return what a page asks for, in which the last ``ahead`` events are not."""
    happened = events[: len(events) - ahead]
    plans = plan_page([(each, each.seq, each.seq) for each in happened], installed, events[len(happened) :])
    return [(each.kind, each.target, each.since) for each in plans]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_what_happened_before_a_listener_was_added_is_left_to_its_backfill(ahead: int) -> None:
    events = [
        RowsInserted(seq=4, table="docs", ids=[1]),
        added_at(5, PLAIN),
        RowsInserted(seq=6, table="docs", ids=[2]),
    ]
    expected = [[(BACKFILL, "u-plain", 5), (REFRESH, "u-plain", 6)], [(BACKFILL, "u-plain", 5)], []]
    assert page(Installation([PLAIN]), *events, ahead=ahead) == expected[ahead]


def test_a_listener_that_was_there_before_the_page_has_all_of_it() -> None:
    events = [RowsInserted(seq=4, table="docs", ids=[1]), added_at(5, OTHER)]
    assert page(Installation([PLAIN, OTHER]), *events) == [(REFRESH, "u-plain", 4), (BACKFILL, "u-other", 5)]


def test_outputs_of_a_version_that_has_taken_over_since_are_read_once_and_waited_for() -> None:
    installed = Installation([replace(NEW, ready=True), READER])
    written = OutputsWritten(seq=7, identifier="a", uuid="u-a1", ids=[1])
    by_the_older = replace(written, seq=6, uuid="u-a0")
    replaced = OutputsReplaced(seq=8, identifier="a", uuid="u-a1")
    merged = merge(plan_page([(written, 2, 2), (replaced, 5, 5)], installed))
    assert merged == [Plan(RECOMPUTE, "u-reader", 8, 2, 5)]
    assert page(installed, by_the_older, written) == [(REFRESH, "u-reader", 6), (REFRESH, "u-reader", 7)]
    assert page(installed, replaced, replace(written, seq=9)) == [(RECOMPUTE, "u-reader", 8), (REFRESH, "u-reader", 9)]


def test_of_a_triggers_versions_the_one_is_called_that_was_the_newest_then() -> None:
    versions = [InstalledTrigger(f"u-t{version}", "t", "docs", ["insert"]) for version in range(3)]
    events = [
        RowsInserted(seq=3, table="docs", ids=[1]),
        added_at(4, versions[1], "trigger"),
        RowsInserted(seq=5, table="docs", ids=[2]),
        added_at(6, versions[2], "trigger"),
    ]
    installed = Installation(triggers=versions)
    assert page(installed, *events) == [(CALL, "u-t0", 3), (CALL, "u-t1", 5)]
    assert page(installed, *events, ahead=1) == [(CALL, "u-t0", 3), (CALL, "u-t1", 5)]
    assert page(installed, RowsInserted(seq=7, table="docs", ids=[3])) == [(CALL, "u-t2", 7)]


def test_each_version_of_a_model_is_trained_and_the_newest_is_trained_again() -> None:
    versions = [
        InstalledModel("u-m0", "m", untrained=True, newest=False),
        InstalledModel("u-m1", "m", untrained=True),
    ]
    events = [
        *(added_at(4 + at, each, "model") for at, each in enumerate(versions)),
        TrainingRequested(seq=6, identifier="m"),
    ]
    expected = [(TRAIN, "u-m0", 4), (TRAIN, "u-m1", 5), (RETRAIN, "u-m1", 6)]
    assert page(Installation(models=versions), *events) == expected
    asked_before = [TrainingRequested(seq=3, identifier="m"), *events[:2]]
    assert (RETRAIN, "u-m1", 3) in page(Installation(models=versions), *asked_before)


def added_at(seq: int, what: Any, type_id: str = "listener") -> Event:
    version = getattr(what, "version", 0)
    return ComponentAdded(seq=seq, type_id=type_id, identifier=what.identifier, version=version, uuid=what.uuid)


def test_one_recomputation_does_for_what_came_before_it() -> None:
    whole, earlier = Plan(RECOMPUTE, "u-a0", 9, 9, 9), Plan(REFRESH, "u-a0", 5, 3, 5, ids=(1, 2))
    later, other = Plan(REFRESH, "u-a0", 10, 10, 10, ids=(3,)), Plan(REFRESH, "u-reader", 5, 5, 5, ids=(1,))
    said = replace(earlier, failed="it depends on another", arguments={"upstream": "j"})
    plans = [earlier, other, whole, later, said]
    merged = merge(without_covered(plans, Installation([OLD, READER])))
    assert [each for each in merged if each.kind == RECOMPUTE] == [Plan(RECOMPUTE, "u-a0", 9, 3, 9)]
    assert [each.ids for each in merged if each.kind == REFRESH and each.target == "u-a0" and not each.failed] == [(3,)]
    assert [each.ids for each in merged if each.target == "u-reader"] == [(1,)]
    assert without_covered(plans, Installation([replace(OLD, ready=False)])) == plans
