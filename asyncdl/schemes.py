"""What URIs name: one table, which `connect`, its messages and the documentation read.

A *kind* is what is behind a scheme, and what it can be: databackend, metadata store, artifact store, or several of them on one
database, which they then share.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

from asyncdl.artifact_store.base import ArtifactStore
from asyncdl.artifact_store.filesystem import FilesystemArtifactStore
from asyncdl.artifact_store.gridfs import GridFSArtifactStore
from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.ibis import IbisDataBackend
from asyncdl.databackend.mongo import MongoDataBackend
from asyncdl.databackend.sql import SQLDataBackend
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.duckdb import DuckDBDatabase
from asyncdl.drivers.frames import FramesDatabase
from asyncdl.drivers.frames_tables import SUFFIXES
from asyncdl.drivers.ibis import IbisDatabase
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_client import database_name
from asyncdl.drivers.mysql import MySQLDatabase
from asyncdl.drivers.postgresql import PostgreSQLDatabase
from asyncdl.drivers.sqlite import SQLiteDatabase
from asyncdl.errors import ConfigurationError, UnknownSchemeError
from asyncdl.metadata.base import MetadataStore
from asyncdl.metadata.mongo import MongoMetadataStore
from asyncdl.metadata.sql import SQLMetadataStore
from asyncdl.settings import redact

METADATA = "sqlite://.asyncdl/metadata.db"
"""Where metadata are by default, if they cannot be with the rows."""

Role = Literal["databackend", "metadata_store", "artifact_store"]

Maker = Callable[[AsyncExitStack], Any]
"""Makes the database (or folder) that a URI names, not open yet; what must go when it is closed goes onto the stack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a databackend can do beyond what each must; the documentation's table is made from it.

    Parameters
    ----------
    one_commit
        Whether rows and the events about them are one transaction, where the metadata store is in the same database.
    whole
        Whether a write that fails half-way leaves nothing behind.
    several
        Whether several processes can be at it at once.
    writes
        What writes it takes, and whether that has been tried against the real thing.
    notices
        When rows that other programs write are noticed.
    """

    one_commit: bool = False
    whole: bool = True
    several: bool = True
    writes: str = "all"
    notices: Literal["when outputs are compared with rows", "as they are written"] = (
        "when outputs are compared with rows"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is behind some schemes.

    Parameters
    ----------
    name, schemes, example
        How it is called, how its URIs begin, and one of them.
    extra
        The extra of asyncdl that installs what it needs, empty for none.
    features
        What its databackend can do.
    locate
        Reads a URI; raises `ConfigurationError` for one that cannot be used, before anything is opened.
    databackend, metadata_store, artifact_store
        What makes each on the database that `locate` led to; None: it cannot be one. An artifact store also takes the identity
        of the metadata store, under which its artifacts are kept.
    beside
        Returns, where it cannot be a metadata store itself, the URI of the one that a database has by default.
    """

    name: str
    schemes: tuple[str, ...]
    example: str
    locate: Callable[[str], Maker]
    databackend: Callable[[Any, Datatypes], DataBackend] | None = None
    metadata_store: Callable[[Any], MetadataStore] | None = None
    artifact_store: Callable[[Any, str], ArtifactStore] | None = None
    beside: Callable[[Any], str] = lambda database: METADATA
    extra: str = ""
    features: Features = Features()


@dataclass(frozen=True, slots=True)
class Located:
    """A URI that has been read: its kind, and what makes its database."""

    kind: Kind
    uri: str
    make: Maker


def locate(uri: str, role: Role) -> Located:
    """Read a URI.

    Raises
    ------
    ConfigurationError
        It is none.
    UnknownSchemeError
        Nothing of this role is behind its scheme; the message names what there is.
    """
    scheme, found, _ = uri.partition("://")
    what = role.replace("_", " ")
    served = [kind for kind in KINDS if getattr(kind, role) is not None]
    if not found:
        raise ConfigurationError(f"{redact(uri)!r} is no URI for a {what}; one looks like {served[0].example!r}")
    for kind in served:
        if scheme.lower() in kind.schemes:
            return Located(kind, uri, kind.locate(uri))
    names = ", ".join(f"{kind.schemes[0]}://" for kind in served)
    raise UnknownSchemeError(f"no {what} serves {scheme!r} (from {redact(uri)!r}); there are {names}")


def kind_of(database: Any) -> Kind | None:
    """Return the kind of a database, None for what no URI leads to."""
    return next((kind for owner, kind in _OF_DATABASE.items() if isinstance(database, owner)), None)


def _sqlite(uri: str) -> Maker:
    rest = uri.partition("://")[2]
    if "?" in rest or "#" in rest:
        raise ConfigurationError(f"{redact(uri)!r}: a sqlite URI is a path and takes no options")
    path = _file(rest)
    return lambda stack: SQLiteDatabase(path or _temporary(stack))


def _file(rest: str) -> Path | None:
    """Return the file that a URI means by what is behind its scheme, None for a database in memory.

    ``sqlite://name.db`` and ``sqlite:///name.db`` are relative, ``sqlite:////folder/name.db`` is absolute.
    """
    path = unquote(rest.removeprefix("/"))
    return None if path in {"", ":memory:"} else Path(path)


def _temporary(stack: AsyncExitStack) -> Path:
    """Return a path that goes away with the datalayer.

    ``sqlite://:memory:`` is served from a temporary file: in SQLite a database in memory belongs to one connection.
    """
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="asyncdl-", ignore_cleanup_errors=True))
    return Path(folder) / "memory.db"


def _postgresql(uri: str) -> Maker:
    database = PostgreSQLDatabase(uri)
    return lambda stack: database


def _mysql(uri: str) -> Maker:
    database = MySQLDatabase(uri)
    return lambda stack: database


def _duckdb(uri: str) -> Maker:
    rest, _, options = uri.partition("://")[2].partition("?")
    if "#" in uri:
        raise ConfigurationError(f"{redact(uri)!r}: a duckdb URI is a path, and perhaps options behind a question mark")
    path = _file(rest)
    return lambda stack: DuckDBDatabase(path, dict(parse_qsl(options, keep_blank_values=True)))


def _frames(uri: str) -> Maker:
    rest, _, options = uri.partition("://")[2].partition("?")
    given = dict(parse_qsl(options, keep_blank_values=True))
    suffix = f".{given.pop('format', 'parquet')}"
    if given or suffix not in SUFFIXES:
        raise ConfigurationError(
            f"{uri!r}: its one option is the format of new tables' files, ?format=parquet or ?format=csv"
        )
    folder = Path(unquote(rest) or ".")
    return lambda stack: FramesDatabase(folder, suffix)


def _mongodb(uri: str) -> Maker:
    database_name(uri)  # raises, at once, what would else be told when it is opened
    return lambda stack: MongoDatabase(uri)


def _folder(uri: str) -> Maker:
    path = unquote(uri.partition("://")[2])
    if not path:
        raise ConfigurationError(f"{uri!r} names no folder; one looks like 'filesystem://./data'")
    return lambda stack: Path(path)


_SQLITE = Kind(
    name="SQLite",
    schemes=("sqlite",),
    example="sqlite://app.db",
    locate=_sqlite,
    databackend=SQLDataBackend,
    metadata_store=SQLMetadataStore,
    features=Features(one_commit=True),
)
_POSTGRESQL = Kind(
    name="PostgreSQL",
    schemes=("postgresql", "postgres"),
    example="postgresql://user:password@localhost:5432/app",
    locate=_postgresql,
    databackend=SQLDataBackend,
    metadata_store=SQLMetadataStore,
    extra="postgres",
    features=Features(one_commit=True),
)
_MYSQL = Kind(
    name="MySQL, MariaDB",
    schemes=("mysql", "mariadb"),
    example="mysql://user:password@localhost:3306/app",
    locate=_mysql,
    databackend=SQLDataBackend,
    metadata_store=SQLMetadataStore,
    extra="mysql",
    features=Features(one_commit=True),
)
_DUCKDB = Kind(
    name="DuckDB",
    schemes=("duckdb",),
    example="duckdb://app.duckdb",
    locate=_duckdb,
    databackend=SQLDataBackend,
    beside=lambda database: "sqlite://:memory:" if database.path is None else METADATA,
    features=Features(several=False),
)
_FRAMES = Kind(
    name="a folder of dataframes",
    schemes=("frames", "pandas"),
    example="frames://./data",
    locate=_frames,
    databackend=SQLDataBackend,
    beside=lambda database: f"sqlite:///{database.folder / '.asyncdl' / 'metadata.db'}",
    features=Features(several=False),
)
_MONGODB = Kind(
    name="MongoDB",
    schemes=("mongodb", "mongodb+srv"),
    example="mongodb://localhost:27017/app",
    locate=_mongodb,
    databackend=MongoDataBackend,
    metadata_store=MongoMetadataStore,
    artifact_store=GridFSArtifactStore,
    features=Features(one_commit=True, notices="as they are written"),
)
_FILESYSTEM = Kind(
    name="file system",
    schemes=("filesystem", "file"),
    example="filesystem://./data",
    locate=_folder,
    artifact_store=lambda folder, identity: FilesystemArtifactStore(folder / identity),
)


def _ibis_kind(name: str, example: str, writes: str, extra: str = "") -> Kind:
    """Return the kind of a database that only ibis knows; its extra is called as its scheme is."""
    scheme = example.partition("://")[0]
    extra = extra or scheme

    def locate(uri: str) -> Maker:
        database = IbisDatabase(uri, extra)
        return lambda stack: database

    return Kind(
        name=name,
        schemes=(scheme,),
        example=example,
        locate=locate,
        databackend=IbisDataBackend,
        beside=lambda database: "sqlite://:memory:" if database.within else METADATA,
        extra=extra,
        features=Features(whole=False, several=False, writes=writes),
    )


_UNTRIED = "those that the database has; not tried here"
_IBIS = (
    _ibis_kind("ClickHouse", "clickhouse://user:password@localhost:8123/app", "all"),
    _ibis_kind("Polars", "polars://", "all; in memory, each rewrites its table"),
    _ibis_kind("Snowflake", "snowflake://user:password@account/database/schema", _UNTRIED),
    _ibis_kind("BigQuery", "bigquery://project/dataset", _UNTRIED),
    _ibis_kind("Trino", "trino://user@localhost:8080/catalog/schema", _UNTRIED),
    _ibis_kind("SQL Server", "mssql://user:password@localhost:1433/app", _UNTRIED),
    _ibis_kind("Oracle", "oracle://user:password@localhost:1521/app", _UNTRIED),
    _ibis_kind("Databricks", "databricks://?server_hostname=host&http_path=path&access_token=token", _UNTRIED),
    _ibis_kind("Athena", "athena://?s3_staging_dir=s3://bucket/folder&region_name=eu-west-1", _UNTRIED),
    _ibis_kind("Impala", "impala://localhost:21050/app", _UNTRIED),
    _ibis_kind("RisingWave", "risingwave://root@localhost:4566/dev", _UNTRIED),
    _ibis_kind("Materialize", "materialize://user@localhost:6875/materialize", _UNTRIED),
    _ibis_kind("SingleStore", "singlestoredb://user:password@localhost:3306/app", _UNTRIED),
    _ibis_kind("Exasol", "exasol://user:password@localhost:8563/schema", _UNTRIED),
    _ibis_kind("Druid", "druid://localhost:8082/druid/v2/sql", "none: it is read only; not tried here"),
    _ibis_kind("DataFusion", "datafusion://", "all; in memory, each rewrites its table; not tried here"),
    _ibis_kind("Spark", "pyspark://", _UNTRIED),
)

KINDS: tuple[Kind, ...] = (_SQLITE, _POSTGRESQL, _MYSQL, _DUCKDB, _FRAMES, _MONGODB, *_IBIS, _FILESYSTEM)

_OF_DATABASE = {
    SQLiteDatabase: _SQLITE,
    PostgreSQLDatabase: _POSTGRESQL,
    MySQLDatabase: _MYSQL,
    FramesDatabase: _FRAMES,  # before DuckDB's, which it is one of
    DuckDBDatabase: _DUCKDB,
    MongoDatabase: _MONGODB,
    IbisDatabase: _IBIS[0],  # they differ in nothing but names here
}
