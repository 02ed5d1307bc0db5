"""MongoDB, through motor: this module, and those of its calls, its client and its errors, are all that touches the driver.

motor is supported until May 2027. Then PyMongo's own asynchronous client takes its place here: what the stores see are the
methods of `MongoDatabase`, plain dicts, and asyncdl's errors.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from asyncdl.drivers.elsewhere import Elsewhere
from asyncdl.drivers.mongo_calls import Document, MongoCalls, MongoTransaction, Sort, T, in_thread
from asyncdl.drivers.mongo_client import DRIVER, database_name, new_client
from asyncdl.drivers.mongo_errors import labelled, translated
from asyncdl.drivers.mongo_values import codec_options
from asyncdl.errors import (
    ClosedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from asyncdl.settings import redact
from asyncdl.together import finished

_CONFLICTS = 90.0
"""Seconds for which a transaction that met others is tried again."""
_STALLED = 2.0
"""Seconds after which a transaction with which nothing happens is its process's no more."""
_OUTAGE = 15.0
"""Seconds for which a transaction is tried again while the server is away (a failover, a restart)."""
_AWAIT = 1000
"""Milliseconds after which a change stream that has nothing to tell says so."""
_KEPT = 1000
"""Collections that are kept, at most."""


class MongoDatabase(MongoCalls):
    """One database of a MongoDB server, replica set or sharded cluster.

    Reads and writes are the primary's and, where there are replicas, the majority's: what was read once is not rolled back.

    Parameters
    ----------
    uri
        ``mongodb://`` or ``mongodb+srv://``, with any options: it is the driver's. The database is the path's, or
        ``asyncdl``.
    """

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.url = redact(uri)
        self.name = database_name(uri)
        self.transactional = False
        """Whether the server has transactions and change streams: a replica set or a sharded cluster. Known once open."""
        self.place = uri
        """Tells whether two are one: as far as their URIs say."""
        self._uri = uri
        self._client: Any = None
        self._majority: Any = None  # the database, read and written by majority
        self._local: Any = None  # the same, written without waiting for the other replicas
        self._documents: Any = None  # the same as the first, with the values of the user's documents
        self._kept: dict[str, Any] = {}  # collections of these: making one takes longer than all else that a call costs
        self.gate: tuple[str, str] | None = None
        """The collection and key of the document that every commit of the metadata store writes, if one is here."""
        self._sessions: deque[Any] = deque()

    @property
    def uri(self) -> str:
        """How another process connects, with the password: not for messages."""
        return self._uri

    def elsewhere(self) -> Elsewhere[MongoDatabase]:
        """Return what connects to it in another process."""
        return Elsewhere(MongoDatabase, self._uri)

    def _make_room(self) -> None:
        self.turn = asyncio.Lock()
        """Held by a transaction that begins at the gate: two at once would only meet there."""

    async def _connect(self) -> None:
        """Connect.

        Raises
        ------
        StoreUnavailableError
            The server does not answer within some seconds, or refuses the user.
        ConfigurationError
            The URI cannot be used.
        MissingDependencyError
            motor is not installed.
        """
        loop = asyncio.get_running_loop()
        with translated(self.url):
            # In a thread: importing the driver takes 125 ms, and a mongodb+srv URI is looked up in the DNS.
            self._client = await finished(asyncio.to_thread(new_client, self._uri, self.name, loop))
            try:
                hello = await self._client.admin.command("hello")
                await self._client[self.name].command("listCollections", nameOnly=True)  # may we?
            except BaseException:
                self._forget()
                raise
        self.transactional = "setName" in hello or hello.get("msg") == "isdbgrid"
        self._choose()

    async def time(self) -> float:
        """Return the server's clock, in seconds since 1970."""
        hello = await self._call(lambda: self._client.admin.command("hello"), to_the_end=False)
        moment: datetime = hello["localTime"]
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    def _choose(self) -> None:
        from pymongo import ReadPreference, WriteConcern  # noqa: PLC0415 - the driver is imported when it is used
        from pymongo.read_concern import ReadConcern  # noqa: PLC0415 - the same

        here = {"read_preference": ReadPreference.PRIMARY}
        if self.transactional:
            concern = {"read_concern": ReadConcern("majority"), "write_concern": WriteConcern("majority")}
        else:
            concern = {"read_concern": ReadConcern("local"), "write_concern": WriteConcern(w=1, j=True)}
        self._majority = self._client.get_database(self.name, **here, **concern)
        self._local = self._client.get_database(self.name, **here, write_concern=WriteConcern(w=1))
        values = codec_options(self._client)
        self._documents = self._client.get_database(self.name, codec_options=values, **here, **concern)
        self._kept = {}

    async def _dispose(self) -> None:
        try:
            while self._sessions:
                await finished(self._sessions.pop().end_session())
        finally:
            self._forget()

    def _forget(self) -> None:
        self._sessions.clear()
        self._kept.clear()
        client, self._client, self._majority, self._local, self._documents = self._client, None, None, None, None
        if client is not None:
            client.close()

    def _collection(self, name: str, *, local: bool = False) -> Any:
        database = self._local if local else self._majority
        if database is None:
            raise ClosedError(f"{self.url} is not open")
        return database[name]

    def documents(self, collection: str) -> Any:
        """Return the driver's own collection, for documents of the user's: for the modules of this room alone."""
        if self._documents is None:
            raise ClosedError(f"{self.url} is not open")
        found = self._kept.get(collection)
        if found is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            found = self._kept[collection] = self._documents[collection]
        return found

    def new_session(self) -> Awaitable[Any]:
        """Return a new session of the driver's, to be awaited, and ended."""
        if self._client is None:
            raise ClosedError(f"{self.url} is not open")
        started: Awaitable[Any] = self._client.start_session()
        return started

    async def call(self, call: Callable[[], Awaitable[T]], *, to_the_end: bool) -> T:
        """Make a call of the driver's, its errors being asyncdl's; ``to_the_end``: also when cancelled."""
        return await self._call(call, to_the_end=to_the_end)

    async def _call(self, call: Callable[[], Awaitable[T]], *, to_the_end: bool) -> T:
        with translated(self.url):
            return await (finished(call()) if to_the_end else call())

    # collections

    async def create(self, collection: str, *indexes: Sort, unique: bool = False) -> None:
        """Create a collection and its indexes where they are missing."""
        from pymongo import IndexModel  # noqa: PLC0415 - the driver is imported when it is used
        from pymongo.errors import CollectionInvalid, OperationFailure  # noqa: PLC0415 - the same

        found = self._collection(collection)
        with translated(self.url):
            try:
                await finished(self._majority.create_collection(collection, check_exists=False))
            except CollectionInvalid:
                pass
            except OperationFailure as error:
                if error.code != 48:  # it exists
                    raise
            if indexes:
                await finished(found.create_indexes([IndexModel(list(each), unique=unique) for each in indexes]))

    async def drop(self) -> None:
        """Drop the database, with everything in it."""
        self._collection("any")
        await self._call(lambda: self._client.drop_database(self.name), to_the_end=True)

    # transactions

    async def transact(self, body: Callable[[MongoTransaction], Awaitable[T]]) -> T:
        """Run a body in a transaction, and commit it; run it again when it met another one, or the server went away.

        Its reads are of one moment. A process that died in a transaction is not waited for: what it holds is freed.

        Raises
        ------
        StoreTimeoutError
            The server undid it for more than a minute, because it met others, or is more than its cache holds.
        """
        begun = freed = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(body, begun)
            except (StoreError, ClosedError) as error:
                if not labelled(error, "TransientTransactionError"):
                    raise
                waited = time.monotonic() - begun
                if isinstance(error, (StoreUnavailableError, StoreTimeoutError)):
                    if waited > _OUTAGE:
                        raise
                elif waited > _CONFLICTS:
                    raise StoreTimeoutError(
                        f"a transaction was undone again and again, for {waited:.0f} s: {error}"
                    ) from error
            if time.monotonic() - freed > _STALLED / 2:
                await self._free()
                freed = time.monotonic()
            await asyncio.sleep(random.random() * min(0.05, 0.001 * 2 ** min(attempt, 10)))  # noqa: S311 - no secret

    async def _free(self) -> None:
        """End transactions on this database with which nothing happens: those of dead processes, for one.

        The server would keep them for a minute, and what they wrote locked. A process that merely stood still starts its
        own again.
        """
        idle = {
            "type": "idleSession",
            "transaction.timeInactiveMicros": {"$gt": int(_STALLED * 1e6)},
            "clientMetadata.driver.name": {"$regex": re.escape(DRIVER + self.name) + "$"},
        }
        pipeline = [{"$currentOp": {"allUsers": False, "idleSessions": True}}, {"$match": idle}]
        with suppress(StoreError):  # not everywhere is one allowed to: then it takes a minute
            found = await self._call(lambda: self._client.admin.aggregate(pipeline).to_list(None), to_the_end=False)
            sessions = [{"id": each["lsid"]["id"]} for each in found]
            if sessions:
                await self._call(lambda: self._client.admin.command("killSessions", sessions), to_the_end=False)

    async def _attempt(self, body: Callable[[MongoTransaction], Awaitable[T]], begun: float) -> T:
        async with self.transaction(begun) as tx:
            return await body(tx)

    @asynccontextmanager
    async def transaction(self, begun: float | None = None) -> AsyncIterator[MongoTransaction]:
        """Begin a transaction; it is committed at the end of the block, and tried again by nobody."""
        from pymongo import ReadPreference, WriteConcern  # noqa: PLC0415 - the driver is imported when it is used
        from pymongo.read_concern import ReadConcern  # noqa: PLC0415 - the same

        async with self._session() as session:
            session.start_transaction(
                read_concern=ReadConcern("snapshot"),
                write_concern=WriteConcern("majority"),
                read_preference=ReadPreference.PRIMARY,
            )
            tx = MongoTransaction(session)
            try:
                yield tx
            except BaseException:
                with suppress(Exception):  # the server ends what nobody commits
                    await finished(session.abort_transaction())
                raise
            await self._commit(tx, time.monotonic() if begun is None else begun)

    async def _commit(self, tx: MongoTransaction, begun: float) -> None:
        def call() -> None:
            while tx.last:  # one that failed was in vain, and so is the transaction
                tx.last.pop(0)()
            tx.session.delegate.commit_transaction()

        while True:
            try:
                return await self._call(lambda: in_thread(call), to_the_end=True)
            except StoreError as error:  # committing again is idempotent, and tells what became of it
                if not labelled(error, "UnknownTransactionCommitResult") or time.monotonic() - begun > _OUTAGE:
                    raise
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Any]:
        """Lend a session; one that saw an error is not used again."""
        self._collection("any")
        if self._sessions:
            session = self._sessions.pop()
        else:
            session = await self._call(self._client.start_session, to_the_end=True)
        reusable = True
        try:
            yield session
        except (StoreUnavailableError, StoreTimeoutError):
            reusable = False
            raise
        finally:
            if reusable and self._client is not None and not session.in_transaction:
                self._sessions.append(session)
            else:
                with suppress(Exception):
                    await finished(session.end_session())

    # changes

    async def watch(self, collection: str, ids: Sequence[Any]) -> AsyncGenerator[Document | None, None]:
        """Yield what changes in some documents from now on; None at first, and when nothing has changed for a second.

        The stream resumes by itself after a failover; an error ends it. Only where the server is `transactional`.
        """
        pipeline = [{"$match": {"documentKey._id": {"$in": list(ids)}}}]
        stream = self._collection(collection).watch(pipeline, max_await_time_ms=_AWAIT)
        try:
            await self._call(stream.__aenter__, to_the_end=True)  # sends the command: from here on nothing is missed
            yield None
            while True:
                yield await self._call(stream.try_next, to_the_end=True)
        finally:
            with suppress(Exception):
                await finished(stream.close())
