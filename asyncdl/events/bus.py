"""Handlers: functions called for events, in this process, from the time of their registration on."""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from asyncdl.errors import EventsTrimmedError
from asyncdl.events.filters import EventFilter
from asyncdl.events.log import EventLog, describe
from asyncdl.events.types import Event, HandlerFailed
from asyncdl.together import is_ours, raise_if_cancelled

logger = logging.getLogger("asyncdl.events")

Handler = Callable[[Any], Awaitable[None] | None]
H = TypeVar("H", bound=Handler)


class EventBus:
    """Calls handlers in the order of the log, one event at a time.

    A handler that raises harms nobody: the error is logged and becomes a `HandlerFailed` event, and the next event
    follows.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._handlers: list[tuple[EventFilter, Handler]] = []
        self._position: int | None = None
        """Everything up to here has been delivered."""

    def on(
        self, *types: type[Event], table: str | None = None, component: tuple[str, str] | None = None
    ) -> Callable[[H], H]:
        """Return a decorator that registers a handler for these types of event (and those derived from them).

        Parameters
        ----------
        table, component
            Only events about this table, or about the component of this type and identifier.
        """
        wanted = EventFilter.of(types, table=table, component=component)

        def register(handler: H) -> H:
            self._handlers.append((wanted, handler))
            return handler

        return register

    def off(self, handler: Handler) -> None:
        """Unregister a handler."""
        self._handlers = [(wanted, each) for wanted, each in self._handlers if each != handler]

    async def run(self, since: int | None = None) -> None:
        """Deliver events, from now on or after the position ``since``, until cancelled; after a failure, from where it was."""
        if self._position is None:
            self._position = await self._log.last() if since is None else since
        seen = 0
        while not self._handlers:  # nothing is read, and nothing kept for who registers later
            seen = await self._log.changed(seen)
            head = await self._log.known_head()
            if not self._handlers:
                self._position = head
        while True:
            try:
                await self._deliver(self._position)
            except EventsTrimmedError as error:
                logger.error("the handlers are so slow that events were deleted before their turn: %s", error)
                self._position = error.first - 1

    async def _deliver(self, start: int) -> None:
        async with self._log.subscribe(since=start) as events:
            async for event in events:
                for wanted, handler in list(self._handlers):
                    if wanted.takes(event):
                        await self._call(handler, event)
                self._position = event.seq

    async def _call(self, handler: Handler, event: Event) -> None:
        try:
            result = handler(event)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError as error:
            if is_ours(error):
                raise
            await self._failed(handler, event, error)  # not the bus was cancelled, but what the handler waited for
        except Exception as error:  # the user's code: whatever it raises is theirs to see, and no more
            await self._failed(handler, event, error)
        raise_if_cancelled()  # the handler may have taken that for its own

    async def _failed(self, handler: Handler, event: Event, error: BaseException) -> None:
        logger.error("the handler %s failed on %r", describe(handler), event, exc_info=error)
        if not isinstance(event, HandlerFailed):
            # a message may hold lone surrogates (undecodable file names), which cannot be stored
            text = "".join(traceback.format_exception(error)).encode(errors="backslashreplace").decode()
            await self._log.publish(HandlerFailed(handler=describe(handler), event=event.seq, error=text))
