"""Waking those who wait for commits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from asyncdl.metadata.base import Topic
from asyncdl.metadata.changes import (
    AppendEvent,
    Change,
    DeleteComponent,
    FinishJob,
    MoveCursor,
    PutComponent,
    PutJob,
    SetComponentState,
    SetComponentStatus,
    SetJobState,
)

TOPICS: tuple[Topic, ...] = ("anything", "components", "events", "work", "completion", "stops")
_OF_COMPONENTS = (PutComponent, DeleteComponent, SetComponentStatus, SetComponentState)


def topics_of(changes: Iterable[Change]) -> set[Topic]:
    """Return who is to be woken by a commit: a wake-up that concerns nobody costs each of them a query."""
    topics: set[Topic] = {"anything"}
    for change in changes:
        if isinstance(change, AppendEvent):
            topics.add("events")
        elif isinstance(change, _OF_COMPONENTS):
            topics.add("components")
        elif isinstance(change, PutJob | SetJobState) or (isinstance(change, FinishJob) and change.state == "pending"):
            topics |= {"work", "completion"}
            if isinstance(change, SetJobState) and change.state != "pending":
                topics.add("stops")
        elif isinstance(change, FinishJob | MoveCursor):
            topics.add("completion")
            if isinstance(change, MoveCursor) and change.seq < 0:  # a gate was closed
                topics.add("stops")
    return topics


class Wakeup:
    """A counter of commits for each topic, which can be awaited; none is missed between looking and waiting."""

    def __init__(self) -> None:
        self._counts: dict[Topic, int] = dict.fromkeys(TOPICS, 1)
        self._changed: dict[Topic, asyncio.Event] = {topic: asyncio.Event() for topic in TOPICS}

    def wake(self, topics: Iterable[Topic] = TOPICS) -> None:
        """Count one more for each of these topics, and wake all who wait for them."""
        for topic in topics:
            self._counts[topic] += 1
            changed, self._changed[topic] = self._changed[topic], asyncio.Event()
            changed.set()

    async def wait(self, seen: int, topic: Topic) -> int:
        """Wait until a topic's count differs from ``seen``, and return it."""
        while self._counts[topic] == seen:
            await self._changed[topic].wait()
        return self._counts[topic]
