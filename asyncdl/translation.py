"""Rows of tables as documents, and documents as rows of tables: what moving from one language to the other changes of them.

Values stay what they are. A table's key becomes ``_id``: of several columns, a document of them. ``_id`` becomes the key of
the table that is there; where none is, a column ``id``, or ``_id`` where the documents have an ``id`` of their own. An ObjectId
by itself becomes the text of its 24 digits, one inside a list or a document stays one, and what a document lacks is null.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncdl import codec
from asyncdl.databackend.tables import ANY, MISSING_KEY, Row, TableSchema
from asyncdl.datatypes import infer
from asyncdl.errors import ConfigurationError, DatatypeError, InvalidIdentifierError
from asyncdl.names import check_column

KEY = "_id"
_PLAIN = {type(None): None, bool: "boolean", int: "int64", float: "float64", str: "string", bytes: "binary"}

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Translation:
    """How one table is moved: what it is in the target, and how its rows are said there."""

    schema: TableSchema
    rows: Callable[[Rows], Rows]


def as_it_is(schema: TableSchema) -> Translation:
    """Return the translation between databases of one language."""
    return Translation(schema, lambda rows: rows)


# tables as documents


def to_documents(schema: TableSchema) -> Translation:
    """Return how a table becomes a collection; raises `ConfigurationError` where a column is called as documents' key."""
    key = schema.primary_key
    rest = {name: datatype for name, datatype in schema.columns.items() if name not in key}
    if KEY in rest:
        raise ConfigurationError(
            f"the table {schema.name!r} has a column '_id' that is not its key, and a document's is"
        )

    def rows(some: Rows) -> Rows:
        if not key:
            return some
        return [{KEY: _joined(key, row), **{name: row[name] for name in rest}} for row in some]

    return Translation(TableSchema(schema.name, {KEY: ANY, **rest}, (KEY,), open=True), rows)


def _joined(key: Sequence[str], row: Mapping[str, Any]) -> Any:
    return row[key[0]] if len(key) == 1 else {name: row[name] for name in key}


# documents as tables


@dataclass
class _Column:
    """What a column is, so far: its datatype, and the document that said so."""

    datatype: str
    of: Any


@dataclass
class _Columns:
    """The columns that documents come to."""

    name: str
    declared: Mapping[str, str]
    found: dict[str, _Column] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)

    def add(self, document: Mapping[str, Any]) -> None:
        """Take a document into account; raises `DatatypeError` where it does not fit those before it."""
        key = document[KEY]
        for name, value in document.items():
            if name not in self.names:
                self._check(name, key)
                self.names[name] = None
            datatype = self.declared.get(name, ANY)
            if datatype == ANY:
                kind = type(value)
                datatype = _PLAIN[kind] if kind in _PLAIN else self._inferred(name, value, key)  # type: ignore[assignment]
            if datatype is not None:
                self._take(name, datatype, value, key)

    def _check(self, name: str, key: Any) -> None:
        try:
            check_column(name)
        except InvalidIdentifierError as error:
            raise InvalidIdentifierError(f"{self._what(key)}: {error}") from error

    def _inferred(self, name: str, value: Any, key: Any) -> str | None:
        if name == KEY and isinstance(value, dict):
            return "json"
        value = _value(value)
        if type(value).__module__.partition(".")[0] == "bson":
            raise DatatypeError(
                f"{self._what(key)}: its {name!r} is of type {codec.kind_of(value)}, which only MongoDB has"
            )
        try:
            found = infer([value])
        except DatatypeError as error:
            raise DatatypeError(f"{self._what(key)}: its {name!r}, of type {codec.kind_of(value)}: {error}") from error
        if found == "pickle":
            raise DatatypeError(
                f"{self._what(key)}: its {name!r} is of type {codec.kind_of(value)}, which is no column's"
            )
        return found

    def _take(self, name: str, datatype: str, value: Any, key: Any) -> None:
        before = self.found.get(name)
        if before is None:
            self.found[name] = _Column(datatype, key)
        elif before.datatype != datatype:
            both = _both(before.datatype, datatype)
            if both is None:
                raise DatatypeError(
                    f"{self._what(key)}: its {name!r}, of type {codec.kind_of(value)}, is {datatype}, and that of "
                    f"{before.of!r:.100} {before.datatype}: a column holds values of one datatype"
                )
            before.datatype = both

    def _what(self, key: Any) -> str:
        return f"no table can hold the document {key!r:.100} of {self.name!r}"


def _both(one: str, other: str) -> str | None:
    """Return the datatype that holds what two hold."""
    kinds = {one.partition("(")[0], other.partition("(")[0]}
    if kinds == {"int64", "float64"}:
        return "float64"
    return "ndarray" if kinds <= {"vector", "ndarray"} else None


def _value(value: Any) -> Any:
    return str(value) if type(value).__name__ == "ObjectId" else value


async def to_table(
    schema: TableSchema, documents: AsyncIterator[Sequence[Mapping[str, Any]]], there: TableSchema | None
) -> Translation:
    """Return how a collection becomes a table: all of its documents are looked at.

    Parameters
    ----------
    schema
        What is declared of the collection.
    there
        The table that the target has already.

    Raises
    ------
    DatatypeError, InvalidIdentifierError, ConfigurationError
        Something cannot be in a table, or not in the one that is there.
    """
    columns = _Columns(schema.name, {name: each for name, each in schema.columns.items() if name != KEY})
    async for page in documents:
        for each in page:
            columns.add(each)
    found = {name: each.datatype for name, each in columns.found.items()}
    found = {**{name: each for name, each in columns.declared.items() if each != ANY}, **found}
    identified = found.pop(KEY, "string")
    rest = {name: found.get(name, "string") for name in dict.fromkeys([*columns.names, *found]) if name != KEY}
    if there is None:
        if identified == "json":
            raise ConfigurationError(
                f"the documents of {schema.name!r} have documents as their ids: there must be a table in the target whose "
                "key they are"
            )
        name = KEY if MISSING_KEY in rest else MISSING_KEY
        there = TableSchema(schema.name, {name: identified, **rest}, (name,))
    key = there.primary_key
    unknown = [name for name in rest if name not in there.columns or name in key]
    if unknown or not key:
        lacks = f"no column {unknown[0]!r} beside its key" if unknown else "no primary key"
        raise ConfigurationError(f"the target holds a table {schema.name!r} already, with {lacks}")

    def rows(some: Rows) -> Rows:
        return [
            {**_split(schema.name, key, each[KEY]), **{name: _value(each.get(name)) for name in rest}} for each in some
        ]

    return Translation(there, rows)


def _split(name: str, key: Row, value: Any) -> dict[str, Any]:
    if len(key) == 1:
        return {key[0]: _value(value)}
    if not isinstance(value, Mapping) or set(value) != set(key):
        kind = codec.kind_of(value)
        raise DatatypeError(
            f"the id {value!r:.100} of {name!r}, of type {kind}, does not have the columns {', '.join(key)}"
        )
    return {each: _value(value[each]) for each in key}
