"""Calls that are made at once, and calls that are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")

PATIENCE = 5.0
"""Seconds in which a process that ends lets others know, who would find out later: one need not wait for a store for ever."""


async def both(first: Awaitable[S], second: Awaitable[T]) -> tuple[S, T]:
    """Return what two calls give that are made at once; both have ended then, also when one fails."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(other, BaseException):
        raise other
    return one, other


async def finished(call: Awaitable[T]) -> T:
    """Wait for a call to its end, also when cancelled, once or several times; that takes effect afterwards."""
    future = asyncio.ensure_future(call)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # it has been seen
        raise cancelled
    return future.result()


async def end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    ending = set(tasks)
    for each in ending:
        each.cancel()
    if ending:
        await asyncio.wait(ending)


def give_up(call: asyncio.Future[Any]) -> None:
    """Cancel a call that nobody waits for any more; nor does what comes out of it then concern anyone."""
    call.cancel()
    call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


def raise_if_cancelled() -> None:
    """Raise CancelledError if this task was cancelled: what failed may have come out of a call in the place of that.

    A task group raises its tasks' errors rather, and so does what fails while it cleans up. Who goes on after a failure, or
    waits for better times, asks first: else the cancellation would be lost, and who waits for the task's end wait for ever.
    """
    if _is_cancelled():
        raise asyncio.CancelledError


def is_ours(error: BaseException) -> bool:
    """Return whether an exception that comes out of others' code means us: a cancellation of our task, the end of the loop.

    A CancelledError that nobody asked the task for is that code's own: some inner task, or a future, was cancelled.
    """
    if isinstance(error, asyncio.CancelledError):
        return _is_cancelled()
    return isinstance(error, (KeyboardInterrupt, GeneratorExit))


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
