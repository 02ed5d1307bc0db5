"""Calls that are made at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

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
