"""The conformance suite of metadata stores: jobs, from the queue to their end."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest

from asyncdl.errors import ConflictError, LeaseLostError
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.changes import (
    AdvanceJob,
    AppendEvent,
    Change,
    ClaimJob,
    DeleteCursor,
    FinishJob,
    HoldJob,
    MoveCursor,
    PrioritizeJobs,
    PutJob,
    RenewLeases,
    SetJobState,
)
from asyncdl.metadata.records import JobRecord
from asyncdl.testing.metadata_hooks import MetadataHooks
from asyncdl.testing.metadata_records import event, job


class JobTests(MetadataHooks):
    """Jobs, from the queue to their end."""

    async def test_jobs_come_back_as_they_were_put(self, store: MetadataStore) -> None:
        plain = job("plain")
        full = JobRecord(
            *("full", "backfill", "target", '{"ids": [1]}', 3, 2**53 + 1, 1764547200.123456, "failed", 2, 5, -3),
            *(1764547200.75, "owner", 1764547300.5, 2**53 + 1, 2**60 + 1, "stage", "Traceback: …", 1.25, 2.125),
        )
        await store.commit(PutJob(full), PutJob(plain))
        assert await store.jobs() == [plain, full]

    async def test_jobs_are_filtered_oldest_first(self, store: MetadataStore) -> None:
        records = [
            job("b", created=1.0, target="x", first=1, last=3),
            job("a", created=2.0, kind="backfill", first=3, last=5),
            job("c", created=2.0, state="failed", first=6, last=6),
            job("d", created=3.0, state="running", owner="me", lease=9.0, target="x", first=7, last=9, not_before=5.5),
        ]
        await store.commit(*(PutJob(each) for each in reversed(records)))

        async def ids(**where: Any) -> str:
            return "".join(each.id for each in await store.jobs(JobFilter(**where)))

        assert await ids() == "bacd"
        assert await ids(states=["pending"]) == "ba"
        assert await ids(states={"failed", "running"}) == "cd"
        assert await ids(target="x") == "bd"
        assert await ids(kind="backfill") == "a"
        assert await ids(covers=3) == "ba"
        assert await ids(covers=8) == "d"
        assert await ids(first=4, covers=6) == "ac"
        assert await ids(ids=["c", "a", "nothing"]) == "ac"
        assert await ids(owner="me") == "d"
        assert await ids(due=5.25) == "bac"
        assert await ids(due=5.5) == "bacd"
        assert await ids(target="x", due=5.25) == "b"
        assert await ids(limit=2) == "ba"
        assert await ids(target="x", states=["pending"], covers=2) == "b"
        assert await ids(target="x", states=["failed"]) == ""

    async def test_an_attempt_from_claim_to_end(self, store: MetadataStore) -> None:
        await store.commit(PutJob(job(not_before=5.0)))
        await store.commit(ClaimJob("j", "me", now=5.0, lease=15.0, attempts=0))
        running = job(not_before=5.0, state="running", attempts=1, owner="me", lease=15.0, started=5.0)
        assert await store.jobs() == [running]
        await store.commit(RenewLeases(["j", "nothing"], "me", 25.0), AdvanceJob("j", "me", 10, None, "reading"))
        await store.commit(HoldJob("j", "me"))  # which changes nothing
        assert await store.jobs() == [replace(running, lease=25.0, done=10, total=None, stage="reading")]
        await store.commit(AdvanceJob("j", "me", 20, 30, payload='{"after": 20}'))
        assert await store.jobs() == [replace(running, lease=25.0, done=20, total=30, payload='{"after": 20}')]
        await store.commit(FinishJob("j", "me", "succeeded", now=7.0))
        ended = replace(running, state="succeeded", owner=None, lease=0.0, not_before=0.0, finished=7.0)
        assert await store.jobs() == [replace(ended, done=20, total=30, payload='{"after": 20}')]

    async def test_a_failed_attempt_goes_back_to_the_queue(self, store: MetadataStore) -> None:
        await store.commit(PutJob(job()), ClaimJob("j", "me", 1.0, 2.0))
        await store.commit(FinishJob("j", "me", "pending", 1.5, error="Traceback", not_before=9.0))
        [back] = await store.jobs()
        assert back == job(attempts=1, error="Traceback", not_before=9.0, started=1.0)
        await store.commit(ClaimJob("j", "you", 9.0, 12.0))
        await store.commit(FinishJob("j", "you", "pending", 10.0, refund=True))
        [refunded] = await store.jobs()
        assert (refunded.attempts, refunded.state, refunded.not_before) == (1, "pending", 0.0)
        await store.commit(ClaimJob("j", "you", 11.0, 12.0), FinishJob("j", "you", "failed", 11.5, error="again"))
        [failed] = await store.jobs()
        assert (failed.attempts, failed.state, failed.error, failed.finished) == (2, "failed", "again", 11.5)

    async def test_a_lease_that_has_run_out_is_taken_over(self, store: MetadataStore, other: MetadataStore) -> None:
        await store.commit(PutJob(job()), ClaimJob("j", "me", 100.0, 110.0))
        with pytest.raises(ConflictError):
            await other.commit(ClaimJob("j", "you", 109.5, 120.0))
        await other.commit(ClaimJob("j", "you", 110.0, 120.0, attempts=1))  # at the lease's time it may be
        late: list[Change] = [AdvanceJob("j", "me", 1, 2), FinishJob("j", "me", "succeeded", 111.0)]
        for change in late:
            with pytest.raises(LeaseLostError):
                await store.commit(change, event("lost"))
        await store.commit(RenewLeases(["j"], "me", 999.0))
        [mine] = await store.jobs()
        assert (mine.owner, mine.lease, mine.attempts, mine.done) == ("you", 120.0, 2, 0)
        assert await store.last_event() == 0

    async def test_jobs_are_moved_by_hand(self, store: MetadataStore) -> None:
        await store.commit(PutJob(job(state="failed", attempts=3, error="Traceback", finished=4.0, not_before=7.0)))
        await store.commit(SetJobState("j", "pending", ("failed", "cancelled"), 5.0))
        assert await store.jobs() == [job(not_before=5.0)]
        await store.commit(ClaimJob("j", "me", 6.0, 16.0))
        await store.commit(SetJobState("j", "cancelled", ("pending", "running"), 7.0, error="by hand"))
        with pytest.raises(LeaseLostError):
            await store.commit(FinishJob("j", "me", "succeeded", 8.0))
        [cancelled] = await store.jobs()
        assert cancelled == job(state="cancelled", attempts=1, error="by hand", started=6.0, finished=7.0)

    async def test_claimable_by_priority_then_age(self, store: MetadataStore) -> None:
        await store.commit(
            PutJob(job("old", created=1.0)),
            PutJob(job("young", created=2.0)),
            PutJob(job("also young", created=2.0)),
            PutJob(job("urgent", created=3.0, priority=5)),
            PutJob(job("unimportant", created=0.0, priority=-1)),
            PutJob(job("later", created=0.0, priority=9, not_before=50.5)),
            PutJob(job("held", created=0.0, priority=9, state="running", owner="me", lease=60.5)),
            PutJob(job("done", created=0.0, priority=9, state="succeeded")),
        )

        async def order(now: float, limit: int = 100) -> list[str]:
            return [each.id for each in await store.claimable(now, limit=limit)]

        usual = ["urgent", "old", "also young", "young", "unimportant"]
        assert await order(10.0) == usual
        assert await order(10.0, limit=2) == usual[:2]
        assert await order(50.5) == ["later", *usual]
        assert await order(60.5) == ["held", "later", *usual]
        for each in await order(60.5):
            await store.commit(ClaimJob(each, "me", 60.5, 100.0))
        assert await order(60.5) == []

    async def test_claimable_besides_those_of_some_targets(self, store: MetadataStore) -> None:
        targets = {"a": "one", "b": "two", "c": "it's", "d": "one", "e": "two"}
        await store.commit(
            *(PutJob(job(each, created=float(n), target=target)) for n, (each, target) in enumerate(targets.items()))
        )
        for besides, expected in (
            ([], "abcde"),
            (["one"], "bce"),
            (["one", "two", "nobody"], "c"),
            ({"it's", "one", "two"}, ""),
        ):
            assert "".join(each.id for each in await store.claimable(9.0, limit=9, besides=besides)) == expected
        assert [each.id for each in await store.claimable(9.0, limit=1, besides=["one"])] == ["b"]

    async def test_a_new_priority_counts_for_the_next_claim(self, store: MetadataStore) -> None:
        await store.commit(*(PutJob(job(each, created=float(n), priority=1)) for n, each in enumerate("abcd")))
        await store.commit(ClaimJob("d", "me", 1.0, 2.0))
        await store.commit(PrioritizeJobs({"a": 0, "c": 5, "d": -7, "nobody": 3}))
        assert [each.id for each in await store.claimable(9.0, limit=9)] == ["c", "b", "a", "d"]
        assert {each.id: each.priority for each in await store.jobs()} == {"a": 0, "b": 1, "c": 5, "d": -7}
        await store.commit(FinishJob("d", "me", "succeeded", 1.5))

    async def test_a_closed_gate_keeps_jobs_from_being_claimed(self, store: MetadataStore) -> None:
        await store.commit(*(PutJob(job(each)) for each in ("held back", "free", "taken over")))
        await store.commit(ClaimJob("taken over", "dead", 1.0, 2.0), MoveCursor("gate", -1, expected=0))
        for each in ("held back", "taken over"):
            with pytest.raises(ConflictError):
                await store.commit(ClaimJob(each, "me", 3.0, 9.0, gate="gate"))
        await store.commit(ClaimJob("free", "me", 3.0, 9.0, gate="of another"))
        await store.commit(MoveCursor("gate", 2, expected=-1))
        await store.commit(ClaimJob("held back", "me", 3.0, 9.0, gate="gate"))
        with pytest.raises(ConflictError):  # closed by the commit itself
            await store.commit(MoveCursor("gate", -3), ClaimJob("taken over", "me", 3.0, 9.0, gate="gate"))
        await store.commit(DeleteCursor("gate"), ClaimJob("taken over", "me", 3.0, 9.0, gate="gate"))
        assert {each.state for each in await store.jobs()} == {"running"}

    async def test_of_claims_and_a_closing_gate_at_once_none_gets_through_after_it(
        self, store: MetadataStore, other: MetadataStore
    ) -> None:
        await store.commit(*(PutJob(job(f"{n}")) for n in range(40)))

        async def claim(n: int) -> bool:
            try:
                await (store, other)[n % 2].commit(ClaimJob(f"{n}", "me", 3.0, 9.0, gate="gate"), event("claimed"))
            except ConflictError:
                return False
            return True

        async def close() -> int:
            [closed] = await store.commit(MoveCursor("gate", -1, expected=0), event("closed"))
            return closed.seq

        *claimed, closed = await asyncio.gather(*map(claim, range(40)), close())
        seen = [each.seq for each in await other.events(0, topics=["claimed"])]
        assert len(seen) == sum(map(bool, claimed))
        assert all(seq < closed for seq in seen)

    async def test_a_paused_job_waits_and_is_not_claimed(self, store: MetadataStore) -> None:
        await store.commit(PutJob(job("a", first=3, last=4)), PutJob(job("b", first=5, last=6)))
        await store.commit(ClaimJob("a", "me", 1.0, 2.0))
        await store.commit(FinishJob("a", "me", "paused", 1.5, refund=True))
        await store.commit(SetJobState("b", "paused", ("pending",), 1.5))
        paused = await store.jobs(JobFilter(states=["paused"]))
        assert [(each.attempts, each.finished, each.owner) for each in paused] == [(0, None, None)] * 2
        assert await store.claimable(1e9, limit=9) == []
        assert await store.next_due(0.0) is None
        assert sorted(await store.pending_causes("nobody")) == [(3, 4), (5, 6)]
        assert await store.pending_causes("nobody", states=["pending", "running"]) == []
        await store.commit(*(SetJobState(each, "pending", ("paused",), 2.5) for each in "ab"))
        assert len(await store.claimable(2.5, limit=9)) == 2

    async def test_next_due_is_when_claimable_grows(self, store: MetadataStore) -> None:
        assert await store.next_due(0.0) is None
        await store.commit(
            PutJob(job("now")),
            PutJob(job("later", not_before=50.5)),
            PutJob(job("held", state="running", owner="me", lease=60.5)),
            PutJob(job("done", state="succeeded", not_before=70.0, lease=70.0)),
        )
        now, steps = 0.0, []
        while (due := await store.next_due(now)) is not None:
            before = len(await store.claimable(now, limit=9))
            assert len(await store.claimable(due, limit=9)) == before + 1
            now = due
            steps.append(due)
        assert steps == [50.5, 60.5]

    async def test_of_claims_made_together_each_stands_for_itself(self, store: MetadataStore) -> None:
        await store.commit(*(PutJob(job(each)) for each in ["free", "taken", "gated", "open", "attempted", "not due"]))
        await store.commit(ClaimJob("taken", "you", 5.0, 99.0), MoveCursor("shut", -1), MoveCursor("up", 1))
        await store.commit(SetJobState("not due", "pending", ("pending",), 50.0))
        await store.commit(ClaimJob("attempted", "dead", 1.0, 2.0))
        gates = {"gated": "shut", "open": "up", "free": None, "attempted": "none of this name"}
        tries = ["free", "taken", "gated", "open", "no such job", "attempted", "not due"]
        claims = [ClaimJob(each, "me", 6.0, 16.0, 0, gates.get(each)) for each in tries]
        seen = await store.wait_for_commits(0)
        assert await store.claim(*claims) == {"free", "open"}
        assert await store.wait_for_commits(seen) > seen
        begun = await store.jobs(JobFilter(owner="me"))
        assert {each.id for each in begun} == {"free", "open"}
        assert {(each.state, each.attempts, each.lease, each.started) for each in begun} == {("running", 1, 16.0, 6.0)}
        assert await store.claim(*claims) == set()
        later = [ClaimJob("attempted", "you", 16.0, 20.0, 1), ClaimJob("free", "you", 16.0, 20.0)]
        assert await store.claim(*later) == {"attempted", "free"}
        assert await store.claim() == set()

    async def test_of_20_workers_one_claims_each_job(self, store: MetadataStore, other: MetadataStore) -> None:
        async def work(n: int) -> list[str]:
            on, mine = (store, other)[n % 2], list[str]()
            while waiting := await on.claimable(5.0, limit=4):
                mine += await on.claim(*(ClaimJob(each.id, f"{n}", 5.0, 10.0) for each in waiting[:2]))
                for each in waiting[2:]:
                    with contextlib.suppress(ConflictError):
                        await on.commit(ClaimJob(each.id, f"{n}", 5.0, 10.0))
                        mine.append(each.id)
            return mine

        await store.commit(*(PutJob(job(f"{n}")) for n in range(60)))
        claims = [each for mine in await asyncio.gather(*map(work, range(20))) for each in mine]
        assert sorted(claims, key=int) == [f"{n}" for n in range(60)]
        assert {each.attempts for each in await store.jobs()} == {1}

    async def test_pending_causes_are_unfinished_jobs_and_unread_events(self, store: MetadataStore) -> None:
        made = await store.commit(event(), event(), AppendEvent("B", "b", "{}", 1.0, first=1, last=2))
        await store.commit(
            PutJob(job("a", first=1, last=2)),
            PutJob(job("b", first=1, last=2)),
            PutJob(job("c", first=2, last=2, state="running", owner="me", lease=9.0)),
            PutJob(job("d", first=1, last=1, state="failed")),
        )
        last = made[-1].seq
        await store.commit(MoveCursor("all", last), MoveCursor("first", made[0].seq))
        assert sorted(await store.pending_causes("all")) == [(1, 2), (2, 2)]
        await store.commit(SetJobState("c", "cancelled", ("running",), 1.0))
        assert sorted(await store.pending_causes("first")) == [(1, 2), (2, 2)]
        assert sorted(await store.pending_causes("new")) == [(1, 1), (1, 2), (2, 2)]
        await store.commit(*(SetJobState(each, "succeeded", ("pending",), 1.0) for each in "ab"))
        assert await store.pending_causes("all") == []
        assert await store.pending_causes("new", types=["B"]) == [(1, 2)]
        assert await store.pending_causes("new", types=["C"]) == []
