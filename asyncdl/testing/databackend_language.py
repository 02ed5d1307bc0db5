"""How a databackend's language says what the conformance suites ask of it: the suites themselves are written once.

The suites call the primary key ``id``; a language that has another name for it puts that in its place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from asyncdl.databackend.requests import ReadQuery, WriteRequest
from asyncdl.databackend.tables import MISSING_KEY, OutputTable
from asyncdl.query import MongoQuery, table

Condition = tuple[str, str, Any]
"""Which rows: a column, ``==``, ``>`` or ``<``, and a value."""


class Language(ABC):
    """What is asked of a table, in one language."""

    key = MISSING_KEY
    """What the primary key of a table is called that is made by its first row."""

    generated: type = str
    """What the ids are that rows get which have none."""

    @abstractmethod
    def table(self, name: str) -> ReadQuery:
        """Return the query for a whole table."""

    @abstractmethod
    def where(self, name: str, condition: Condition) -> ReadQuery:
        """Return the query for the rows that fulfil a condition."""

    @abstractmethod
    def pick(self, name: str, *columns: str) -> ReadQuery:
        """Return the query for some columns."""

    @abstractmethod
    def ordered(self, name: str, column: str, *, descending: bool, limit: int) -> ReadQuery:
        """Return the query for the first rows by a column."""

    @abstractmethod
    def keys(self, name: str) -> ReadQuery:
        """Return the query for what identifies the rows."""

    @abstractmethod
    def joined(self, name: str, *identifiers: str) -> ReadQuery:
        """Return the query for the rows with the outputs of listeners."""

    @abstractmethod
    def insert(self, name: str, rows: Sequence[Any]) -> Any:
        """Return what a databackend is asked to do to insert rows."""

    @abstractmethod
    def upsert(self, name: str, rows: Sequence[Any]) -> Any:
        """Return what it is asked to do to insert rows, or to change those columns that they name."""

    @abstractmethod
    def update(self, name: str, changes: Mapping[str, Any], where: Condition | None = None) -> Any:
        """Return what it is asked to do to set columns, of all rows or of some."""

    @abstractmethod
    def delete(self, name: str, where: Condition | None = None) -> Any:
        """Return what it is asked to do to delete all rows or some."""

    def rows(self, names: Sequence[str], rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Return what `DataBackend.read` has yielded as rows of the suites'."""
        return [dict(zip(names, row, strict=True)) for row in rows]

    def outputs(self, output: OutputTable) -> OutputTable:
        """Return where outputs are, for source rows with the key of this language."""
        return output


class IbisLanguage(Language):
    """The language of every database that ibis queries."""

    def table(self, name: str) -> ReadQuery:
        """Return the query for a whole table."""
        return table(name)

    def where(self, name: str, condition: Condition) -> ReadQuery:
        """Return the query for the rows that fulfil a condition."""
        t, (column, operator, value) = table(name), condition
        return t.filter({"==": t[column] == value, ">": t[column] > value, "<": t[column] < value}[operator])

    def pick(self, name: str, *columns: str) -> ReadQuery:
        """Return the query for some columns."""
        return table(name).select(*columns)

    def ordered(self, name: str, column: str, *, descending: bool, limit: int) -> ReadQuery:
        """Return the query for the first rows by a column."""
        t = table(name)
        return t.order_by(t[column].desc() if descending else t[column]).limit(limit)

    def keys(self, name: str) -> ReadQuery:
        """Return the query for what identifies the rows."""
        return table(name).ids()

    def joined(self, name: str, *identifiers: str) -> ReadQuery:
        """Return the query for the rows with the outputs of listeners."""
        return table(name).outputs(*identifiers)

    def insert(self, name: str, rows: Sequence[Any]) -> Any:
        """Return the insertion of rows."""
        return WriteRequest("insert", name, rows=rows)

    def upsert(self, name: str, rows: Sequence[Any]) -> Any:
        """Return the insertion of rows, or the change of what they name."""
        return WriteRequest("upsert", name, rows=rows)

    def update(self, name: str, changes: Mapping[str, Any], where: Condition | None = None) -> Any:
        """Return the update of rows."""
        return WriteRequest("update", name, changes=changes, where=where and self.where(name, where))

    def delete(self, name: str, where: Condition | None = None) -> Any:
        """Return the deletion of rows."""
        return WriteRequest("delete", name, where=where and self.where(name, where))


class MongoLanguage(Language):
    """MongoDB's own language; the key is ``_id``."""

    key = "_id"

    def __init__(self) -> None:
        from bson import ObjectId  # noqa: PLC0415 - the driver is imported when it is used

        self.generated = ObjectId

    def _name(self, column: str) -> str:
        return self.key if column == MISSING_KEY else column

    def _document(self, row: Any) -> Any:
        return {self._name(name): value for name, value in row.items()} if isinstance(row, Mapping) else row

    def _filter(self, condition: Condition | None) -> dict[str, Any]:
        if condition is None:
            return {}
        column, operator, value = condition
        return {self._name(column): {{"==": "$eq", ">": "$gt", "<": "$lt"}[operator]: value}}

    def table(self, name: str) -> ReadQuery:
        """Return the query for a whole collection."""
        return MongoQuery(name)

    def where(self, name: str, condition: Condition) -> ReadQuery:
        """Return the query for the documents that fulfil a condition."""
        return MongoQuery(name).find(self._filter(condition))

    def pick(self, name: str, *columns: str) -> ReadQuery:
        """Return the query for some keys."""
        fields = dict.fromkeys(map(self._name, columns), 1)
        return MongoQuery(name).find({}, fields if self.key in fields else {**fields, self.key: 0})

    def ordered(self, name: str, column: str, *, descending: bool, limit: int) -> ReadQuery:
        """Return the query for the first documents by a key."""
        return MongoQuery(name).find().sort(self._name(column), -1 if descending else 1).limit(limit)

    def keys(self, name: str) -> ReadQuery:
        """Return the query for what identifies the documents."""
        return MongoQuery(name).ids()

    def joined(self, name: str, *identifiers: str) -> ReadQuery:
        """Return the query for the documents with the outputs of listeners."""
        return MongoQuery(name).outputs(*identifiers)

    def insert(self, name: str, rows: Sequence[Any]) -> Any:
        """Return the insertion of documents."""
        return MongoQuery(name).insert_many([self._document(each) for each in rows]).request()

    def upsert(self, name: str, rows: Sequence[Any]) -> Any:
        """Return the update of documents by their ids, those that are not there being inserted."""
        docs, writes = MongoQuery(name), []
        for row in rows:
            changes = self._document(row)
            where = {self.key: changes.pop(self.key)}
            writes.append(docs.update_one(where, {"$set": changes}, upsert=True))
        return docs.bulk_write(writes).request()

    def update(self, name: str, changes: Mapping[str, Any], where: Condition | None = None) -> Any:
        """Return the update of documents."""
        return MongoQuery(name).update_many(self._filter(where), {"$set": self._document(changes)}).request()

    def delete(self, name: str, where: Condition | None = None) -> Any:
        """Return the deletion of documents."""
        return MongoQuery(name).delete_many(self._filter(where)).request()

    def rows(self, names: Sequence[str], rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Return documents as rows of the suites'."""
        if names:
            return super().rows(names, rows)
        return [{MISSING_KEY if name == self.key else name: value for name, value in each.items()} for each in rows]

    def outputs(self, output: OutputTable) -> OutputTable:
        """Return where the outputs of documents are."""
        if MISSING_KEY not in output.key:
            return output
        key = {self._name(name): "any" if name == MISSING_KEY else each for name, each in output.key.items()}
        return replace(output, root=(self.key,), key=key)
