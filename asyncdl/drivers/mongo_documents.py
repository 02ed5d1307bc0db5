"""Reading and writing the user's documents: the driver's calls, with asyncdl's errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_calls import Document, MongoTransaction, in_thread, thread_session
from asyncdl.drivers.mongo_errors import translated
from asyncdl.errors import AsyncDLError, ClosedError, ConstraintError, DatatypeError, QueryError, StoreError

_NO_QUERY = {2, 9, 14, 40, 51, 52, 54, 55, 56, 66, 168, 15958, 15959, 16020, 16410, 17276, 28667, 40228, 40323, 40324}
"""Codes by which the server refuses what a query says; from 10,000 on are those of single operators."""
LARGEST = 16 * 2**20
"""Bytes of a document."""
_LARGEST = 15 * 2**20
"""Bytes of an output's value."""
_FEW = 20
"""Documents that are taken at once where their bytes are counted."""
_DUPLICATES = {11000, 11001}
_NOT_THE_QUERY = {10107, 11600, 11602, 13435, 13436, 10334, 17280, 17419, 17420, 10058}


def new_id() -> Any:
    """Return a new ObjectId: unique, and ordered by the second."""
    from bson import ObjectId  # noqa: PLC0415 - the driver is imported when it is used

    return ObjectId()


class asked:  # noqa: N801 - a context manager, as `translated` is
    """Raise `QueryError` for a query that the server refuses, `DatatypeError` for a value that BSON has not."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, StoreError):
            cause = error.__cause__
            code = getattr(cause, "code", None)
            if isinstance(cause, (OverflowError, UnicodeEncodeError)) or type(cause).__name__ == "InvalidDocument":
                raise DatatypeError(f"MongoDB cannot store a value in {self._what}: {_plainly(cause)}") from error
            if isinstance(code, int) and code not in _DUPLICATES and (code in _NO_QUERY or _of_an_operator(code)):
                raise QueryError(f"{error}, in {self._what}") from error
        elif isinstance(error, (TypeError, ValueError, AttributeError)) and not isinstance(error, AsyncDLError):
            raise QueryError(f"{error}, in {self._what}") from error  # the driver's, for arguments of the wrong form


def _plainly(cause: BaseException | None) -> str:
    if isinstance(cause, UnicodeEncodeError):
        return f"a text holds a lone surrogate, which is no Unicode character: {cause}"
    return str(cause)[:500]


def _of_an_operator(code: int) -> bool:
    return code >= 10_000 and code not in _NOT_THE_QUERY


class MongoDocuments:
    """The user's collections of one database."""

    def __init__(self, database: MongoDatabase) -> None:
        self.database = database

    # collections

    async def names(self) -> list[str]:
        """Return the names of all collections and views."""
        found = self.database.documents("any").database
        names: list[str] = await self.database.call(found.list_collection_names, to_the_end=False)
        return sorted(name for name in names if not name.startswith("system."))

    async def create(self, name: str, *indexes: Sequence[tuple[str, int]]) -> None:
        """Create a collection and its indexes where they are missing."""
        await self.database.create(name, *indexes)

    async def drop(self, name: str) -> None:
        """Drop a collection, if there is one."""
        found = self.database.documents(name)
        await self.database.call(found.drop, to_the_end=True)

    # reading

    async def find_one(
        self,
        name: str,
        where: Mapping[str, Any],
        fields: Any = None,
        *,
        tx: MongoTransaction | None = None,
        **options: Any,
    ) -> Document | None:
        """Return the first document that matches."""
        found = self.database.documents(name)
        options |= {"limit": -1, **thread_session(tx)}
        with asked(f"find_one on {name!r}"):
            return await self.database.call(
                lambda: in_thread(_first, found.delegate, where, fields, options), to_the_end=tx is not None
            )

    async def find(
        self,
        name: str,
        where: Mapping[str, Any],
        fields: Any = None,
        *,
        tx: MongoTransaction | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return the documents that match."""
        found = self.database.documents(name)
        limit = options.get("limit") or 0
        options.setdefault("batch_size", limit + 1 if 0 < limit < 100_000 else 10_000)
        options |= thread_session(tx)
        with asked(f"find on {name!r}"):
            return await self.database.call(
                lambda: in_thread(lambda: found.delegate.find(where, fields, **options).to_list()),
                to_the_end=tx is not None,
            )

    async def aggregate(
        self,
        name: str,
        pipeline: Sequence[Mapping[str, Any]],
        *,
        tx: MongoTransaction | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return what a pipeline gives."""
        found = self.database.documents(name)
        options = {"batchSize": 10_000, "allowDiskUse": True, **options, **thread_session(tx)}
        with asked(f"aggregate on {name!r}"):
            return await self.database.call(
                lambda: in_thread(lambda: found.delegate.aggregate(list(pipeline), **options).to_list()),
                to_the_end=tx is not None,
            )

    async def pages(
        self, name: str, method: str, args: Sequence[Any], options: Mapping[str, Any], size: int
    ) -> AsyncGenerator[list[Document], None]:
        """Yield what ``find`` or ``aggregate`` gives in lists of at most ``size``, holding only one of them."""
        found, what = self.database.documents(name), f"{method} on {name!r}"
        with asked(what):
            if method == "find":
                cursor = found.find(*args, **{"batch_size": size, **options})
            else:
                cursor = found.aggregate(*args, **{"batchSize": size, "allowDiskUse": True, **options})
        alive = True
        try:
            while alive:
                with asked(what):
                    page = await self.database.call(lambda: cursor.to_list(size), to_the_end=True)
                alive = bool(page) and cursor.alive
                if page:
                    yield page
        finally:
            if alive:
                with suppress(StoreError, ClosedError):
                    await self.database.call(cursor.close, to_the_end=True)

    async def raw_page(
        self, name: str, where: Mapping[str, Any], size: int, largest: int
    ) -> tuple[list[tuple[Document, Any]], bool]:
        """Return the first documents that match, by their ids, each with its bytes, and whether there are more.

        At most ``size``, and no more than ``largest`` bytes, if that is more than a few.
        """
        from bson.raw_bson import RawBSONDocument  # noqa: PLC0415 - the driver is imported when it is used

        found = self.database.documents(name)
        options = found.codec_options
        raw = found.with_options(codec_options=options.with_options(document_class=RawBSONDocument))
        rows: list[Any] = []
        total, cursor = 0, raw.find(where, sort=[("_id", 1)], batch_size=size)
        try:
            with asked(f"find on {name!r}"):
                while total < largest and len(rows) < size:
                    few = min(_FEW if not rows else (largest - total) * len(rows) // total + 1, size - len(rows))
                    some = await self.database.call(lambda few=few: cursor.to_list(few), to_the_end=True)  # type: ignore[misc]
                    if not some:
                        break
                    total += sum(len(each.raw) for each in some)
                    rows += some
            more = bool(rows) and (total >= largest or len(rows) >= size)
        finally:
            with suppress(StoreError, ClosedError):
                await self.database.call(cursor.close, to_the_end=True)
        return await asyncio.to_thread(_decoded, rows, options), more

    async def value(self, name: str, method: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """Return what ``count_documents``, ``estimated_document_count`` or ``distinct`` gives."""
        call = getattr(self.database.documents(name), method)
        with asked(f"{method} on {name!r}"):
            return await self.database.call(lambda: call(*args, **options), to_the_end=False)

    # writing

    async def insert(self, name: str, documents: Sequence[Mapping[str, Any]], tx: MongoTransaction | None) -> None:
        """Insert documents, in order; they have their ids. Without a transaction, none if one of them cannot be stored."""
        found = self.database.documents(name)
        if tx is None:  # the driver would send what stands before a large one
            if len(documents) == 1:
                documents = [self.encoded(documents[0])]
            else:
                documents = await asyncio.to_thread(lambda given: [self.encoded(each) for each in given], documents)
        with asked(f"insert on {name!r}"):
            await self.database.call(
                lambda: found.insert_many(documents, ordered=True, **_session(tx)), to_the_end=True
            )

    async def write(
        self, name: str, method: str, args: Sequence[Any], options: Mapping[str, Any], tx: MongoTransaction | None
    ) -> Any:
        """Make one write, and return what the driver does."""
        call = getattr(self.database.documents(name), method)
        with asked(f"{method} on {name!r}"):
            return await self.database.call(lambda: call(*args, **_session(tx), **options), to_the_end=True)

    async def put(
        self,
        name: str,
        new: Sequence[Mapping[str, Any]],
        replaced: Sequence[Mapping[str, Any]],
        tx: MongoTransaction | None,
    ) -> None:
        """Insert and replace documents, each known by its id."""
        import pymongo  # noqa: PLC0415 - the driver is imported when it is used

        found = self.database.documents(name)
        with asked(f"outputs in {name!r}"):
            if new:
                await self.database.call(lambda: found.insert_many(new, ordered=True, **_session(tx)), to_the_end=True)
            if replaced:
                requests = [pymongo.ReplaceOne({"_id": each["_id"]}, each) for each in replaced]
                await self.database.call(
                    lambda: found.bulk_write(requests, ordered=False, **_session(tx)), to_the_end=True
                )

    async def put_newer(
        self, name: str, documents: Sequence[Mapping[str, Any]], stamp: str, tx: MongoTransaction | None
    ) -> None:
        """Insert documents, or replace those of their ids whose stamp is not larger: each at once, by itself.

        In one call, which is right for few: the server takes several times as long for each as for an insert.
        """
        import pymongo  # noqa: PLC0415 - the driver is imported when it is used

        found = self.database.documents(name)
        requests = [
            pymongo.UpdateOne(
                {"_id": each["_id"]},
                [{"$replaceWith": {"$cond": [{"$gt": [f"${stamp}", each[stamp]]}, "$$ROOT", {"$literal": each}]}}],
                upsert=True,
            )
            for each in documents
        ]
        with asked(f"outputs in {name!r}"):
            await self.database.call(lambda: found.bulk_write(requests, ordered=False, **_session(tx)), to_the_end=True)

    async def put_declared(self, name: str, document: Mapping[str, Any], tx: MongoTransaction | None) -> None:
        """Insert a document, or replace the one of its id."""
        found = self.database.documents(name)
        await self.database.call(
            lambda: found.replace_one({"_id": document["_id"]}, document, upsert=True, **_session(tx)), to_the_end=True
        )

    def encoded(self, document: Mapping[str, Any]) -> Any:
        """Return a document as the bytes that it is stored as; raises `DatatypeError` or `ConstraintError` where it cannot be."""
        import bson  # noqa: PLC0415 - the driver is imported when it is used
        from bson.raw_bson import RawBSONDocument  # noqa: PLC0415 - the same

        options = self.database.documents("any").codec_options
        with asked("a document"), translated(self.database.url):
            found = RawBSONDocument(bson.encode(document, codec_options=options))
        if len(found.raw) > LARGEST:
            raise ConstraintError(
                f"{self.database.url}: the document {document.get('_id')!r:.100} is {len(found.raw):,} bytes large, and "
                "MongoDB's hold 16 MiB"
            )
        return found

    def check(self, document: Mapping[str, Any]) -> None:
        """Raise `DatatypeError` for a document that cannot be stored."""
        import bson  # noqa: PLC0415 - the driver is imported when it is used

        options = self.database.documents("any").codec_options
        with asked("a value"), translated(self.database.url):
            size = len(bson.encode(document, codec_options=options))
        if size > _LARGEST:
            raise DatatypeError(f"a value of {size:,} bytes is too large: MongoDB's documents hold 16 MiB")

    async def explain(self, name: str, pipeline: Sequence[Mapping[str, Any]]) -> None:
        """Have the server plan a pipeline without running it; raises `QueryError`."""
        found = self.database.documents(name).database
        command = {"aggregate": name, "pipeline": list(pipeline), "cursor": {}}
        with asked(f"a query on {name!r}"):
            await self.database.call(
                lambda: found.command("explain", command, verbosity="queryPlanner"), to_the_end=False
            )

    async def delete(self, name: str, where: Mapping[str, Any], tx: MongoTransaction | None) -> int:
        """Delete the documents that match, and return how many there were."""
        found = self.database.documents(name)
        result: Any = await self.database.call(lambda: found.delete_many(where, **_session(tx)), to_the_end=True)
        return int(result.deleted_count)


def _first(found: Any, where: Mapping[str, Any], fields: Any, options: Mapping[str, Any]) -> Document | None:
    """Return the first document: decoded here, since the driver decodes the whole answer twice where types have decoders."""
    import bson  # noqa: PLC0415 - the driver is imported when it is used

    batch = next(found.find_raw_batches(where, fields, **options), None)
    documents: list[Document] = bson.decode_all(batch, found.codec_options) if batch else []
    return documents[0] if documents else None


def _decoded(rows: Sequence[Any], options: Any) -> list[tuple[Document, Any]]:
    import bson  # noqa: PLC0415 - the driver is imported when it is used

    return [(bson.decode(each.raw, codec_options=options), each) for each in rows]


def _session(tx: MongoTransaction | None) -> dict[str, Any]:
    return {} if tx is None else {"session": tx.session}
