"""The types that users see: checked by mypy, never run."""

from __future__ import annotations

from typing import Any, assert_type

import asyncdl
from asyncdl import (
    Added,
    AddPlan,
    Cursor,
    Datalayer,
    Handle,
    Listener,
    Model,
    OutputsWritten,
    Progress,
    Query,
    Written,
)
from asyncdl.errors import AsyncDLError, ComponentNotFoundError


async def types() -> None:
    async with asyncdl.connect("sqlite://app.db") as db:
        assert_type(db, Datalayer)
    assert_type(await asyncdl.connect(), Datalayer)
    docs = db["docs"]
    assert_type(docs, Query)
    cursor = await db.execute(docs)
    assert_type(cursor, Cursor)
    async for row in cursor:
        assert_type(row, dict[str, Any])
    assert_type(await cursor.to_list(), list[dict[str, Any]])
    assert_type(await cursor.first(), dict[str, Any] | None)
    written = await db.execute(docs.insert([{"id": 1}]))
    assert_type(written, Written)
    assert_type(await written.wait(), None)
    added = await db.add(Listener("length", model=Model("len", len), key="text", select=docs), wait=True)
    assert_type(added, Added)
    assert_type(await db.add(added.component, dry_run=True), AddPlan)
    assert_type(await db.replace(added.component, dry_run=True), AddPlan)
    async for progress in added.progress():
        assert_type(progress, Progress)
    assert_type(await db.reconcile(), Handle)
    assert_type(await db.train("classifier"), Added)
    assert_type(await db.validate("classifier"), dict[str, float])
    assert_type(await db.validations("classifier"), dict[int, dict[str, dict[str, float]]])
    async for row in db.rows("digits", "valid"):
        assert_type(row, dict[str, Any])
    assert_type(asyncdl.CFG, asyncdl.Settings)

    @db.on(OutputsWritten)
    async def handler(event: OutputsWritten) -> None:
        assert_type(event.ids, list[Any])

    try:
        await db.remove("listener", "length")
    except ComponentNotFoundError as error:
        assert_type(error, ComponentNotFoundError)
        kin: LookupError = error
        base: AsyncDLError = error
        raise base from kin
