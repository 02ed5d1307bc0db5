"""The languages that queries are written in: what holds of a query in any of them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from asyncdl.errors import QueryError
from asyncdl.query import recorder
from asyncdl.query.mongo import LANGUAGE, MongoQuery
from asyncdl.query.mongo_writes import MongoWrite
from asyncdl.query.recorder import Query
from asyncdl.query.writes import Write

AnyQuery = Query | MongoQuery
AnyWrite = Write | MongoWrite
QUERIES = (Query, MongoQuery)
WRITES = (Write, MongoWrite)


def table_in(language: Literal["ibis", "mongodb"], name: str) -> Any:
    """Return the query for all of a table, in a databackend's language; raises `InvalidIdentifierError`."""
    return MongoQuery(name) if language == "mongodb" else recorder.table(name)


def dump_query(query: AnyQuery) -> bytes:
    """Return a query as JSON; equal queries have equal bytes."""
    return query.dump() if isinstance(query, MongoQuery) else recorder.dump_query(query)


def load_query(text: str | bytes) -> AnyQuery:
    """Return the query that `dump_query` wrote. What it may do is checked: text from anywhere is safe to load.

    Raises
    ------
    QueryError
        This is no stored query, one of another version, or one that does what queries may not do.
    """
    start = text[:100] if isinstance(text, str) else text[:100].decode(errors="replace")
    if '"language"' not in start:
        return recorder.load_query(text)
    try:
        stored = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise QueryError(f"this is not the JSON of a query: {error}") from error
    language = stored.get("language") if isinstance(stored, dict) else None
    if language != LANGUAGE:
        raise QueryError(f"this query is in the language {language!r}, which this asyncdl does not know")
    return MongoQuery.load(stored)


def output_roots(query: AnyQuery) -> frozenset[tuple[str, str | None]]:
    """Return each listener whose outputs are read, with the table that the rows they are joined to come from."""
    return query.output_roots() if isinstance(query, MongoQuery) else recorder.output_roots(query)
