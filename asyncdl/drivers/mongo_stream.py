"""What other programs change in a database: one change stream for all its collections.

Transactions of asyncdl's begin with the metadata store's log, or with a mark. The stream tells of that first, so what follows in
the same transaction is known for asyncdl's own, whichever process made it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from asyncdl import codec
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_units import MARKS, leave_mark
from asyncdl.errors import ClosedError, StoreError, StoreTimeoutError, StoreUnavailableError
from asyncdl.together import finished

_WAIT = 1000
"""Milliseconds that the server waits for changes."""
_KINDS: dict[str, Literal["insert", "update", "delete"]] = {
    "insert": "insert",
    "replace": "update",
    "update": "update",
    "delete": "delete",
}
_USERS = r"(?s)^(?!_asyncdl|_outputs_|system\.)(?!.*\.(files|chunks)$)"
"""The names of the user's collections; by a negation around it the server would take twice as long for all that is ours."""

Own = tuple[Any, int] | None
"""The session and number of a transaction."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What one look at the stream told.

    Parameters
    ----------
    token
        From where to go on.
    rows
        Collection, what was done, and the document's id, in order.
    collections
        Collections that were dropped or renamed.
    lost
        Whether what was asked for is not known any more.
    """

    token: str
    rows: list[tuple[str, Literal["insert", "update", "delete"], Any]] = field(default_factory=list)
    collections: list[str] = field(default_factory=list)
    lost: bool = False


async def changes(database: MongoDatabase, since: str | None) -> AsyncGenerator[Changed, None]:
    """Yield what other programs change, from a token on (None: from now), and at least every second; an error ends it.

    Note for implementers: a stream is a cursor of the server's, and asked by its own commands: a driver's change stream gives
    one change for each hop to a thread, these give all that there are.
    """
    token, own = codec.loads(since) if since is not None else (None, None)
    lost = False
    session = await database.call(database.new_session, to_the_end=True)
    cursor: int | None = None
    try:
        try:
            opened = await _command(database, session, _open(database, token))
        except StoreError as error:
            if token is None or isinstance(error, (StoreUnavailableError, StoreTimeoutError)):
                raise
            # Expired (ChangeStreamHistoryLost), or another server's, as after a restored backup: nothing follows from it.
            lost, own = True, None
            opened = await _command(database, session, _open(database, None))
        cursor, batch = opened["cursor"]["id"], opened["cursor"]["firstBatch"]
        token = opened["cursor"].get("postBatchResumeToken", token)
        while True:
            found, own, ended = _read(batch, own)
            yield Changed(codec.dumps([token, own]).decode(), found.rows, found.collections, lost)
            lost = ended
            if ended or not cursor:  # the database was dropped: what comes then is another stream's
                opened = await _command(database, session, _open(database, None))
                more = opened["cursor"]
                batch = more["firstBatch"]
            else:
                more = await _next(database, session, cursor)
                batch = more["nextBatch"]
            cursor, token = more["id"], more.get("postBatchResumeToken", token)
    finally:
        with suppress(StoreError, ClosedError):
            if cursor:
                await _command(database, session, {"killCursors": "$cmd.aggregate", "cursors": [cursor]})
            await database.call(session.end_session, to_the_end=True)


async def _next(database: MongoDatabase, session: Any, cursor: int) -> Mapping[str, Any]:
    command = {"getMore": cursor, "collection": "$cmd.aggregate", "maxTimeMS": _WAIT}
    more = asyncio.ensure_future(_command(database, session, command))
    try:
        found: Mapping[str, Any] = (await asyncio.shield(more))["cursor"]
    except asyncio.CancelledError:
        # The server waits until something changes, and a thread with it, and so would whoever closes: so something does.
        await finished(asyncio.gather(leave_mark(database), more, return_exceptions=True))
        raise
    return found


async def _command(database: MongoDatabase, session: Any, command: Mapping[str, Any]) -> Mapping[str, Any]:
    from bson import Int64  # noqa: PLC0415 - the driver is imported when it is used

    if "getMore" in command:
        command = {**command, "getMore": Int64(command["getMore"])}
    if "killCursors" in command:
        command = {**command, "cursors": [Int64(each) for each in command["cursors"]]}
    found = database.documents("any").database
    result: Mapping[str, Any] = await database.call(
        lambda: found.command(command, session=session, codec_options=found.codec_options), to_the_end=True
    )
    return result


def _open(database: MongoDatabase, token: Any) -> dict[str, Any]:
    announced: list[Mapping[str, Any]] = [{"ns.coll": MARKS}]
    if database.gate is not None:
        collection, key = database.gate
        announced.append({"ns.coll": collection, "documentKey._id": key})
    users = {"ns.coll": {"$regex": _USERS}}
    whole = {"operationType": {"$in": ["drop", "rename", "dropDatabase", "invalidate"]}}
    fields = dict.fromkeys(["operationType", "ns", "documentKey", "to", "lsid", "txnNumber"], 1)
    stream = {} if token is None else {"startAfter": token}
    pipeline = [{"$changeStream": stream}, {"$match": {"$or": [*announced, users, whole]}}, {"$project": fields}]
    return {"aggregate": 1, "pipeline": pipeline, "cursor": {"batchSize": 1000}, "readConcern": {"level": "majority"}}


def _read(batch: list[Mapping[str, Any]], own: Own) -> tuple[Changed, Own, bool]:
    """Return what a batch tells of others, the last transaction of asyncdl's, and whether the stream has ended."""
    found, ended = Changed(""), False
    for each in batch:
        kind, collection = each["operationType"], each.get("ns", {}).get("coll", "")
        transaction = (bytes(each["lsid"]["id"].bytes), each["txnNumber"]) if "txnNumber" in each else None
        if kind in {"drop", "rename"}:
            found.collections.append(collection)
            if "to" in each:
                found.collections.append(each["to"]["coll"])
        elif kind in {"dropDatabase", "invalidate"}:
            ended = True
        elif collection.startswith("_asyncdl"):
            own = transaction
        elif transaction is None or transaction != _tuple(own):
            found.rows.append((collection, _KINDS[kind], each["documentKey"]["_id"]))
    return found, own, ended


def _tuple(own: Any) -> Own:
    return None if own is None else (own[0], own[1])
