"""The metadata store's tables on SQL databases.

Times are Unix times in floating point, JSON is text: what goes in comes out on every driver, without bind processing.
Texts compare by code point, whatever the language of the database: PostgreSQL's are of the collation "C".
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, MetaData, Table
from sqlalchemy import String as _String
from sqlalchemy import Text as _Text
from sqlalchemy.types import TypeEngine

SCHEMA_VERSION = 1

metadata = MetaData()

# An autoincrementing key on every dialect: SQLite only counts up without reuse on a plain INTEGER.
_Sequence = BigInteger().with_variant(Integer, "sqlite")


def String(length: int) -> TypeEngine[str]:  # noqa: N802 - as SQLAlchemy's type
    """Return the type of a text of this length, which PostgreSQL need not know."""
    return _String(length).with_variant(_Text(collation="C"), "postgresql")


# of any length, where MySQL's TEXT would hold 64 kB
Text = _Text().with_variant(_Text(2**30 - 1), "mysql", "mariadb")


schema = Table(
    "_asyncdl_schema",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("identity", String(32), nullable=False),
)

components = Table(
    "_asyncdl_components",
    metadata,
    Column("uuid", String(32), primary_key=True),
    Column("type_id", String(64), nullable=False),
    Column("identifier", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("data", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("state", Text, nullable=False),
    Index("_asyncdl_components_identity", "type_id", "identifier", "version", unique=True),
)

links = Table(
    "_asyncdl_links",
    metadata,
    Column("parent", String(32), ForeignKey("_asyncdl_components.uuid"), primary_key=True),
    Column("child", String(32), ForeignKey("_asyncdl_components.uuid"), primary_key=True, index=True),
)

artifacts = Table(
    "_asyncdl_artifacts",
    metadata,
    Column("component", String(32), ForeignKey("_asyncdl_components.uuid"), primary_key=True),
    Column("sha256", String(64), primary_key=True, index=True),
)

events = Table(
    "_asyncdl_events",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("type", String(64), nullable=False),
    Column("topic", String(128), nullable=False),
    Column("payload", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

jobs = Table(
    "_asyncdl_jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("target", String(32), nullable=False, index=True),
    Column("payload", Text, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("created", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("owner", String(64)),
    Column("lease", Double, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger),
    Column("stage", String(64), nullable=False),
    Column("error", Text),
    Column("started", Double),
    Column("finished", Double),
    Index("_asyncdl_jobs_queue", "state", "priority", "created"),
)

cursors = Table(
    "_asyncdl_cursors",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("seq", BigInteger, nullable=False),
)

intents = Table(
    "_asyncdl_intents",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("payload", Text, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("created", Double, nullable=False),
)
