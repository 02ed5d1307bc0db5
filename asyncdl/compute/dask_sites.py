"""What errands need on a Dask worker: sites, opened once for all clients that use them, on the worker's event loop.

A site that cannot be opened is told to the client as such (`UnreachableError`); an error of asyncdl's own while an errand runs,
by its name, so that the client raises the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncdl import errors
from asyncdl.compute.base import Errand, OpenSite, Site, UnreachableError
from asyncdl.errors import AsyncDLError, ComputeError

logger = logging.getLogger(__name__)

UNREACHABLE, FAULT = "unreachable", "fault"
"""A site could not be opened: a message. An errand failed: the names of the error's classes, and its message."""
SITE_REPLIES = (UNREACHABLE, FAULT)

_UNUSED = 3600
"""Seconds after which what nobody used is closed, when another site is opened."""

Compute = Callable[[Sequence[Any]], Awaitable[list[Any]]]


class ErrandFailedError(Exception):
    """An errand ended with an error of asyncdl's own, its cause, and not with one of its model's."""


@dataclass
class _Kept:
    opening: asyncio.Task[OpenSite]
    users: set[str] = field(default_factory=set)
    used: float = 0.0


class Sites:
    """The sites that are open on a worker.

    Parameters
    ----------
    address
        The worker's, for messages.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._kept: dict[str, _Kept] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self, errand: Errand, client: str, compute: Compute) -> list[Any]:
        """Run an errand.

        Raises
        ------
        UnreachableError
            Its site cannot be opened.
        ErrandFailedError
            It failed, and not its model.
        """
        site = await self._opened(errand.site, client)
        failed: list[BaseException] = []

        async def computing(inputs: Sequence[Any]) -> list[Any]:
            try:
                return await compute(inputs)
            except BaseException as error:
                failed.append(error)
                raise

        try:
            return [await errand.run(site, computing)]
        except AsyncDLError as error:
            if error in failed or isinstance(error, UnreachableError):
                raise
            raise ErrandFailedError from error

    async def _opened(self, site: Site, client: str) -> OpenSite:
        kept = self._kept.get(site.key)
        if kept is None:
            self._close_unused()
            opening = asyncio.create_task(site.open(), name="asyncdl: opening a site on a Dask worker")
            kept = self._kept[site.key] = _Kept(opening)
        kept.users.add(client)
        kept.used = time.monotonic()
        try:
            return await asyncio.shield(kept.opening)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # what it takes to open it is not ours: a driver that is not installed, for example
            if self._kept.get(site.key) is kept:
                del self._kept[site.key]  # the next one tries again
            raise UnreachableError(f"on {self._address}: {type(error).__name__}: {error}") from error

    def leave(self, client: str) -> None:
        """Close what only this client used."""
        for key, kept in list(self._kept.items()):
            kept.users.discard(client)
            if not kept.users:
                self._close(key)

    def _close_unused(self) -> None:
        since = time.monotonic() - _UNUSED
        for key in [each for each, kept in self._kept.items() if kept.used < since]:
            self._close(key)

    def _close(self, key: str) -> None:
        closing = asyncio.create_task(
            self._closed(self._kept.pop(key)), name="asyncdl: closing a site on a Dask worker"
        )
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _closed(self, kept: _Kept) -> None:
        try:
            await (await kept.opening).aclose()
        except Exception:  # as above; and there is nobody to be told
            logger.info("a site did not close well on %s", self._address, exc_info=True)

    async def aclose(self) -> None:
        """Close all: the worker ends."""
        for key in list(self._kept):
            self._close(key)
        if self._closing:
            await asyncio.wait(self._closing)


def site_reply(error: Exception) -> tuple[str, Any]:
    """Return what the client is answered for an errand that failed."""
    if isinstance(error, ErrandFailedError):
        cause = error.__cause__
        return FAULT, ([each.__name__ for each in type(cause).__mro__], str(cause))
    return UNREACHABLE, str(error)


def site_error(kind: str, value: Any) -> AsyncDLError:
    """Return the error that `site_reply` told of."""
    if kind == UNREACHABLE:
        return UnreachableError(value)
    names, message = value
    found = (getattr(errors, name, None) for name in names)
    make = next((each for each in found if isinstance(each, type) and issubclass(each, AsyncDLError)), ComputeError)
    return make(message)
