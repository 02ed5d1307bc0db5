"""Connecting: URIs become backends, and backends a datalayer. The one place where things are put together."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

from asyncdl import progress
from asyncdl.artifact_store.base import ArtifactStore
from asyncdl.compute.base import ComputeBackend
from asyncdl.compute.dask import DaskComputeBackend
from asyncdl.compute.local import LocalComputeBackend
from asyncdl.databackend.base import DataBackend
from asyncdl.datalayer import Datalayer
from asyncdl.datatypes import Datatypes
from asyncdl.engine import Engine, EngineOptions
from asyncdl.errors import ClosedError, ConfigurationError, UnknownSchemeError
from asyncdl.jobs.runner import RunnerOptions
from asyncdl.metadata.base import MetadataStore
from asyncdl.schemes import METADATA, Kind, Located, Role, kind_of, locate
from asyncdl.settings import Settings, defaults, redact

_ARTIFACTS = "filesystem://.asyncdl/artifacts/"


def connect(
    databackend: str | DataBackend | None = None,
    *,
    metadata_store: str | MetadataStore | None = None,
    artifact_store: str | ArtifactStore | None = None,
    compute: str | ComputeBackend | Any | None = None,
    **settings: Any,
) -> Connecting:
    """Connect to a databackend, and to what belongs to it.

    ``async with asyncdl.connect(...) as db:`` closes the datalayer at the end of the block; ``db = await asyncdl.connect(...)``
    leaves that to ``await db.aclose()``.

    Parameters
    ----------
    databackend
        Where the rows are: a URI (``"sqlite://app.db"``, ``"postgresql://localhost/app"``), or a ready databackend.
        Default: ``.asyncdl/asyncdl.db``.
    metadata_store
        Where components, events and jobs are (``"sqlite://meta.db"``, ``"mongodb://host/name"``). Default: in the databackend's
        own database.
    artifact_store
        Where models are (``"filesystem://./data"``, ``"mongodb://host/name"``: in GridFS). Default: in GridFS where the metadata
        store or the databackend is on MongoDB, else ``filesystem://.asyncdl/artifacts/``. Within it each metadata store has a
        folder of its own.
    compute
        Where models run: ``"local"``, ``"dask://host:8786"``, ``"dask://"`` (a cluster of its own, on this machine), or a ready
        `distributed.Client` or cluster. Default: ``"local"``.
    **settings
        The other fields of `asyncdl.Settings`.

    Raises
    ------
    ConfigurationError
        At once, when a setting or URI cannot be used.
    StoreUnavailableError
        On entering or awaiting, when a store cannot be reached.

    Notes
    -----
    A backend that is handed over ready is open already, and is not closed.
    """
    ready = {
        "databackend": _ready(databackend, DataBackend),
        "metadata_store": _ready(metadata_store, MetadataStore),
        "artifact_store": _ready(artifact_store, ArtifactStore),
        "compute": _ready_compute(compute),
    }
    given = {
        "databackend": databackend,
        "metadata_store": metadata_store,
        "artifact_store": artifact_store,
        "compute": compute,
    }
    uris = {name: None if ready[name] is not None else value for name, value in given.items()}
    return Connecting(defaults().replaced(**uris, **settings), ready)


def _ready(value: Any, kind: type) -> Any:
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, kind):
        raise ConfigurationError(f"{value!r} is neither a URI nor a ready {kind.__name__}")
    return value


def _ready_compute(value: Any) -> ComputeBackend | None:
    if value is None or isinstance(value, str):
        return None
    return value if isinstance(value, ComputeBackend) else DaskComputeBackend(value)


class Connecting:
    """A datalayer that is to be opened: await it, or enter it with ``async with``."""

    def __init__(self, settings: Settings, ready: Mapping[str, Any]) -> None:
        self._settings = settings
        self._ready = ready
        self._plan = _Plan(settings, ready)
        self._opened: Datalayer | None = None

    def __await__(self) -> Generator[Any, None, Datalayer]:
        return self._open().__await__()

    async def __aenter__(self) -> Datalayer:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.aclose()

    async def _open(self) -> Datalayer:
        if self._opened is not None:
            raise ClosedError("this connection has been opened already; call asyncdl.connect again for another")
        settings = self._settings
        async with AsyncExitStack() as stack:
            plan = self._plan
            databackend, metadata = plan.stores(stack)
            if self._ready["databackend"] is None:
                await databackend.open()
                stack.push_async_callback(databackend.aclose)
            if self._ready["metadata_store"] is None:
                await metadata.open()
                stack.push_async_callback(metadata.aclose)
            artifact_store = self._ready["artifact_store"]
            if artifact_store is None:
                artifact_store = plan.artifact_store(metadata, databackend, stack)
                await artifact_store.open()
                stack.push_async_callback(artifact_store.aclose)
            engine = Engine(
                databackend,
                artifact_store,
                metadata,
                plan.compute,
                datatypes=databackend.datatypes,
                options=_options(settings),
            )
            await engine.open()
            engine.closes(stack)
        self._opened = Datalayer(engine)
        return self._opened

    def __repr__(self) -> str:
        return f"<asyncdl.connect to {redact(self._settings.databackend)}, not open yet>"


def _options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        allow_pickle=settings.pickle,
        max_attempts=settings.job_max_attempts,
        runner=RunnerOptions(
            settings.job_concurrency,
            settings.job_lease,
            settings.job_backoff,
            settings.job_timeout,
            settings.job_deadline,
        ),
        show=progress.show if progress.wanted(settings.progress) else None,
        worker=settings.worker,
        shard_rows=settings.job_shard_rows,
        reconcile_every=settings.reconcile_every,
    )


def _compute(settings: Settings) -> ComputeBackend:
    if settings.compute in {"local", "local://"}:
        return LocalComputeBackend(settings.threads, settings.processes)
    scheme = settings.compute.partition("://")[0]
    if scheme == "dask":
        return DaskComputeBackend(settings.compute)
    raise UnknownSchemeError(
        f"no compute backend serves {scheme!r} (from {redact(settings.compute)!r}); there are local and dask://"
    )


class _Plan:
    """Which stores the settings ask for: read from the URIs before anything is opened."""

    def __init__(self, settings: Settings, ready: Mapping[str, Any]) -> None:
        self._datatypes = Datatypes(allow_pickle=settings.pickle)
        self._databackend: DataBackend | None = ready["databackend"]
        self._metadata: MetadataStore | None = ready["metadata_store"]
        self._data = None if self._databackend is not None else locate(settings.databackend, "databackend")
        self._records = _located(settings.metadata_store, "metadata_store")
        self._artifacts = _located(settings.artifact_store, "artifact_store")
        self.compute: ComputeBackend = ready["compute"] or _compute(settings)

    def stores(self, stack: AsyncExitStack) -> tuple[DataBackend, MetadataStore]:
        """Return databackend and metadata store, still to be opened; on one database object where both are one database."""
        databackend = self._databackend
        if databackend is None:
            assert self._data is not None and self._data.kind.databackend is not None  # noqa: S101, PT018 - tells mypy
            database = _shared(self._data.make(stack), self._metadata)
            databackend = self._data.kind.databackend(database, self._datatypes)
        return databackend, self._metadata or self._metadata_store(databackend, stack)

    def _metadata_store(self, databackend: DataBackend, stack: AsyncExitStack) -> MetadataStore:
        kind, database = kind_of(_database(databackend)), _database(databackend)
        if self._records is not None:
            kind, database = self._records.kind, _shared(self._records.make(stack), databackend)
        elif kind is None or kind.metadata_store is None:
            beside = locate(METADATA if kind is None else kind.beside(database), "metadata_store")
            kind, database = beside.kind, beside.make(stack)
        assert kind.metadata_store is not None  # noqa: S101 - tells mypy
        return kind.metadata_store(database)

    def artifact_store(self, metadata: MetadataStore, databackend: DataBackend, stack: AsyncExitStack) -> ArtifactStore:
        """Return the artifact store, still to be opened; by default with the records, or with the rows, where it can be."""
        if self._artifacts is not None:
            kind, database = self._artifacts.kind, _shared(self._artifacts.make(stack), metadata)
        else:
            kind, database = self._default_artifacts(metadata, databackend, stack)
        assert kind.artifact_store is not None  # noqa: S101 - tells mypy
        return kind.artifact_store(database, metadata.identity)

    def _default_artifacts(
        self, metadata: MetadataStore, databackend: DataBackend, stack: AsyncExitStack
    ) -> tuple[Kind, Any]:
        for database in (_database(metadata), _database(databackend)):
            kind = kind_of(database)
            if kind is not None and kind.artifact_store is not None:
                return kind, database
        beside = locate(_ARTIFACTS, "artifact_store")
        return beside.kind, beside.make(stack)


def _located(uri: str | None, role: Role) -> Located | None:
    return None if uri is None else locate(uri, role)


def _database(store: Any) -> Any:
    return getattr(store, "database", None)


def _shared(database: Any, store: Any) -> Any:
    """Return the database that a store is on, if it is the same as this one: then both commit together."""
    other = _database(store)
    if other is not None and type(other) is type(database) and other.place == database.place:
        return other
    return database
