"""Documents from one database into another, as they are: by their ids, in pages, and byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from asyncdl import codec
from asyncdl.databackend.documents import StoredDocument
from asyncdl.databackend.mongo_outputs import KEY, hashed, parts
from asyncdl.databackend.mongo_scan import behind
from asyncdl.databackend.mongo_values import MongoValues
from asyncdl.databackend.tables import Row, as_key
from asyncdl.drivers.mongo_calls import MongoTransaction
from asyncdl.drivers.mongo_documents import MongoDocuments, new_id
from asyncdl.errors import ConstraintError, DatatypeError

_PAGE = 8 * 2**20
"""Bytes of a page's documents, unless a few have more: what a transaction can write well."""


class MongoMover:
    """Reads and writes whole collections."""

    def __init__(self, documents: MongoDocuments, values: MongoValues) -> None:
        self._documents = documents
        self._values = values

    async def rows(
        self, name: str, columns: Mapping[str, str], after: Row | None, size: int
    ) -> AsyncIterator[list[Mapping[str, Any]]]:
        """Yield the documents, in the order of their ids."""
        more = True
        while more:
            where = {} if after is None else behind((KEY,), after)
            found, more = await self._documents.raw_page(name, where, size, _PAGE)
            if found:
                self._values.decode(columns, [document for document, _ in found])
                after = (found[-1][0][KEY],)
                yield [StoredDocument(document, raw) for document, raw in found]

    async def encoded(
        self, name: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Any, Any]]:
        """Return documents with their ids as they are stored; raises `DatatypeError` for what cannot be."""
        return await asyncio.to_thread(lambda: [self._encoded(name, columns, each) for each in rows])

    def _encoded(self, name: str, columns: Mapping[str, str], row: Mapping[str, Any]) -> tuple[Any, Any]:
        if isinstance(row, StoredDocument):
            return row[KEY], row.raw
        document = dict(row) if KEY in row else {KEY: new_id(), **row}
        what = f"{self._documents.database.url} cannot hold the document {document[KEY]!r:.100} of {name!r}"
        for column, value in document.items():
            if (reason := _rounded(column, value)) is not None:
                raise DatatypeError(f"{what}: its {column!r} is a datetime {reason}: {value!r}")
        stored = dict(document)
        for column, value in document.items():
            try:
                stored |= self._values.encode_document(columns, {column: value}, what)
                self._documents.encoded({column: stored[column]})
            except DatatypeError as error:
                kind = codec.kind_of(value)
                raise DatatypeError(f"{what}: its {column!r}, of type {kind}: {error}") from error
        try:
            return document[KEY], self._documents.encoded(stored)
        except ConstraintError as error:
            raise ConstraintError(f"{what}: {error}") from error

    async def put(self, name: str, encoded: Sequence[tuple[Any, Any]], tx: MongoTransaction | None) -> None:
        """Write encoded documents, in the place of those that have their ids."""
        there: set[Any] = set()
        for some in parts([key for key, _ in encoded]):
            found = await self._documents.find(name, {KEY: {"$in": some}}, {KEY: 1}, tx=tx)
            there.update(hashed(as_key(each[KEY])) for each in found)
        new = [raw for key, raw in encoded if hashed(as_key(key)) not in there]
        old = [raw for key, raw in encoded if hashed(as_key(key)) in there]
        await self._documents.put(name, new, old, tx)


def _rounded(column: str, value: Any) -> str | None:
    """Return what MongoDB would leave out of a datetime, None if nothing."""
    if not isinstance(value, datetime):
        return None
    if value.microsecond % 1000:
        return "with microseconds, and MongoDB's have milliseconds"
    if column == KEY and value.tzinfo is not None:
        return "with a time zone, which MongoDB's ids have not"
    return None
