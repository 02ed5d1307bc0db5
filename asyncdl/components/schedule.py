"""Schedules: something that happens again and again, at certain times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from asyncdl.components.component import Component
from asyncdl.errors import InvalidComponentError


def nothing(event: Any) -> None:
    """Do nothing: what a schedule calls that only publishes an event."""


@dataclass(frozen=True, eq=False)
class Schedule(Component):
    """Publishes an event, or has a function called, at certain times: once, however many processes there are.

    Times that passed while no worker ran are made up for by one, when the next worker starts. The function is a job: it is
    tried again if it fails, and gets a `ScheduleFired`.

    Parameters
    ----------
    object
        A function, or coroutine function, of one argument.
    publish
        An event to publish, such as ``ReconcileRequested(identifier="length")``.
    cron
        A cron expression: ``"0 3 * * *"`` is every day at three.
    every
        Seconds, or a `timedelta`, in the place of ``cron``; counted from when the schedule was added.
    timezone
        In which ``cron`` is meant.
    """

    type_id: ClassVar[str] = "schedule"

    object: Any = field(default=nothing, metadata={"blob": True})
    publish: Any = field(default=None, kw_only=True)
    cron: str | None = field(default=None, kw_only=True)
    every: float | timedelta | None = field(default=None, kw_only=True)
    timezone: str = field(default="UTC", kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.every, timedelta):
            object.__setattr__(self, "every", self.every.total_seconds())
        if hasattr(self.publish, "change"):  # an event is stored as it will stand in the log
            change = self.publish.change()
            stored = {"type": change.type, "topic": change.topic, "payload": change.payload}
            object.__setattr__(self, "publish", stored)
        super().__post_init__()

    def check(self) -> None:
        """Raise `InvalidComponentError` when the times, or what is to happen, cannot be understood."""
        from croniter import croniter  # noqa: PLC0415 - only where there are schedules

        if not callable(self.object) or (self.publish is None and not self.calls):
            raise InvalidComponentError(f"{self}: give it a function to call, or publish=, an event")
        if self.publish is not None and not isinstance(self.publish, Mapping):
            raise InvalidComponentError(f"{self}: publish is {self.publish!r}; it must be an event")
        if (self.cron is None) == (self.every is None):
            raise InvalidComponentError(f"{self}: give it either cron or every")
        if self.cron is not None and not croniter.is_valid(self.cron):
            raise InvalidComponentError(f"{self}: {self.cron!r} is no cron expression")
        if self.cron is None and not 0 < self._seconds < math.inf:
            raise InvalidComponentError(f"{self}: every is {self.every!r}; it must be positive")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise InvalidComponentError(f"{self}: there is no time zone {self.timezone!r}") from error

    @property
    def calls(self) -> bool:
        """Whether a function is called."""
        return self.object is not nothing

    @property
    def _seconds(self) -> float:
        return float(self.every) if isinstance(self.every, (int, float)) else math.nan

    def last(self, now: float, since: float) -> float | None:
        """Return the last of its times up to ``now`` (Unix times), None if there has been none after ``since``.

        ``since`` is when it was added.
        """
        if self.cron is None:
            found = since + math.floor((now - since) / self._seconds) * self._seconds
        else:
            found = self._croniter(now + 1e-6).get_prev(float)
        return found if since < found <= now else None

    def next(self, now: float, since: float) -> float:
        """Return the first of its times after ``now``."""
        if self.cron is None:
            return since + (math.floor((now - since) / self._seconds) + 1) * self._seconds
        return float(self._croniter(now).get_next(float))

    def _croniter(self, now: float) -> Any:
        from croniter import croniter  # noqa: PLC0415 - only where there are schedules

        return croniter(self.cron, datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(self.timezone)))
