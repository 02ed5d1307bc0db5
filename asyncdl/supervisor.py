"""The task that owns a datalayer's tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from asyncdl.together import end, is_ours

logger = logging.getLogger("asyncdl")

_RESTART = 1.0
"""Seconds before a service that failed is started again."""


class Supervisor:
    """Runs services in one task group, inside one long-lived task.

    Note for implementers: the group is not entered in whatever task called `start`: that one may end (an awaited `connect`, a
    test's fixture) while the services live, and a group whose host task has ended does not cancel its children properly.
    """

    def __init__(self, services: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        self._services = services
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the services."""
        self._task = asyncio.create_task(self._run(), name="asyncdl: supervisor")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for name, service in self._services.items():
                group.create_task(self._keep(name, service), name=f"asyncdl: {name}")

    async def _keep(self, name: str, service: Callable[[], Awaitable[None]]) -> None:
        """Run a service until it is cancelled: one that fails is logged and starts again from what the stores say.

        Note for implementers: that it was cancelled need not be what comes out of it (a task group raises its tasks' errors in
        the place of that), and a CancelledError may come out of it that is not meant for it (of a future that it waited for).
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        while not task.cancelling():
            try:
                await service()
            except (Exception, asyncio.CancelledError) as error:
                if is_ours(error):
                    raise
                logger.exception("the %s failed; unless it was to end it starts again in %.0f s", name, _RESTART)
            if not task.cancelling():
                await asyncio.sleep(_RESTART)

    async def stop(self) -> None:
        """Cancel the services and wait until they have ended."""
        task, self._task = self._task, None
        if task is not None:
            await end([task])
