"""Faults: wrappers around real stores, any implementation of theirs, that make one call fail.

```
faults = Faults()
metadata = faulty(SQLMetadataStore(database), faults)
faults.arm(7, "lost")  # the seventh call from now is done, and its answer never comes
```

Counting the calls of a scenario that goes well, and then making each of them fail in turn, leaves no place out where a store may
fail. See `tests/proof/test_faults.py`.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, TypeVar, get_args

from asyncdl.artifact_store.base import ArtifactStore
from asyncdl.compute.base import ComputeBackend, ComputeFuture
from asyncdl.databackend.base import DataBackend
from asyncdl.errors import ComputeUnavailableError, StoreUnavailableError, WorkerLostError
from asyncdl.metadata.base import MetadataStore

S = TypeVar("S", ArtifactStore, ComputeBackend, DataBackend, MetadataStore)

Fault = Literal["refused", "lost", "outage", "hung", "stuck", "reached"]
"""What becomes of the call: it raises and is not made; it is made, and raises all the same; it raises, and so does every other
from then on, until `Faults.heal`; it neither returns nor is made until then, and raises; the same, but that it raises also when
it is given up, in the place of a CancelledError, and so does every other from then on; it is made as ever.

What is raised is a `StoreUnavailableError`, by compute a `ComputeUnavailableError`, or a `WorkerLostError` where a batch was run.
"""
FAULTS: tuple[Fault, ...] = get_args(Fault)
_NOT_MADE = frozenset[Fault | None]({"refused", "outage", "hung", "stuck"})

_ROLES: tuple[tuple[type[ABC], str], ...] = (
    (ArtifactStore, "artifact_store"),
    (ComputeBackend, "compute"),
    (DataBackend, "databackend"),
    (MetadataStore, "metadata"),
)
_UNCOUNTED = {"open", "aclose", "retrying"}
"""What no scenario calls between opening and closing, and what only calls back."""


class Faults:
    """Counts the calls of all stores that were wrapped with it, and says which of them fails.

    Attributes
    ----------
    calls
        The calls since `arm`, as ``"metadata.commit"``.
    reached
        Set when the call that was to fail has come.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.reached = asyncio.Event()
        self._at = 0
        self._fault: Fault = "reached"
        self._given_up = False
        self._healed = asyncio.Event()
        self._healed.set()

    def arm(self, at: int, fault: Fault) -> None:
        """Have the call number ``at`` from now on (1: the next) fail."""
        self.calls = []
        self.reached.clear()
        self._healed.clear()
        self._given_up = False
        self._at, self._fault = at, fault

    def heal(self) -> None:
        """Let every call succeed; those that hang raise."""
        self._healed.set()

    def next(self, name: str) -> Fault | None:
        """Count a call, and return what becomes of it, None if nothing does."""
        if self._healed.is_set():
            return None
        self.calls.append(name)
        number = len(self.calls)
        if number == self._at:
            self.reached.set()
            return self._fault
        lasts = self._given_up or (self._fault == "outage" and self.reached.is_set())
        return "outage" if lasts else None

    async def call(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call, as far as it is to be made."""
        fault = self.next(name)
        await self.before(name, fault)
        result = await make()
        if fault == "lost":
            raise _unavailable(name, "was made, and its answer lost")
        return result

    async def before(self, name: str, fault: Fault | None) -> None:
        """Wait, and raise, where a call with this fault is not made."""
        if fault == "hung":
            await self._healed.wait()
        if fault == "stuck":
            try:
                await self._healed.wait()
            except asyncio.CancelledError:
                self._given_up = True
                raise _unavailable(name, "was given up") from None
        if fault in _NOT_MADE:
            raise _unavailable(name, "was not made")


def _unavailable(name: str, what: str) -> Exception:
    kind = ComputeUnavailableError if name.startswith("compute") else StoreUnavailableError
    return kind(f"a fault for a test: {name} {what}")


class _Faulty:
    """What every wrapped store is besides."""

    _inner: Any
    _faults: Faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def faulty(store: S, faults: Faults) -> S:
    """Return a store whose calls pass through `Faults` to the one given.

    It has all the abilities that the given one has, those that are optional too, and can be passed to `asyncdl.connect` as it
    is. Entering and leaving a transaction are calls; so is the first step of a stream.
    """
    base, role = next((base, role) for base, role in _ROLES if isinstance(store, base))
    kind = type(store)
    members: dict[str, Any] = {}
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        if name.startswith("_"):
            continue
        # what is no method is the given store's: the base's own would hide it
        members[name] = _method(name, f"{role}.{name}", found) if callable(found) else _property(name)
    made: Any = type(f"Faulty{kind.__name__}", (_Faulty, base), members)
    wrapped: Any = object.__new__(made)
    wrapped._inner, wrapped._faults = store, faults
    result: S = wrapped
    return result


def _real(value: Any) -> Any:
    return value._inner if isinstance(value, _Faulty) else value


def _property(name: str) -> property:
    return property(lambda self: getattr(self._inner, name))


def _method(name: str, called: str, function: Any) -> Callable[..., Any]:
    def inner(self: Any, args: Any, kwargs: Any) -> Any:
        return getattr(self._inner, name)(*map(_real, args), **{key: _real(each) for key, each in kwargs.items()})

    async def coroutine(self: Any, *args: Any, **kwargs: Any) -> Any:
        if name in _UNCOUNTED:
            return await inner(self, args, kwargs)
        return await self._faults.call(called, lambda: inner(self, args, kwargs))

    def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
        if name == "submit":
            return _FaultyFuture(self._faults, called, lambda: inner(self, args, kwargs))
        result = inner(self, args, kwargs)
        if isinstance(result, AsyncIterator):
            return _stream(self._faults, called, result)
        if isinstance(result, AbstractAsyncContextManager):
            return _block(self._faults, called, result)
        return result

    return coroutine if inspect.iscoroutinefunction(function) else plain


async def _stream(faults: Faults, called: str, stream: Any) -> AsyncIterator[Any]:
    async def first() -> Any:
        return await anext(stream, None)

    try:
        found = await faults.call(called, first)
        while found is not None:
            yield found
            found = await anext(stream, None)
    finally:
        await stream.aclose()


@asynccontextmanager
async def _block(faults: Faults, called: str, block: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
    await faults.call(called, _nothing)
    end = None
    async with block as value:
        yield value
        end = faults.next(f"{called} ends")
        await faults.before(f"{called} ends", end)
    if end == "lost":
        raise _unavailable(f"{called} ends", "was made, and its answer lost")


async def _nothing() -> None:
    pass


class _FaultyFuture(ComputeFuture):
    def __init__(self, faults: Faults, called: str, submit: Callable[[], ComputeFuture]) -> None:
        self._faults = faults
        self._fault = faults.next(called)
        self._called = called
        self._inner = None if self._fault in _NOT_MADE else submit()

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self._result().__await__()

    async def _result(self) -> list[Any]:
        await self._faults.before(self._called, self._fault)
        assert self._inner is not None
        outputs = await self._inner
        if self._fault == "lost":
            raise WorkerLostError(f"a fault for a test: {self._called} was made, and its outputs lost")
        return outputs

    def cancel(self) -> bool:
        return self._inner is not None and self._inner.cancel()

    def done(self) -> bool:
        return self._inner is None or self._inner.done()

    @property
    def took(self) -> float:
        return 0.0 if self._inner is None else self._inner.took
