"""Writes of MongoDB: the methods of its driver, recorded as data."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from asyncdl.databackend.documents import DocumentWrite, Operation
from asyncdl.errors import InvalidRowError, QueryError

_BULK = {
    "InsertOne": "insert_one",
    "UpdateOne": "update_one",
    "UpdateMany": "update_many",
    "ReplaceOne": "replace_one",
    "DeleteOne": "delete_one",
    "DeleteMany": "delete_many",
}
_BULK_OPTIONS = {"_upsert": "upsert", "_collation": "collation", "_array_filters": "array_filters", "_hint": "hint"}


class MongoWrite:
    """Writes on a collection: ``await db.execute(write)``. Immutable; what it was given is copied."""

    __slots__ = ("_operations", "_table")

    def __init__(self, table: str, operations: Sequence[Operation]) -> None:
        self._table = table
        self._operations = tuple(operations)

    @property
    def table(self) -> str:
        """Where."""
        return self._table

    def tables(self) -> frozenset[str]:
        """Return the collections that it writes."""
        return frozenset([self._table])

    def listeners(self) -> frozenset[str]:
        """Return the listeners whose outputs it reads: none."""
        return frozenset()

    def request(self) -> DocumentWrite:
        """Return what a databackend is asked to do."""
        return DocumentWrite(self._table, self._operations)

    def __repr__(self) -> str:
        if len(self._operations) != 1:
            return f"{self._table}.bulk_write(<{len(self._operations)} writes>)"
        (each,) = self._operations
        given = [reprlib.repr(value) for value in (each.where, each.what) if value is not None]
        given += [f"{name}={value!r}" for name, value in each.options.items()]
        return f"{self._table}.{each.method}({', '.join(given)})"


class MongoWrites:
    """The writing methods of a collection."""

    __slots__ = ()

    _collection: str
    _steps: tuple[Any, ...]

    def _write(self, *operations: Operation) -> MongoWrite:
        if self._steps:
            raise QueryError(f"{operations[0].method}() is asked of a collection itself, not of {self!r}")
        return MongoWrite(self._collection, operations)

    def insert_one(self, document: Mapping[str, Any]) -> MongoWrite:
        """Return the insertion of a document; without an ``_id`` it gets an ObjectId."""
        return self._write(Operation("insert_one", what=[_document(document, 0)]))

    def insert_many(self, documents: Any) -> MongoWrite:
        """Return the insertion of documents, all or (where the server has transactions) none."""
        if isinstance(documents, (str, bytes, Mapping)):
            raise InvalidRowError("insert_many() takes a list of documents")
        found = [_document(each, at) for at, each in enumerate(documents)]
        if not found:
            raise InvalidRowError("insert_many() takes at least one document")
        return self._write(Operation("insert_many", what=found))

    def update_one(self, filter: Any, update: Any, upsert: bool = False, **options: Any) -> MongoWrite:
        """Return the update of the first document that matches; with ``upsert`` one is inserted where none does."""
        return self._write(_update("update_one", filter, update, {"upsert": upsert, **options}))

    def update_many(self, filter: Any, update: Any, upsert: bool = False, **options: Any) -> MongoWrite:
        """Return the update of every document that matches."""
        return self._write(_update("update_many", filter, update, {"upsert": upsert, **options}))

    def replace_one(self, filter: Any, replacement: Any, upsert: bool = False, **options: Any) -> MongoWrite:
        """Return the replacement of the first document that matches; its ``_id`` stays."""
        return self._write(_replace("replace_one", filter, replacement, {"upsert": upsert, **options}))

    def delete_one(self, filter: Any, **options: Any) -> MongoWrite:
        """Return the deletion of the first document that matches."""
        return self._write(Operation("delete_one", _filter("delete_one", filter), options=dict(options)))

    def delete_many(self, filter: Any, **options: Any) -> MongoWrite:
        """Return the deletion of every document that matches."""
        return self._write(Operation("delete_many", _filter("delete_many", filter), options=dict(options)))

    def find_one_and_update(self, filter: Any, update: Any, **options: Any) -> MongoWrite:
        """Return the update of the first document that matches; executed, it also gives the document, before or after."""
        return self._write(_update("find_one_and_update", filter, update, options))

    def find_one_and_replace(self, filter: Any, replacement: Any, **options: Any) -> MongoWrite:
        """Return the replacement of the first document that matches; executed, it also gives the document."""
        return self._write(_replace("find_one_and_replace", filter, replacement, options))

    def find_one_and_delete(self, filter: Any, **options: Any) -> MongoWrite:
        """Return the deletion of the first document that matches; executed, it also gives the document."""
        return self._write(
            Operation("find_one_and_delete", _filter("find_one_and_delete", filter), options=dict(options))
        )

    def bulk_write(self, requests: Sequence[Any]) -> MongoWrite:
        """Return several writes, made in order: pymongo's ``InsertOne``, ``UpdateOne``, ..., or writes of this collection."""
        operations: list[Operation] = []
        for at, each in enumerate(requests):
            if isinstance(each, MongoWrite) and each.table == self._collection:
                operations += each.request().operations
            elif type(each).__name__ in _BULK:
                operations.append(_of_driver(each, at))
            else:
                raise QueryError(
                    f"request {at} of bulk_write() is {each!r:.100}, which is no write of {self._collection!r}"
                )
        if not operations:
            raise QueryError("bulk_write() takes at least one request")
        return self._write(*operations)


def _of_driver(request: Any, at: int) -> Operation:
    method: Any = _BULK[type(request).__name__]
    options = {name: getattr(request, attribute, None) for attribute, name in _BULK_OPTIONS.items()}
    options = {name: value for name, value in options.items() if value is not None}
    doc = getattr(request, "_doc", None)
    if method == "insert_one":
        return Operation(method, what=[_document(doc, at)])
    where = getattr(request, "_filter", None)
    if method.startswith("update"):
        return _update(method, where, doc, options)
    if method == "replace_one":
        return _replace(method, where, doc, options)
    return Operation(method, _filter(method, where), options=options)


def _document(document: Any, at: int) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        raise InvalidRowError(f"document {at} is a {type(document).__name__}; a document is a mapping")
    for name in document:
        if not isinstance(name, str):
            raise InvalidRowError(f"document {at} has a key {name!r:.100}; keys are texts")
    return dict(document)


def _filter(method: str, where: Any) -> dict[str, Any]:
    if not isinstance(where, Mapping):
        raise QueryError(
            f"{method}() takes a filter, such as {{'year': 2000}}, not {where!r:.100}; {{}} means every document"
        )
    return copy.deepcopy(dict(where))


def _update(method: Any, where: Any, update: Any, options: Mapping[str, Any]) -> Operation:
    if isinstance(update, Mapping):
        if not update or not all(isinstance(name, str) and name.startswith("$") for name in update):
            raise QueryError(
                f"{method}() takes operators, such as {{'$set': {{'year': 2000}}}}; to replace, replace_one()"
            )
        for operator, changes in update.items():
            if isinstance(changes, Mapping) and operator != "$setOnInsert" and "_id" in changes:
                raise QueryError("_id is the primary key, which an update cannot change; delete and insert")
        update = dict(update)
    elif not isinstance(update, (list, tuple)) or not all(isinstance(each, Mapping) for each in update):
        raise QueryError(f"{method}() takes operators or a pipeline, not {update!r:.100}")
    return Operation(method, _filter(method, where), copy.deepcopy(update), _options(options))


def _replace(method: Any, where: Any, replacement: Any, options: Mapping[str, Any]) -> Operation:
    found = _document(replacement, 0)
    if any(name.startswith("$") for name in found):
        raise QueryError(f"{method}() takes a document; for operators such as $set there is update_one()")
    return Operation(method, _filter(method, where), found, _options(options))


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if not (name == "upsert" and not value)}
