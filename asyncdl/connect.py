"""Connecting: URIs become backends, and backends a datalayer. The one place where things are put together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from asyncdl import progress
from asyncdl.artifact_store.base import ArtifactStore
from asyncdl.artifact_store.filesystem import FilesystemArtifactStore
from asyncdl.artifact_store.gridfs import GridFSArtifactStore
from asyncdl.compute.base import ComputeBackend
from asyncdl.compute.local import LocalComputeBackend
from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.mongo import MongoDataBackend
from asyncdl.databackend.sql import SQLDataBackend
from asyncdl.datalayer import Datalayer
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_client import database_name
from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.drivers.sql import SQLDatabase
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import ClosedError, ConfigurationError, UnknownSchemeError
from asyncdl.jobs.runner import RunnerOptions
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.mongo import MongoMetadataStore
from asyncdl.metadata.sql import SQLMetadataStore
from asyncdl.settings import Settings, defaults, redact

_ARTIFACTS = "filesystem://.asyncdl/artifacts/"
_MONGODB = {"mongodb", "mongodb+srv"}


def connect(
    databackend: str | DataBackend | None = None,
    *,
    metadata_store: str | MetadataStore | None = None,
    artifact_store: str | ArtifactStore | None = None,
    compute: str | ComputeBackend | None = None,
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
        store is on MongoDB, else ``filesystem://.asyncdl/artifacts/``. Within it each metadata store has a folder of its own.
    compute
        Where models run. Default: ``"local"``.
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
        "compute": _ready(compute, ComputeBackend),
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
                artifact_store = plan.artifact_store(metadata)
                await artifact_store.open()
                stack.push_async_callback(artifact_store.aclose)
            db = Datalayer(
                databackend,
                artifact_store,
                metadata,
                self._ready["compute"] or LocalComputeBackend(settings.threads, settings.processes),
                datatypes=databackend.datatypes,
                allow_pickle=settings.pickle,
                max_attempts=settings.job_max_attempts,
                runner=RunnerOptions(settings.job_concurrency, settings.job_lease, settings.job_backoff),
                reconcile_every=settings.reconcile_every,
                show=progress.show if progress.wanted(settings.progress) else None,
            )
            await db.open()
            db.closes(stack)
        self._opened = db
        return db

    def __repr__(self) -> str:
        return f"<asyncdl.connect to {redact(self._settings.databackend)}, not open yet>"


class _Plan:
    """Which stores the settings ask for: read from the URIs before anything is opened."""

    def __init__(self, settings: Settings, ready: Mapping[str, Any]) -> None:
        self._settings = settings
        self._databackend: DataBackend | None = ready["databackend"]
        self._metadata: MetadataStore | None = ready["metadata_store"]
        self._data_uri = None if self._databackend is not None else _mongodb_uri(settings.databackend)
        given = self._databackend is not None or self._data_uri is not None
        self._data = None if given else _database(settings.databackend, "databackend")
        self._own_metadata: _MakeDatabase | None = None
        self._metadata_uri: str | None = None
        if self._metadata is None and settings.metadata_store is not None:
            self._metadata_uri = _mongodb_uri(settings.metadata_store)
            if self._metadata_uri is None:
                self._own_metadata = _database(settings.metadata_store, "metadata store")
        elif self._metadata is None:
            self._metadata_uri = self._data_uri
        self._artifacts_uri = _mongodb_uri(settings.artifact_store)
        self._artifacts = None if self._artifacts_uri is not None else _folder(settings.artifact_store or _ARTIFACTS)
        self._artifacts_follow = settings.artifact_store is None
        if ready["compute"] is None and settings.compute not in {"local", "local://"}:
            raise UnknownSchemeError(_unknown(settings.compute, "compute backend", "local"))

    def stores(self, stack: AsyncExitStack) -> tuple[DataBackend, MetadataStore]:
        """Return databackend and metadata store, still to be opened; on one database object where both are one database."""
        databackend, metadata = self._databackend, self._metadata
        if databackend is None and self._data_uri is not None:
            found = metadata.database if isinstance(metadata, MongoMetadataStore) else MongoDatabase(self._data_uri)
            same = found if found.url == redact(self._data_uri) else MongoDatabase(self._data_uri)
            databackend = MongoDataBackend(same, Datatypes(allow_pickle=self._settings.pickle))
        if databackend is None:
            assert self._data is not None  # noqa: S101 - one of the two is given
            database = self._data(stack)
            if isinstance(metadata, SQLMetadataStore) and _same(metadata.database, database):
                database = metadata.database
            databackend = SQLDataBackend(database, Datatypes(allow_pickle=self._settings.pickle))
        if metadata is None and self._metadata_uri is not None:
            shared = isinstance(databackend, MongoDataBackend) and self._metadata_uri == self._data_uri
            metadata = MongoMetadataStore(databackend.database if shared else MongoDatabase(self._metadata_uri))  # type: ignore[attr-defined]
        elif metadata is None:
            metadata = SQLMetadataStore(self._metadata_database(databackend, stack))
        return databackend, metadata

    def artifact_store(self, metadata: MetadataStore) -> ArtifactStore:
        """Return the artifact store, still to be opened; on one connection with the metadata store where it may."""
        shared = metadata.database if isinstance(metadata, MongoMetadataStore) else None
        if self._artifacts_uri is not None:
            same = shared is not None and self._artifacts_uri == self._metadata_uri
            database = shared if shared is not None and same else MongoDatabase(self._artifacts_uri)
            return GridFSArtifactStore(database, metadata.identity)
        if shared is not None and self._artifacts_follow:
            return GridFSArtifactStore(shared, metadata.identity)
        assert self._artifacts is not None, "it is a folder or a MongoDB"  # noqa: S101 - tells mypy
        return FilesystemArtifactStore(self._artifacts / metadata.identity)

    def _metadata_database(self, databackend: DataBackend, stack: AsyncExitStack) -> SQLDatabase:
        shared = getattr(databackend, "database", None)
        if self._own_metadata is None:
            return shared if isinstance(shared, SQLDatabase) else SQLiteDatabase(".asyncdl/metadata.db")
        database = self._own_metadata(stack)
        return shared if isinstance(shared, SQLDatabase) and _same(shared, database) else database


def _same(one: SQLDatabase, other: SQLDatabase) -> bool:
    if isinstance(one, PostgreSQLDatabase) and isinstance(other, PostgreSQLDatabase):
        return one.place == other.place
    paths = [each.path.absolute() for each in (one, other) if isinstance(each, SQLiteDatabase)]
    return len(paths) == 2 and paths[0].resolve() == paths[1].resolve()


def _temporary(stack: AsyncExitStack) -> Path:
    """Return a path that goes away with the datalayer.

    ``sqlite://:memory:`` is served from a temporary file: in SQLite a database in memory belongs to one connection.
    """
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="asyncdl-", ignore_cleanup_errors=True))
    return Path(folder) / "memory.db"


def _split(uri: str, what: str) -> tuple[str, str]:
    scheme, found, rest = uri.partition("://")
    if not found:
        raise ConfigurationError(f"{redact(uri)!r} is no URI for a {what}; one looks like 'sqlite://app.db'")
    return scheme.lower(), rest


def _unknown(uri: str, what: str, served: str) -> str:
    scheme = uri.partition("://")[0]
    return f"no {what} serves {scheme!r} (from {redact(uri)!r}); there is {served}"


_MakeDatabase = Callable[[AsyncExitStack], SQLDatabase]


def _database(uri: str, what: str) -> _MakeDatabase:
    """Return what makes the SQL database that a URI means; raises `ConfigurationError` for one that means none."""
    scheme, rest = _split(uri, what)
    if scheme == "sqlite":
        path = _sqlite_path(uri, rest)
        return lambda stack: SQLiteDatabase(path or _temporary(stack))
    if scheme in {"postgresql", "postgres"}:
        database = PostgreSQLDatabase(uri)
        return lambda stack: database
    served = "sqlite:// and postgresql://" if what == "databackend" else "sqlite://, postgresql:// and mongodb://"
    raise UnknownSchemeError(_unknown(uri, what, served))


def _mongodb_uri(uri: str | None) -> str | None:
    """Return a URI if it is MongoDB's, untouched: what it says is the driver's to read."""
    if uri is None or uri.partition("://")[0].lower() not in _MONGODB:
        return None
    database_name(uri)  # raises, at once, what would else be told when it is opened
    return uri


def _sqlite_path(uri: str, rest: str) -> Path | None:
    """Return the file that a URI means, None for a database in memory.

    ``sqlite://name.db`` and ``sqlite:///name.db`` are relative, ``sqlite:////folder/name.db`` is absolute.
    """
    if "?" in rest or "#" in rest:
        raise ConfigurationError(f"{redact(uri)!r}: a sqlite URI is a path and takes no options")
    path = unquote(rest.removeprefix("/"))
    if path in {"", ":memory:"}:
        return None
    return Path(path)


def _folder(uri: str) -> Path:
    scheme, rest = _split(uri, "artifact store")
    if scheme not in {"filesystem", "file"}:
        raise UnknownSchemeError(_unknown(uri, "artifact store", "filesystem:// and mongodb://"))
    if not rest:
        raise ConfigurationError(f"{uri!r} names no folder; one looks like 'filesystem://./data'")
    return Path(unquote(rest))
