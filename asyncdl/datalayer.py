"""The datalayer: between an application, its database, and its models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, overload

import msgspec

from asyncdl.components.component import Component
from asyncdl.components.dataset import Fold
from asyncdl.components.model import Model
from asyncdl.components.portable import read_component, write_component
from asyncdl.components.validation import Validation
from asyncdl.compute.base import RowError
from asyncdl.context import Answer, context_rows, context_values
from asyncdl.databackend.tables import Key
from asyncdl.engine import Engine
from asyncdl.errors import (
    ConfigurationError,
    InvalidComponentError,
    QueryError,
)
from asyncdl.events.bus import Handler
from asyncdl.events.types import Event, ReconcileRequested, RetryRequested
from asyncdl.installer import Installed
from asyncdl.jobs.completion import set_up_range
from asyncdl.jobs.handle import Added, Handle, Written
from asyncdl.metadata.records import ComponentRecord, EventRecord
from asyncdl.planning import AddPlan
from asyncdl.query import QUERIES, WRITES, AnyWrite, Cursor, DocumentCursor, MongoQuery, Query, first_row, table_in
from asyncdl.transaction import Transaction, transaction

logger = logging.getLogger("asyncdl")

H = TypeVar("H", bound=Handler)

_IDS_IN_AN_EVENT = 5000


class Datalayer:
    """What `asyncdl.connect` returns.

    Every method but `on`, `off` and `aclose` raises `ClosedError` before it is opened and after it is closed. Two datalayers
    in one process share nothing.

    Attributes
    ----------
    databackend, artifact_store, metadata, compute
        The backends.
    events
        The event log: subscribe to it, publish to it.
    jobs
        The jobs: list, retry, cancel.
    """

    def __init__(self, engine: Engine) -> None:
        self.databackend = engine.stores.databackend
        self.artifact_store = engine.artifact_store
        self.metadata = engine.stores.metadata
        self.compute = engine.compute
        self.events = engine.events
        self.jobs = engine.jobs
        self._engine = engine
        self._opened = engine.check_open
        self._registry = engine.registry
        self._installer = engine.installer
        self._writer = engine.writer
        self._predictor = engine.predictor
        self._streams = engine.streams
        self._runner = engine.runner
        self._pauses = engine.pauses
        self._completion = engine.completion
        self._follow = engine.follow
        self._bus = engine.bus
        self._learning = engine.learning

    async def drain(self, grace: float) -> None:
        """Claim no more jobs, and wait until those that run have ended, for so many seconds at most; then close it."""
        self._opened()
        await self._engine.drain(grace)

    async def aclose(self) -> None:
        """Stop working, and close what `asyncdl.connect` opened; closing twice is allowed.

        Batches that run on a thread are waited for; jobs under way go back to the queue, at no cost of an attempt.
        """
        await self._engine.aclose()

    async def __aenter__(self) -> Self:
        if self._engine.state == "new":
            await self._engine.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        urls = ", ".join(each.url for each in (self.databackend, self.artifact_store, self.metadata, self.compute))
        return f"<Datalayer of {urls}; {self._engine.state}>"

    # rows

    def __getitem__(self, name: str) -> Query:
        """Return a query for all rows of a table; it need not exist yet.

        It is in the databackend's language: on MongoDB a `MongoQuery`, which type checkers cannot know.
        """
        return cast("Query", table_in(self.databackend.language, name))

    @overload
    async def execute(self, query: Query) -> Cursor: ...
    @overload
    async def execute(self, query: AnyWrite) -> Written: ...
    @overload
    async def execute(self, query: MongoQuery) -> Any: ...
    async def execute(self, query: Query | MongoQuery | AnyWrite) -> Any:
        """Run a query.

        Returns
        -------
        Cursor
            Of a reading query: an asynchronous iterator over rows as dicts, read from the database as it goes. Of a query of
            MongoDB's that gives a document or a value (`find_one`, `count_documents`, `distinct`): that.
        Written
            Of an insert, upsert, update or delete: the ids of its rows, and a handle on the work that follows.

        Raises
        ------
        QueryError
            And its kin, before anything is done.
        ConstraintError
            The database refused the rows; nothing was written.
        """
        self._opened()
        if isinstance(query, WRITES):
            written, events = await self._writer.write(query.request())
            return Written(
                first=events[0].seq if events else 0,
                last=events[-1].seq if events else 0,
                follow=self._follow,
                ids=written.ids,
                document=written.document,
                counts=written.counts,
            )
        if not isinstance(query, QUERIES):
            raise QueryError(f"execute takes a query, such as db['table'].filter(...), not {query!r}")
        outputs = await self._registry.outputs_of(query) if query.listeners() else {}
        if isinstance(query, MongoQuery):
            pages, gives = self.databackend.read(query, outputs), query.gives
            if gives == "row":
                return await first_row(pages)
            documents = DocumentCursor(pages)
            return documents if gives == "rows" else await documents.value()
        schema = await self.databackend.check(query, outputs)
        return Cursor(self.databackend.read(query, outputs), tuple(schema.columns))

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction: ``async with db.transaction() as tx: await tx.execute(...)``.

        Its rows and the events about them are committed together at the end of the block, or, if that raises, neither.
        Meanwhile SQLite has no other writer: keep it short, and don't use `execute` within the block.

        Raises
        ------
        ConfigurationError
            On entering, where rows and events are in different databases.
        """
        self._opened()
        return transaction(self._writer, self._follow)

    async def tables(self) -> list[str]:
        """Return the names of the tables."""
        self._opened()
        return await self.databackend.tables()

    # components

    @overload
    async def add(self, component: Component, *, wait: bool = ..., dry_run: Literal[False] = ...) -> Added: ...
    @overload
    async def add(self, component: Component, *, wait: bool = ..., dry_run: Literal[True]) -> AddPlan: ...
    async def add(self, component: Component, *, wait: bool = False, dry_run: bool = False) -> Added | AddPlan:
        """Install a component with all that it holds: all of it, or nothing.

        Returns once it is committed; what follows from it, such as a listener's outputs for the rows that are there, is done
        in the background. One that is installed already, and equal, is left as it is; a different one becomes a new version.

        Parameters
        ----------
        wait
            Whether to wait until that has been done, too.
        dry_run
            Whether to tell what would be done instead, and write nothing.

        Raises
        ------
        InvalidComponentError, TableNotFoundError, UnknownColumnError, QueryError
            Before anything has been changed.
        """
        self._opened()
        _check_component(component)
        if dry_run:
            return await self._installer.plan(component, replacing=False)
        return await self._added(component, await self._installer.add(component), wait=wait)

    @overload
    async def replace(self, component: Component, *, wait: bool = ..., dry_run: Literal[False] = ...) -> Added: ...
    @overload
    async def replace(self, component: Component, *, wait: bool = ..., dry_run: Literal[True]) -> AddPlan: ...
    async def replace(self, component: Component, *, wait: bool = False, dry_run: bool = False) -> Added | AddPlan:
        """Install a new version of a component, and new versions of all that use it, which then use this one.

        ``wait`` and ``dry_run`` are those of `add`.

        Raises
        ------
        ComponentNotFoundError
            There is none to be replaced.
        """
        self._opened()
        _check_component(component)
        if dry_run:
            return await self._installer.plan(component, replacing=True)
        return await self._added(component, await self._installer.replace(component), wait=wait)

    async def _added(self, component: Component, installed: Installed, *, wait: bool) -> Added:
        [record] = [
            each
            for each in installed.records
            if (each.type_id, each.identifier) == (component.type_id, component.identifier)
        ]
        found = _range(installed.events)
        if not installed.created:  # it was there: what it is waiting for, if anything, is to be waited for
            found = dict(zip(found, await set_up_range(self.metadata, installed.records), strict=True))
        added = Added(
            **found,
            follow=self._follow,
            component=await self._registry.load(record),
            created=installed.created,
        )
        if wait:
            await added.wait()
        return added

    async def load(self, type_id: str, identifier: str, version: int | None = None) -> Any:
        """Return an installed component; ``version`` None or -1: the newest.

        Raises
        ------
        ComponentNotFoundError
        UntrustedArtifactError
            It holds a pickle, and the setting ``pickle`` is False.
        """
        self._opened()
        return await self._registry.load(await self._registry.find(type_id, identifier, version))

    async def show(self, type_id: str | None = None, identifier: str | None = None, version: int | None = None) -> Any:
        """Tell what is installed.

        Returns
        -------
        list of dict
            Without arguments: ``{"type_id": ..., "identifier": ...}`` of each.
        list of str
            With a type: its identifiers.
        list of int
            With an identifier: its versions.
        dict
            With a version (-1: the newest): the whole record.
        """
        self._opened()
        if type_id is None:
            records = await self.metadata.components()
            found = dict.fromkeys((record.type_id, record.identifier) for record in records)
            return [{"type_id": kind, "identifier": name} for kind, name in found]
        if identifier is None:
            return sorted({record.identifier for record in await self.metadata.components(type_id=type_id)})
        if version is None:
            await self._registry.find(type_id, identifier)
            return [each.version for each in await self.metadata.components(type_id=type_id, identifier=identifier)]
        return await self._registry.record(await self._registry.find(type_id, identifier, version))

    async def remove(
        self, type_id: str, identifier: str, version: int | None = None, *, recursive: bool = False
    ) -> None:
        """Remove a component (or one version of it), its outputs, and the artifacts that nothing else refers to.

        What it holds stays, and so do rows. Jobs that work for it are cancelled.

        Parameters
        ----------
        recursive
            Whether to remove what uses it as well.

        Raises
        ------
        ComponentNotFoundError
        ComponentInUseError
            Others use it, and ``recursive`` is False; the message names them.
        """
        self._opened()
        for job in await self._installer.remove(type_id, identifier, version, recursive=recursive):
            self._runner.stop(job)

    async def pause(self, type_id: str, identifier: str) -> None:
        """Pause a listener: from now on no job of it begins, in whatever process, until it is resumed.

        Jobs that run end after their batch, and wait as the others do, in the state ``paused``. What is written meanwhile is
        computed when the listener is resumed, and readers see its outputs as they are. It lasts when the datalayer is closed.
        Pausing what is paused changes nothing.

        Raises
        ------
        ComponentNotFoundError
        InvalidComponentError
            It is no listener.
        """
        await self._pauses.pause(await self._listener(type_id, identifier, "paused"))

    async def resume(self, type_id: str, identifier: str) -> None:
        """Have a paused listener go on, with all that came meanwhile; it may run already.

        Raises
        ------
        ComponentNotFoundError
        InvalidComponentError
            It is no listener.
        """
        await self._pauses.resume(await self._listener(type_id, identifier, "resumed"))

    async def _listener(self, type_id: str, identifier: str, what: str) -> ComponentRecord:
        self._opened()
        if type_id != "listener":
            raise InvalidComponentError(f"a {type_id} cannot be {what}: only a listener can")
        return await self._registry.find(type_id, identifier)

    async def drop(self, *, force: bool = False, data: bool = False) -> None:
        """Remove every component, with all outputs.

        Parameters
        ----------
        force
            Must be True: this cannot be undone.
        data
            Whether to drop the tables, too.
        """
        self._opened()
        if not force:
            raise ConfigurationError(
                "drop removes every component and all outputs; say drop(force=True) if that is meant"
            )
        uuids = [record.uuid for record in await self.metadata.components()]
        for job in await self._installer.remove_all(uuids, recursive=True) if uuids else []:
            self._runner.stop(job)
        if data:
            async with self.databackend.transaction() as tx:
                for name in await self.databackend.tables():
                    await self.databackend.drop_table(name, tx)

    async def export(self, type_id: str, identifier: str, path: str | Path, version: int | None = None) -> None:
        """Write a component, with all that it holds, to a folder: ``component.json`` beside ``blobs/``."""
        self._opened()
        record = await self._registry.find(type_id, identifier, version)
        component = await self._registry.load(record)
        await write_component(component, Path(path))

    async def import_from(self, path: str | Path, *, wait: bool = False) -> Added:
        """Add the component that `export` wrote to a folder.

        Raises
        ------
        InvalidComponentError, ArtifactCorruptError
            The folder does not hold what was written.
        """
        self._opened()
        component = await read_component(Path(path), allow_pickle=self._registry.allow_pickle)
        return await self.add(component, wait=wait)

    # models

    @overload
    async def predict(
        self, model: str | Model, /, *args: Any, context_select: Query, context_key: str | None = None, **kwargs: Any
    ) -> Answer: ...
    @overload
    async def predict(self, model: str | Model, /, *args: Any, **kwargs: Any) -> Any: ...
    async def predict(
        self,
        model: str | Model,
        /,
        *args: Any,
        context_select: Any = None,
        context_key: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return an installed model's output for one input.

        A batch model gets what concurrent callers ask as few batches, of 256 inputs at most: see docs/prediction.md.

        Parameters
        ----------
        context_select
            A query whose rows, 1,000 at most, the model gets as a list behind its input: ``model(input, rows)``. Then an
            `Answer` is returned, of the output and the rows.
        context_key
            A column: the model gets its values instead of rows.

        Raises
        ------
        ModelError
            The model failed; the message holds its traceback.
        QueryError
            The context has more than 1,000 rows, or no such column.
        """
        self._opened()
        if context_select is None:
            return await self._predictor.predict(model, args, kwargs)
        sources = await context_rows(await self.execute(context_select), context_select)
        given = (*args, context_values(sources, context_key))
        return Answer(await self._predictor.predict(model, given, kwargs), sources)

    def predict_many(
        self, model: str | Model, inputs: Iterable[Any] | AsyncIterable[Any], *, size: int = 256
    ) -> AsyncIterator[Any]:
        """Yield an installed model's outputs, in order, while its inputs come; at most a few batches are in memory.

        Raises
        ------
        ModelError
            The model failed on an input.
        """
        self._opened()
        return self._predictor.predict_many(model, inputs, size)

    async def train(self, model: str, *, wait: bool = False) -> Added:
        """Train a model again: as a new version, which what uses it moves to once it, and all of its outputs, are there.

        Raises
        ------
        ComponentNotFoundError, InvalidComponentError
            There is no such model, or it has no trainer.
        """
        self._opened()
        installed = await self._installer.retrain(model)
        [record] = [each for each in installed.records if (each.type_id, each.identifier) == ("model", model)]
        return await self._added(await self._registry.load(record), installed, wait=wait)

    async def validate(self, model: str, validation: str | Validation | None = None) -> dict[str, float]:
        """Measure a model, and keep the result with this version of it.

        Parameters
        ----------
        validation
            Default: the one that the model declares. One that is not installed is added.

        Returns
        -------
        dict
            Metric to value; where there are several datasets, ``"dataset/metric"`` to value.

        Raises
        ------
        ComponentNotReadyError
            The model is still being trained, or that failed.
        JobFailedError
            The model failed on a row, or a metric did.
        """
        self._opened()
        return await self._learning.validate(model, validation)

    async def validations(self, model: str) -> dict[int, dict[str, dict[str, float]]]:
        """Return what validations of a model found, to compare its versions: version to validation to metric to value."""
        self._opened()
        return await self._learning.validations(model)

    def rows(self, dataset: str, fold: Fold | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield the rows of a dataset (of one fold of it), as they were when it was added.

        Raises
        ------
        ComponentNotReadyError
            They are still being read, or that failed.
        """
        self._opened()
        return self._learning.rows(dataset, fold)

    def stream(self, model: str | Model, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Yield an installed model's output for one input in pieces: ``async for token in db.stream("llm", prompt)``.

        The model's object has a generator function ``stream``, plain or asynchronous, or is one. It runs in this process, a
        plain one on a thread, at the pace of who iterates; leaving the loop ends it (at once within ``contextlib.aclosing``).

        Raises
        ------
        ModelError
            The model failed, or does not stream.
        """
        self._opened()
        return self._streams.stream(model, args, kwargs)

    # what happens

    def on(
        self, *types: type[Event], table: str | None = None, component: tuple[str, str] | None = None
    ) -> Callable[[H], H]:
        """Return a decorator that registers a function to be called, in this process, for events of these types.

        ``table="docs"`` or ``component=("listener", "length")`` narrows it to events about these.
        """
        return self._bus.on(*types, table=table, component=component)

    def off(self, handler: Handler) -> None:
        """Unregister a function that `on` registered."""
        self._bus.off(handler)

    async def errors(self, listener: str, *, limit: int = 1000) -> list[tuple[Key, RowError]]:
        """Return the rows that a listener's model failed on: the primary key, and what it raised."""
        self._opened()
        output = (await self._registry.outputs([listener]))[listener]
        if output.datatype is None:
            return []
        found = await self.databackend.failed(output, limit=limit)
        return [(key, msgspec.json.decode(error, type=RowError)) for key, error in found]

    async def retry_failed(self, listener: str) -> Handle:
        """Have a listener's model tried again on the rows that it failed on, and on no others."""
        ids = [key for key, _ in await self.errors(listener, limit=1_000_000)]
        chunks = [ids[at : at + _IDS_IN_AN_EVENT] for at in range(0, len(ids), _IDS_IN_AN_EVENT)]
        events = await self.metadata.commit(
            *(RetryRequested(identifier=listener, ids=chunk).change() for chunk in chunks)
        )
        return Handle(**_range(events), follow=self._follow)

    async def reconcile(self, listener: str = "") -> Handle:
        """Have outputs compared with rows, for one listener or all, and what is missing or left over put right.

        It finds rows that another program inserted or deleted. Rows that it changed, it cannot.
        """
        self._opened()
        if listener:
            await self._registry.find("listener", listener)
        events = await self.metadata.commit(ReconcileRequested(identifier=listener).change())
        return Handle(**_range(events), follow=self._follow)

    async def wait_idle(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - what users expect
        """Wait until nothing is left to be done.

        Raises
        ------
        TimeoutError
            It was not within this many seconds.
        """
        self._opened()
        async with asyncio.timeout(timeout):
            await self._completion.wait_idle()


def _check_component(component: Any) -> None:
    if not isinstance(component, Component):
        raise InvalidComponentError(
            f"only components can be added, such as Model(...) or Listener(...), not {component!r}"
        )


def _range(events: list[EventRecord]) -> dict[str, int]:
    return {"first": events[0].seq, "last": events[-1].seq} if events else {"first": 0, "last": 0}
