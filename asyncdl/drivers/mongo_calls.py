"""What a MongoDB database is asked: documents read and written, by motor's calls.

Note for implementers: a driver's call runs in a thread and cannot be stopped. Whoever cancels a read just stops waiting; a
write, and whatever is part of a transaction, is waited for (`finished`), so that who cleans up finds nothing under way.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from asyncdl.drivers.counted import Counted
from asyncdl.errors import ClosedError, StoreError

T = TypeVar("T")
Document = dict[str, Any]
Sort = Sequence[tuple[str, int]]

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Write:
    """One write among many.

    Parameters
    ----------
    kind
        ``"replace"`` a document or insert it, ``"update"`` one with operators, also if it must be made first
        (``"upsert"``), ``"delete"`` one, or all (``"delete_many"``).
    where
        Which document.
    what
        The document, or the operators, or a pipeline.
    """

    kind: Literal["replace", "update", "upsert", "delete", "delete_many"]
    where: Mapping[str, Any]
    what: Any = None


def in_thread(call: Callable[..., T], *args: Any, **options: Any) -> Awaitable[T]:
    """Make calls of PyMongo's on one of motor's threads: what motor's own cursors do in several steps, in one."""
    from motor.frameworks.asyncio import run_on_executor  # noqa: PLC0415 - the driver is imported when it is used

    future: Awaitable[T] = run_on_executor(  # type: ignore[no-untyped-call]
        asyncio.get_running_loop(), call, *args, **options
    )
    return future


class MongoTransaction:
    """A transaction in progress: handed to the methods of its database as ``tx``."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.last: list[Callable[[], Any]] = []
        """Calls of PyMongo's that are made right before the commit, on the same thread."""


class MongoCalls(Counted):
    """The collections of a database, as its stores use them."""

    @abstractmethod
    def _collection(self, name: str, *, local: bool = False) -> Any:
        """Return a collection of the driver's; with ``local`` its writes wait for nobody."""

    @abstractmethod
    async def _call(self, call: Callable[[], Awaitable[T]], *, to_the_end: bool) -> T:
        """Make a call of the driver's, its errors being asyncdl's; ``to_the_end``: also when cancelled."""

    # reading

    async def find(
        self,
        collection: str,
        where: Mapping[str, Any],
        *,
        fields: Mapping[str, Any] | None = None,
        sort: Sort = (),
        limit: int = 0,
        tx: MongoTransaction | None = None,
    ) -> list[Document]:
        """Return the documents that match, all of them unless there is a limit."""
        found = self._collection(collection)

        def call() -> list[Document]:
            cursor = found.delegate.find(where, fields, limit=limit, batch_size=_BATCH, **thread_session(tx))
            if sort:
                cursor = cursor.sort(list(sort)).allow_disk_use(True)
            return cursor.to_list()  # type: ignore[no-any-return]

        return await self._call(lambda: in_thread(call), to_the_end=tx is not None)

    async def find_one(
        self,
        collection: str,
        where: Mapping[str, Any],
        *,
        fields: Mapping[str, Any] | None = None,
        sort: Sort = (),
        tx: MongoTransaction | None = None,
    ) -> Document | None:
        """Return the first document that matches."""
        found = self._collection(collection)
        return await self._call(
            lambda: found.find_one(where, fields, sort=list(sort) or None, **_session(tx)), to_the_end=tx is not None
        )

    async def stream(
        self,
        collection: str,
        where: Mapping[str, Any],
        *,
        fields: Mapping[str, Any] | None = None,
        sort: Sort = (),
        size: int = _BATCH,
    ) -> AsyncGenerator[list[Document], None]:
        """Yield the documents that match in lists of at most ``size``, holding only one of them."""
        cursor = self._collection(collection).find(where, fields, batch_size=size)
        if sort:
            cursor = cursor.sort(list(sort))
        try:
            while batch := await self._call(lambda: cursor.to_list(size), to_the_end=True):
                yield batch
        finally:
            with suppress(StoreError, ClosedError):
                await self._call(cursor.close, to_the_end=True)

    async def aggregate(
        self, collection: str, pipeline: Sequence[Mapping[str, Any]], *, tx: MongoTransaction | None = None
    ) -> list[Document]:
        """Return the results of a pipeline."""
        found = self._collection(collection)
        return await self._call(
            lambda: in_thread(lambda: found.delegate.aggregate(list(pipeline), **thread_session(tx)).to_list()),
            to_the_end=tx is not None,
        )

    # writing

    async def insert(self, collection: str, documents: Sequence[Mapping[str, Any]], *, local: bool = False) -> None:
        """Insert documents, in order.

        With ``local`` neither journal nor replicas are waited for: a later write that does so waits for these, too.
        """
        found = self._collection(collection, local=local)
        await self._call(lambda: found.insert_many(documents), to_the_end=True)

    async def update(
        self,
        collection: str,
        where: Mapping[str, Any],
        change: Any,
        *,
        upsert: bool = False,
        many: bool = False,
        local: bool = False,
    ) -> int:
        """Update the document that matches (``many``: each), and return how many matched; ``local`` as of `insert`."""
        found = self._collection(collection, local=local)
        update = found.update_many if many else found.update_one
        result: Any = await self._call(lambda: update(where, change, upsert=upsert), to_the_end=True)
        return int(result.matched_count)

    async def find_and_update(
        self,
        collection: str,
        where: Mapping[str, Any],
        change: Any,
        *,
        upsert: bool = False,
        tx: MongoTransaction | None = None,
    ) -> Document | None:
        """Update the document that matches, and return it as it is afterwards."""
        found = self._collection(collection)
        return await self._call(
            lambda: found.find_one_and_update(where, change, upsert=upsert, return_document=True, **_session(tx)),
            to_the_end=True,
        )

    async def delete(self, collection: str, where: Mapping[str, Any]) -> int:
        """Delete the documents that match, and return how many there were."""
        found = self._collection(collection)
        result: Any = await self._call(lambda: found.delete_many(where), to_the_end=True)
        return int(result.deleted_count)

    async def update_and_find(
        self,
        collection: str,
        where: Mapping[str, Any],
        change: Any,
        queries: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
        *,
        tx: MongoTransaction,
    ) -> tuple[Document, list[list[Document]]]:
        """Update a document of a transaction, or make it, and read others: collections, conditions and fields; in one hop.

        Return it as it is afterwards, and what each query finds.
        """
        updated = self._collection(collection).delegate
        read = [(self._collection(name).delegate, condition, fields) for name, condition, fields in queries]
        options = {**thread_session(tx), "batch_size": _BATCH}

        def call() -> tuple[Document, list[list[Document]]]:
            document = updated.find_one_and_update(
                where, change, upsert=True, return_document=True, **thread_session(tx)
            )
            return document, [found.find(condition, fields, **options).to_list() for found, condition, fields in read]

        return await self._call(lambda: in_thread(call), to_the_end=True)

    async def write(
        self, collection: str, writes: Sequence[Write], *, local: bool = False, tx: MongoTransaction | None = None
    ) -> None:
        """Make writes, in order, up to the first that fails; ``local`` as of `insert`."""
        found = self._collection(collection, local=local)
        requests = [_request(each) for each in writes]
        await self._call(lambda: found.bulk_write(requests, ordered=True, **_session(tx)), to_the_end=True)

    def write_last(self, collection: str, writes: Sequence[Write], tx: MongoTransaction) -> None:
        """Have writes made at the end of a transaction, in one hop with its commit, which raises what they raise."""
        found = self._collection(collection).delegate
        requests = [_request(each) for each in writes]
        tx.last.append(lambda: found.bulk_write(requests, ordered=True, **thread_session(tx)))


def thread_session(tx: MongoTransaction | None) -> dict[str, Any]:
    """Return the argument by which a call of PyMongo's, in a thread, is part of a transaction."""
    return {} if tx is None else {"session": tx.session.delegate}


def _session(tx: MongoTransaction | None) -> dict[str, Any]:
    return {} if tx is None else {"session": tx.session}


def _request(write: Write) -> Any:
    import pymongo  # noqa: PLC0415 - the driver is imported when it is used

    match write.kind:
        case "replace":
            return pymongo.ReplaceOne(write.where, write.what, upsert=True)
        case "update":
            return pymongo.UpdateOne(write.where, write.what)
        case "upsert":
            return pymongo.UpdateOne(write.where, write.what, upsert=True)
        case "delete":
            return pymongo.DeleteOne(write.where)
        case "delete_many":
            return pymongo.DeleteMany(write.where)
