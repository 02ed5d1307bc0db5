"""Waking those who wait for commits, without a store."""

from __future__ import annotations

import asyncio

import pytest

from asyncdl.metadata.changes import Change, MoveCursor, PutJob, RenewLeases
from asyncdl.metadata.wakeup import Wakeup, topics_of
from asyncdl.testing.metadata_records import WAKING, event, job

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("topic", "change"), WAKING)
def test_every_change_wakes_those_whom_it_concerns(topic: str, change: Change) -> None:
    assert {topic, "anything"} <= topics_of([RenewLeases([], "me", 1.0), change])


def test_what_concerns_nobody_wakes_nobody() -> None:
    assert topics_of([RenewLeases(["j"], "me", 1.0)]) == {"anything"}
    assert topics_of([event(), MoveCursor("c", 1)]) == {"anything", "events", "completion"}
    assert "events" not in topics_of([PutJob(job())])


async def test_a_wake_up_between_looking_and_waiting_is_not_missed() -> None:
    wakeup = Wakeup()
    seen = await wakeup.wait(0, "events")
    wakeup.wake(["events"])
    later = await wakeup.wait(seen, "events")
    assert later != seen


async def test_only_those_who_wait_for_a_topic_are_woken() -> None:
    wakeup = Wakeup()
    seen = await wakeup.wait(0, "events")
    events = [asyncio.create_task(wakeup.wait(seen, "events")) for _ in range(3)]
    work = asyncio.create_task(wakeup.wait(seen, "work"))
    await asyncio.sleep(0)
    wakeup.wake(["events", "anything"])
    await asyncio.gather(*events)
    assert not work.done()
    wakeup.wake()
    assert await work != seen
