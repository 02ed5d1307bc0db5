"""A catalog over a SQLite database in memory, and the rows of queries in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ibis

from asyncdl.databackend.tables import OutputTable
from asyncdl.errors import ComponentNotFoundError, TableNotFoundError
from asyncdl.query import Query

DOCS = [(1, 1999, "one"), (2, 2001, "two"), (3, 2002, "three"), (4, 2003, None)]
TABLES: dict[str, dict[str, str]] = {
    "docs": {"id": "int64", "year": "int64", "text": "string"},
    "notes": {"note_id": "int64", "id": "int64", "note": "string"},
    "pairs": {"a": "int64", "b": "int64", "v": "string"},
    "keyless": {"x": "int64"},
    "rich": {
        "id": "int64",
        "tags": "array<string>",
        "nested": "array<array<int64>>",
        "st": "struct<a: int64, name: string>",
        "ts": "timestamp",
        "js": "json",
        "count": "int64",
        "type": "string",
        "_score": "float64",
        "root": "int64",
    },
}
KEYS = {"docs": ("id",), "notes": ("note_id",), "pairs": ("a", "b"), "keyless": (), "rich": ("id",)}


def outputs_of(
    identifier: str, key: dict[str, str], *, root: tuple[str, ...] = ("id",), flatten: bool = False
) -> OutputTable:
    return OutputTable(f"_out_{identifier}", identifier, root, key, "int64", flatten)


@dataclass
class FakeCatalog:
    outputs_: dict[str, OutputTable] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)

    def table(self, name: str) -> Any:
        if name not in TABLES:
            raise TableNotFoundError(f"there is no table {name!r}")
        return ibis.table(TABLES[name], name=name)

    def primary_key(self, name: str) -> tuple[str, ...]:
        return KEYS[name]

    def outputs(self, identifier: str) -> OutputTable:
        if identifier not in self.outputs_:
            raise ComponentNotFoundError(f"there is no listener {identifier!r}")
        return self.outputs_[identifier]

    def outputs_table(self, identifier: str) -> Any | None:
        output = self.outputs(identifier)
        if identifier in self.absent:
            return None
        own = {"position": "int64"} if output.flatten else {}
        return ibis.table(
            {**output.key, **own, "value": "int64", "_as_of": "int64", "_error": "string"}, name=output.name
        )


class Database:
    """The tables `docs`, `notes`, `pairs` and the outputs of `length`, `chunks` (flattened) and `size` (of chunks)."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:")
        self.catalog = FakeCatalog(
            {
                "length": outputs_of("length", {"id": "int64"}),
                "chunks": outputs_of("chunks", {"id": "int64"}, flatten=True),
                "size": outputs_of("size", {"id": "int64", "chunks_position": "int64"}),
                "of_pairs": outputs_of("of_pairs", {"a": "int64", "b": "int64"}, root=("a", "b")),
                "unborn": outputs_of("unborn", {"id": "int64"}, flatten=True),
            },
            {"unborn"},
        )
        self._fill("docs", TABLES["docs"], DOCS)
        self._fill("notes", TABLES["notes"], [(10, 1, "first"), (11, 1, "second"), (12, 3, "third")])
        self._fill("pairs", TABLES["pairs"], [(1, 1, "x"), (1, 2, "y")])
        made = ["value", "_as_of", "_error"]
        self._fill("_out_length", ["id", *made], [(1, 3, 0, None), (2, 3, 0, None), (3, None, 0, '{"type": "X"}')])
        self._fill(
            "_out_chunks",
            ["id", "position", *made],
            [(1, 0, 100, 0, None), (1, 1, 101, 0, None), (2, -1, None, 0, None), (3, -1, None, 0, "{}")],
        )
        self._fill("_out_size", ["id", "chunks_position", *made], [(1, 0, 7, 0, None), (1, 1, None, 0, "{}")])
        self._fill("_out_of_pairs", ["a", "b", *made], [(1, 2, 5, 0, None)])

    def _fill(self, name: str, columns: Any, rows: list[tuple[Any, ...]]) -> None:
        self.connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
        self.connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(list(columns)))})", rows)

    def rows(self, query: Query) -> list[dict[str, Any]]:
        """Return a query's rows in any order that it leaves open."""
        return list(self._rows(query))

    def _rows(self, query: Query) -> Iterator[dict[str, Any]]:
        found = self.connection.execute(str(ibis.to_sql(query.build(self.catalog).expression, dialect="sqlite")))
        names = [each[0] for each in found.description]
        for row in found:
            yield dict(zip(names, row, strict=True))

    def key(self, query: Query) -> tuple[str, ...]:
        return query.build(self.catalog).key

    def close(self) -> None:
        self.connection.close()
