"""The table that the proofs write to, in the words of every databackend, and what lies in the stores past the datalayer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Mapping
from typing import Any

from pymongo import UpdateOne

from asyncdl import Datalayer
from asyncdl.components.registry import ListenerState
from asyncdl.databackend.tables import OutputTable
from asyncdl.metadata.records import UNFINISHED


class Notes:
    """Rows with a key and a text."""

    key = "id"

    def __init__(self, db: Datalayer, table: str = "notes") -> None:
        self._db = db
        self.table: Any = db[table]

    def select(self) -> Any:
        return self.table

    def insert(self, rows: Mapping[int, str]) -> Any:
        return self.table.insert(self._rows(rows))

    def upsert(self, rows: Mapping[int, str]) -> Any:
        return self.table.upsert(self._rows(rows))

    def update(self, keys: Collection[int], text: str) -> Any:
        return self.table.update({"text": text}, where=self.table.id.isin(list(keys)))

    def delete(self, keys: Collection[int]) -> Any:
        return self.table.delete(where=self.table.id.isin(list(keys)))

    def derived(self, listener: str, *columns: str) -> Any:
        """Return what a listener on another's outputs selects."""
        return self.table.outputs(listener).select(self.key, *columns)

    def _rows(self, rows: Mapping[int, str]) -> list[dict[str, Any]]:
        return [{self.key: key, "text": text} for key, text in rows.items()]

    async def rows(self) -> dict[int, str]:
        found = await (await self._db.execute(self.table)).to_list()
        rows = {row[self.key]: row["text"] for row in found}
        assert len(rows) == len(found)
        return rows

    async def outputs(self, *listeners: str, columns: Collection[str] = ()) -> list[tuple[Any, ...]]:
        """Return the rows joined with outputs: the key, and the columns (of none: one for each listener), sorted."""
        found = await (await self._db.execute(self.table.outputs(*listeners))).to_list()
        return sorted(tuple(row[name] for name in (self.key, *(columns or listeners))) for row in found)


class NotesInDocuments(Notes):
    key = "_id"

    def insert(self, rows: Mapping[int, str]) -> Any:
        return self.table.insert_many(self._rows(rows))

    def upsert(self, rows: Mapping[int, str]) -> Any:
        writes = [UpdateOne({"_id": key}, {"$set": {"text": text}}, upsert=True) for key, text in rows.items()]
        return self.table.bulk_write(writes)

    def update(self, keys: Collection[int], text: str) -> Any:
        return self.table.update_many({"_id": {"$in": list(keys)}}, {"$set": {"text": text}})

    def delete(self, keys: Collection[int]) -> Any:
        return self.table.delete_many({"_id": {"$in": list(keys)}})

    def derived(self, listener: str, *columns: str) -> Any:
        return self.table.outputs(listener)


def notes_of(db: Datalayer, table: str = "notes") -> Notes:
    return {"ibis": Notes, "mongodb": NotesInDocuments}[db.databackend.language](db, table)


async def output_of(db: Datalayer) -> dict[str, OutputTable]:
    """Return the output table that is read, for each listener."""
    records = await db.metadata.components(type_id="listener")
    return {each.identifier: ListenerState.loads(each.state).output for each in records if each.status == "ready"}


async def nothing_is_left_over(db: Datalayer) -> None:
    """Look past the datalayer: no job, intent, output table or artifact but those that are in use, and one version each."""
    assert await db.jobs.list(state=UNFINISHED) == []
    assert await db.jobs.list(state=("failed", "upstream_failed")) == []
    async with asyncio.timeout(60):  # what follows a commit (deleting artifacts, dropping tables) is announced by it
        seen = 0
        while await _deeds(db):
            seen = await db.metadata.wait_for_commits(seen)
    records = await db.metadata.components()
    numbers = {
        key: [each.version for each in group]
        for key, group in itertools.groupby(records, key=lambda each: (each.type_id, each.identifier))
    }
    assert all(len(set(each)) == len(each) for each in numbers.values()), numbers
    found, wanted = await _output_tables(db), {each.name for each in (await output_of(db)).values() if each.datatype}
    there = [(each.identifier, each.version, each.status, each.uuid) for each in records if each.type_id == "listener"]
    assert found == wanted, (found - wanted, wanted - found, there)
    assert {each async for each in db.artifact_store.list()} == await db.metadata.artifacts()


async def _deeds(db: Datalayer) -> list[str]:
    """Return the intents, but for the one that is always there: the position in the changes of other programs."""
    return [each.id for each in await db.metadata.intents() if each.owner]


async def _output_tables(db: Datalayer) -> set[str]:
    backend: Any = db.databackend
    if db.databackend.language == "mongodb":
        names = await backend.database.documents("any").database.list_collection_names()
        return {name for name in names if name.startswith("_outputs_")}
    scheme = backend.url.partition(":")[0]
    found = await backend.database.fetch(
        {
            "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
            "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()",
            "mysql": "SELECT table_name FROM information_schema.tables WHERE table_schema = database()",
        }[scheme]
    )
    return {name for (name,) in found if name.startswith("_outputs_")}
