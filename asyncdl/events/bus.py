"""Handlers: functions called for events, in this process, from the time of their registration on."""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from asyncdl.events.log import EventLog, describe
from asyncdl.events.types import Event, HandlerFailed

logger = logging.getLogger("asyncdl.events")

Handler = Callable[[Any], Awaitable[None] | None]
H = TypeVar("H", bound=Handler)


class EventBus:
    """Calls handlers in the order of the log, one event at a time.

    A handler that raises harms nobody: the error is logged and becomes a `HandlerFailed` event, and the next event follows.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._handlers: list[tuple[tuple[type[Event], ...], Handler]] = []
        self._registered = asyncio.Event()

    def on(self, *types: type[Event]) -> Callable[[H], H]:
        """Return a decorator that registers a handler for these types of event (and those derived from them)."""

        def register(handler: H) -> H:
            self._handlers.append((types or (Event,), handler))
            self._registered.set()
            return handler

        return register

    def off(self, handler: Handler) -> None:
        """Unregister a handler."""
        self._handlers = [(types, each) for types, each in self._handlers if each is not handler]

    async def run(self) -> None:
        """Deliver events, from now on, until cancelled."""
        start = await self._log.last()
        await self._registered.wait()
        async with self._log.subscribe(since=start) as events:
            async for event in events:
                for types, handler in list(self._handlers):
                    if isinstance(event, types):
                        await self._call(handler, event)

    async def _call(self, handler: Handler, event: Event) -> None:
        try:
            result = handler(event)
            if inspect.isawaitable(result):
                await result
        except Exception as error:  # a handler is the user's code: whatever it raises is theirs to see, and no more
            logger.exception("the handler %s failed on %r", describe(handler), event)
            if not isinstance(event, HandlerFailed):
                text = "".join(traceback.format_exception(error))
                await self._log.publish(HandlerFailed(handler=describe(handler), event=event.seq, error=text))
