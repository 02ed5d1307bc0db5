"""Models: functions from values to values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from asyncdl.components.component import Component
from asyncdl.components.datatype import Datatype
from asyncdl.components.training import Trainer, is_coroutine_function
from asyncdl.components.validation import Validation
from asyncdl.compute.base import Placement, name_of_type
from asyncdl.datatypes import normalize
from asyncdl.errors import InvalidComponentError

Key = str | tuple[str, ...] | Mapping[str, str]
"""Which columns are a model's input: one (passed as it is), several (positional), or parameter to column (by keyword)."""

MOST_AT_ONCE = 1_000_000
LEAST_RATE, HIGHEST_RATE = 1e-5, 1e5

Signature = Literal["single", "args", "kwargs"]


@dataclass(frozen=True, eq=False)
class Model(Component):
    """A function, coroutine function or callable object, applied to one input at a time or to a batch.

    Parameters
    ----------
    object
        What is called. An object that is not callable but has a ``predict`` (a scikit-learn estimator) is called by
        it, in batches.
    datatype
        The outputs' datatype (`asyncdl.datatypes`, or a `Datatype`); None: inferred from the first outputs.
    batch
        Whether one call takes a list of inputs and returns as many outputs. Default: False, True for estimators.
    method
        The object's method to call; empty: the object itself.
    kwargs
        Further keyword arguments of each call.
    on
        ``"thread"`` or ``"process"`` for plain functions. Coroutine functions run on the event loop.
    max_concurrency
        Calls under way at once, in all processes together; calls of a batch model are batches. Default: no limit across
        processes; in each, 100 calls of a coroutine function, and of a plain one as many as there are threads or processes.
    rate_limit
        Calls begun in a second, in all processes together, retries included: at equal distances. Below 1 for fewer.
    timeout
        Seconds for one call of a coroutine function, or for one batch of a plain one.
    retries
        Further attempts on a row that failed; a batch that fails is taken row by row.
    backoff
        Seconds before the first of them, doubled for each further one, with up to half of it added by chance.
    retry_on, give_up_on
        Exception types (or their names, ``"module:Name"``) that are worth another attempt, and that are not; what derives from
        them is meant, too. Default: all are. They hold for rows, and for jobs that fail on what concerns all rows: ``retry_on``
        only for what the model fails with (`ModelError` and its kin), since a database's errors are not its affair.
    resources
        What a Dask worker must have free for each batch, as it declares it (``dask worker --resources "GPU=1"``):
        ``{"GPU": 1}``. Compute on this machine declares nothing and does not look at them.
    trainer
        How it is trained. Such a model is not ready before it was, and what uses it waits for that.
    validation
        What is measured when it is ready.

    Attributes
    ----------
    trained
        What training made of ``object``, which is then called in its place; None before.
    """

    type_id: ClassVar[str] = "model"

    object: Any = field(metadata={"blob": True})
    datatype: str | Datatype | None = field(default=None, kw_only=True)
    batch: bool | None = field(default=None, kw_only=True)
    method: str | None = field(default=None, kw_only=True)
    kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    on: Literal["thread", "process"] = field(default="thread", kw_only=True)
    max_concurrency: int | None = field(default=None, kw_only=True, metadata={"tuning": True})
    rate_limit: float | None = field(default=None, kw_only=True, metadata={"tuning": True})
    timeout: float | None = field(default=None, kw_only=True)
    retries: int = field(default=0, kw_only=True)
    backoff: float = field(default=0.1, kw_only=True)
    retry_on: Sequence[type[BaseException] | str] = field(default=(), kw_only=True)
    give_up_on: Sequence[type[BaseException] | str] = field(default=(), kw_only=True)
    resources: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    trainer: Trainer | None = field(default=None, kw_only=True)
    validation: Validation | None = field(default=None, kw_only=True)
    trained: Any = field(default=None, kw_only=True, repr=False, metadata={"declared": False})

    def __post_init__(self) -> None:
        for name in ("retry_on", "give_up_on"):  # types are declared, and stored, by name
            given = getattr(self, name)
            given = [given] if isinstance(given, (type, str)) else given
            object.__setattr__(self, name, tuple(exception_name(each) for each in given))
        super().__post_init__()

    def check(self) -> None:
        """Raise `InvalidComponentError` when the object cannot be called as declared, `DatatypeError` for its datatype."""
        self._check_parts()
        target = self.target
        made_by_fit = self.trainer is not None and self.trainer.fit is not None and self.trained is None
        if not callable(target) and not made_by_fit:
            what = f"its method {self.called!r}" if self.called else "the object"
            raise InvalidComponentError(f"{self}: {what} is not callable: {target!r}")
        if isinstance(self.datatype, str):
            normalize(self.datatype)
        elif self.datatype is not None and not isinstance(self.datatype, Datatype):
            raise InvalidComponentError(f"{self}: datatype is {self.datatype!r}; it must be a string or a Datatype")
        if self.on not in {"thread", "process"}:
            raise InvalidComponentError(f"{self}: on is {self.on!r}; it can be 'thread' or 'process'")
        if self.retries < 0 or (self.timeout is not None and self.timeout <= 0):
            raise InvalidComponentError(f"{self}: timeout must be positive, retries not negative")
        self._check_limits()
        if self.backoff < 0:
            raise InvalidComponentError(f"{self}: backoff is {self.backoff}; it must not be negative")
        if not all(isinstance(amount, (int, float)) and amount > 0 for amount in self.resources.values()):
            raise InvalidComponentError(
                f"{self}: resources are {dict(self.resources)!r}; their amounts must be positive"
            )

    def _check_limits(self) -> None:
        if self.max_concurrency is not None and not 1 <= self.max_concurrency <= MOST_AT_ONCE:
            raise InvalidComponentError(
                f"{self}: max_concurrency is {self.max_concurrency}; it must be positive, and at most {MOST_AT_ONCE}"
            )
        if self.rate_limit is not None and not LEAST_RATE <= self.rate_limit <= HIGHEST_RATE:
            raise InvalidComponentError(
                f"{self}: rate_limit is {self.rate_limit}; it must be positive: from {LEAST_RATE} to {HIGHEST_RATE} a second"
            )

    def _check_parts(self) -> None:
        if self.trainer is not None and not isinstance(self.trainer, Trainer):
            raise InvalidComponentError(f"{self}: trainer is {self.trainer!r}; it must be a Trainer")
        if self.trainer is not None:
            self.trainer.check(self)
        if self.validation is not None and not isinstance(self.validation, Validation):
            raise InvalidComponentError(f"{self}: validation is {self.validation!r}; it must be a Validation")

    def listeners(self) -> frozenset[str]:
        """Return the identifiers of the listeners whose outputs it is trained on."""
        return frozenset() if self.trainer is None else self.trainer.listeners()

    @property
    def called_object(self) -> Any:
        """What is called, or has the method that is: the trained object, once there is one."""
        return self.object if self.trained is None else self.trained

    @property
    def is_estimator(self) -> bool:
        """Whether the object is called by its ``predict``."""
        return not callable(self.called_object) and callable(getattr(self.called_object, "predict", None))

    @property
    def called(self) -> str:
        """The method that is called; empty: the object itself."""
        if self.method is not None:
            return self.method
        return "predict" if self.is_estimator else ""

    @property
    def batched(self) -> bool:
        """Whether one call takes a list of inputs."""
        return self.is_estimator if self.batch is None else self.batch

    @property
    def target(self) -> Any:
        """What is called in the end; None where the object has no such method."""
        return getattr(self.called_object, self.called, None) if self.called else self.called_object

    @property
    def placement(self) -> Placement:
        """Where it runs."""
        return "loop" if is_coroutine_function(self.target) else self.on

    def check_key(self, key: Key) -> None:
        """Raise `InvalidComponentError` when the object cannot be called with the columns of a key."""
        try:
            signature = inspect.signature(self.target)
        except (TypeError, ValueError):  # builtins without a signature
            return
        try:
            if isinstance(key, Mapping) and not self.batched:
                signature.bind(**dict.fromkeys(key), **self.kwargs)
            else:
                count = len(key) if isinstance(key, tuple) and not self.batched else 1
                signature.bind(*[None] * count, **self.kwargs)
        except TypeError as error:
            raise InvalidComponentError(
                f"{self}: the key {key!r} does not fit its signature {signature}: {error}"
            ) from error


def exception_name(kind: type[BaseException] | str) -> str:
    """Return the name of an exception type.

    Raises
    ------
    InvalidComponentError
        It is none.
    """
    if isinstance(kind, str) and all(part for part in kind.partition(":")):
        return kind
    if isinstance(kind, type) and issubclass(kind, BaseException):
        return name_of_type(kind)
    raise InvalidComponentError(
        f"{kind!r} is neither an exception type nor the name of one, such as 'builtins:ValueError'"
    )


def signature_of(key: Key) -> Signature:
    """Return how one input with this key is passed."""
    if isinstance(key, str):
        return "single"
    return "kwargs" if isinstance(key, Mapping) else "args"


def columns_of(key: Key) -> tuple[str, ...]:
    """Return the columns of a key, in the order in which they are read."""
    if isinstance(key, str):
        return (key,)
    return tuple(key.values()) if isinstance(key, Mapping) else tuple(key)
