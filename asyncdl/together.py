"""Calls that are made at once, and calls that a cancellation does not cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


async def both(first: Awaitable[S], second: Awaitable[T]) -> tuple[S, T]:
    """Return what two calls give that are made at once; both have ended then, also when one fails."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(other, BaseException):
        raise other
    return one, other


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Return what a call gives that is waited for to its end; cancellations, one or several, take effect after it."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # it has been seen
        raise cancelled
    return task.result()
