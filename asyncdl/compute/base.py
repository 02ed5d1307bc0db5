"""Compute: where models run.

A `ModelTask` is small and picklable: it names a model, and carries one batch. A worker (a thread, a process, a Dask
worker) loads the model through a `ModelLoader` once and keeps it.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from asyncdl.errors import ComputeError

Placement = Literal["loop", "thread", "process"]

OWN = "asyncdl:"
"""What begins the ``uuid`` of a call of a function of asyncdl's own, which is no component: its ``reference`` finds it."""


@dataclass(frozen=True, slots=True)
class RowError:
    """What a model's failure on one row leaves: it stands in the batch's outputs where the output would."""

    type: str
    message: str
    traceback: str
    kinds: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Names of the exception's type and of those that it derives from, as `name_of_type` gives them."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """How a model's object is called.

    Parameters
    ----------
    uuid
        The model component's: the name under which a worker keeps the loaded object.
    artifact
        SHA-256 of the pickled object, or None where `reference` finds it.
    reference
        An import path, ``"package.module:qualified.name"``, or None.
    method
        The object's method to call; empty: the object itself.
    batch
        Whether one call takes a list of inputs and returns as many outputs, or a single input.
    signature
        How one input is passed: ``"single"`` (one positional argument), ``"args"`` (``*input``), ``"kwargs"``
        (``**input``).
    kwargs
        Further keyword arguments of every call.
    placement
        ``"loop"`` for a coroutine function, else ``"thread"`` or ``"process"``.
    max_concurrency
        Calls under way at once on the loop, for this model (``"loop"`` only).
    name
        The model's identifier, by which its versions share the limits that follow.
    at_most
        Calls under way at once in all processes together; None: no limit.
    rate_limit
        Calls begun in a second, in all processes together; None: no limit.
    one_by_one
        Whether a batch that fails is taken row by row; otherwise each of its rows has failed.
    timeout
        Seconds for one call on the loop, or for one batch elsewhere; None: no limit.
    retries, backoff
        Further attempts of one row after a failure, and seconds before the first of them, doubled for each, with up to half
        of it added by chance. A batch that fails is taken row by row.
    retry_on, give_up_on
        Names of exception types (``"builtins:ValueError"``): a failure is tried again if it is of one of the first, or there
        are none, and of none of the second. A type stands for those that derive from it, too.
    resources
        What a worker must have free for each batch (``{"GPU": 1}``), where workers declare what they have: on Dask.
    long
        Whether it takes long, and is to keep no other batch from its thread or process.
    """

    uuid: str
    artifact: str | None = None
    reference: str | None = None
    method: str = ""
    batch: bool = False
    signature: Literal["single", "args", "kwargs"] = "single"
    kwargs: dict[str, Any] = field(default_factory=dict)
    placement: Placement = "thread"
    max_concurrency: int = 100
    timeout: float | None = None
    retries: int = 0
    backoff: float = 0.1
    retry_on: tuple[str, ...] = ()
    give_up_on: tuple[str, ...] = ()
    resources: dict[str, float] = field(default_factory=dict)
    long: bool = False
    name: str = ""
    at_most: int | None = None
    rate_limit: float | None = None
    one_by_one: bool = True

    @property
    def lane(self) -> str:
        """What calls are counted under."""
        return self.uuid if self.at_most is None else self.name

    def retries_after(self, error: BaseException) -> bool:
        """Return whether a row on which the model failed so is worth another attempt: by the error's type, never its message."""
        return self.retries_kinds(kinds_of(error))

    def retries_kinds(self, names: Sequence[str]) -> bool:
        """Return the same for a failure whose types have these names."""
        return not self.gives_up_on(names) and (not self.retry_on or not set(names).isdisjoint(self.retry_on))

    def gives_up_on(self, names: Sequence[str]) -> bool:
        """Return whether a failure whose types have these names is not worth another attempt, by what was declared."""
        return not set(names).isdisjoint(self.give_up_on)

    def pause(self, attempt: int) -> float:
        """Return the seconds before another attempt, the first being number 0."""
        return self.backoff * 2.0**attempt * (1 + random.random() / 2)  # noqa: S311 - so that not all come again at once


def name_of_type(kind: type) -> str:
    """Return the name by which `ModelCall` knows a type of exception."""
    return f"{kind.__module__}:{kind.__qualname__}"


def kinds_of(error: BaseException) -> tuple[str, ...]:
    """Return the names of an exception's type and of those that it derives from."""
    return tuple(name_of_type(each) for each in type(error).__mro__)


class Site(Protocol):
    """What errands need to have open where they run: pickled to get there, opened once, and closed with the last who used it."""

    @property
    def key(self) -> str:
        """What tells it from others."""

    async def open(self) -> OpenSite:
        """Open it, or raise whatever it likes."""


class OpenSite(Protocol):
    """A site that is open."""

    async def aclose(self) -> None:
        """Close it."""


class Errand(ABC):
    """A batch whose inputs are fetched, and whose outputs are put away, by the worker that runs it: they never pass here.

    It is pickled to get there.
    """

    site: Site

    @abstractmethod
    def __len__(self) -> int:
        """Return how many inputs there are, as far as one knows."""

    @abstractmethod
    async def run(self, site: Any, compute: Callable[[Sequence[Any]], Awaitable[list[Any]]]) -> Any:
        """Do it, on the open site, and return what is to be known of it.

        It may run twice, and end after nobody waits for it any more. An error of asyncdl's own reaches who submitted it.
        """


class UnreachableError(ComputeError):
    """A worker cannot open the site of an errand."""


@dataclass(frozen=True, slots=True)
class ModelTask:
    """One batch for one model.

    Parameters
    ----------
    key
        Unique among all tasks; Dask takes it as its own.
    call
        The model.
    inputs
        The batch: each element one input, of the form that the call's ``signature`` says.
    errand
        What gets the inputs in their place (`ComputeBackend.runs_errands`). The outputs are a list of one then: what it returned.
    """

    key: str
    call: ModelCall
    inputs: Sequence[Any]
    errand: Errand | None = None

    @property
    def size(self) -> int:
        """How many inputs there are."""
        return len(self.inputs if self.errand is None else self.errand)


Fetch = Callable[[str], Awaitable[bytes]]
"""Gets an artifact's verified bytes, by its hash, in another process, perhaps on another machine.

It is pickled to get there, opens and closes what it needs by itself, and raises whatever it likes where it cannot.
"""


class ModelLoader(Protocol):
    """Finds a model's object; the compute backend keeps what it returns, by ``call.uuid``."""

    async def __call__(self, call: ModelCall) -> Any:
        """Return the live object."""

    async def payload(self, call: ModelCall) -> bytes:
        """Return the object pickled (cloudpickle), for another process."""

    def fetch(self) -> Fetch | None:
        """Return what gets ``call.artifact`` in a worker's process; None: nothing does, and `payload` has to travel."""


class ComputeFuture(ABC):
    """A task under way: await it for its outputs, one for each input, a `RowError` where the model failed on one.

    A failure of the whole batch raises: a timeout or a model that cannot be loaded (`ModelError`), a batch model that
    returned another number of outputs than it got inputs (`ModelOutputError`), a worker that died (`WorkerLostError`), no
    worker to be had (`ComputeUnavailableError`).
    """

    @abstractmethod
    def __await__(self) -> Generator[Any, None, list[Any]]:
        """Wait for the outputs. Cancelling the wait does not cancel the task."""

    @abstractmethod
    def cancel(self) -> bool:
        """Ask the task to stop; return whether it had not finished.

        What has not started never starts; what runs is asked to stop where that is possible, and its result is dropped:
        awaiting it raises `asyncio.CancelledError`.
        """

    @abstractmethod
    def done(self) -> bool:
        """Return whether it has finished, failed or been cancelled."""

    @property
    @abstractmethod
    def took(self) -> float:
        """The seconds from `ComputeBackend.submit` to its end; so far, while it has not ended."""


class ComputeBackend(ABC):
    """Runs tasks; bounded in what it runs at once."""

    url: str

    @abstractmethod
    async def open(self, loader: ModelLoader) -> None:
        """Start what is needed."""

    @abstractmethod
    async def aclose(self) -> None:
        """Cancel what is queued, wait for what runs on the loop to stop, and leave no thread or process of ours."""

    @abstractmethod
    def submit(self, task: ModelTask) -> ComputeFuture:
        """Start a task as soon as there is room; never blocks."""

    @abstractmethod
    def forget(self, uuid: str) -> None:
        """Drop a model's object that was loaded under this uuid, everywhere."""

    def allow(self, name: str, calls: int) -> bool:
        """Bound the calls under way at once of a coroutine model with a limit (`ModelCall.at_most`), from now on.

        Returns False where calls are not counted one by one; then who submits bounds the batches.
        """
        return False

    def under_way(self, name: str) -> int:
        """Return how many calls are under way of those that `allow` bounds; for a while there may be more than allowed."""
        return 0

    @property
    @abstractmethod
    def parallelism(self) -> int:
        """How many batches are worth having under way at once."""

    @property
    def loops(self) -> int:
        """How many event loops coroutine models run on."""
        return 1

    def runs_errands(self, call: ModelCall) -> bool:
        """Return whether a task may have an `Errand`: workers are processes that live longer than a batch."""
        return False

    def reachable_at(self, placement: Placement) -> str | None:
        """Return the address of this machine at which what runs a task reaches this process; None: it runs in this process."""
        return "127.0.0.1"
