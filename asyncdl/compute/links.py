"""A link from what runs a task to the process that asked for it.

Within one process it is a call on the event loop. Pickled, to another process or machine, it becomes a connection back to this
one, which proves itself by a secret that travelled with the task. What it carries is JSON and opaque bytes: the receiver decodes
no objects. ::

    secret (32 bytes); then for each message: 8 bytes length of the head, 8 bytes length of the body, head, body
    answer to each: one byte, 1: go on, 0: stop; after a 1, 8 bytes length of what is answered, and that
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from asyncdl import codec
from asyncdl.errors import JobCancelledError
from asyncdl.together import end

logger = logging.getLogger(__name__)

Answer = Callable[[dict[str, Any], bytes], Awaitable[bytes]]
"""Takes a message, and answers it; what it raises says that the task is to stop."""

_LENGTHS, _LENGTH = struct.Struct("!QQ"), struct.Struct("!Q")
_SECRET = 32
_HEAD = 1024 * 1024
"""Bytes of a head, at most: a longer one is none of ours."""
_CONNECT = 10.0
_PART = 1024 * 1024


class Link(ABC):
    """Sends messages, and waits until each has been dealt with."""

    @abstractmethod
    def ask(self, head: dict[str, Any], body: bytes = b"") -> bytes:
        """Send a message, from any thread but that of the event loop, and return the answer.

        Raises
        ------
        JobCancelledError
            The task is to stop.
        """

    @abstractmethod
    async def ask_on_loop(self, head: dict[str, Any], body: bytes = b"") -> bytes:
        """Send a message from the event loop."""

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold it open for the block."""
        yield


class LocalLink(Link):
    """The link within the process that asked."""

    def __init__(self, answer: Answer) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer = answer
        self.remote: tuple[str, int, bytes] | None = None
        self._answering: set[asyncio.Task[bytes]] = set()
        self._closed = False

    def __reduce__(self) -> tuple[Any, ...]:
        if self.remote is None:
            raise TypeError("this link is within one process")
        return RemoteLink, self.remote

    def ask(self, head: dict[str, Any], body: bytes = b"") -> bytes:
        """Send a message from a thread."""
        asking = self.ask_on_loop(head, body)
        try:
            return asyncio.run_coroutine_threadsafe(asking, self._loop).result()
        except JobCancelledError:
            raise
        except BaseException as error:  # the loop has ended, or cancelled the answer
            asking.close()
            raise _stopped() from error

    async def ask_on_loop(self, head: dict[str, Any], body: bytes = b"") -> bytes:
        """Send a message from the event loop."""
        if self._closed:
            raise _stopped()
        task = asyncio.get_running_loop().create_task(self._answered(head, body), name="asyncdl: a report of training")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            return await asyncio.shield(task)
        except Exception as error:
            raise _stopped() from error

    async def _answered(self, head: dict[str, Any], body: bytes) -> bytes:
        return await self._answer(head, body)

    async def aclose(self) -> None:
        """Answer no more."""
        self._closed = True
        await end(self._answering)


class RemoteLink(Link):
    """The link from another process."""

    def __init__(self, host: str, port: int, secret: bytes) -> None:
        self._address = (host, port)
        self._secret = secret
        self._socket: socket.socket | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Connect; where that cannot be done the task goes on, and nobody hears of it before its end."""
        try:
            self._socket = socket.create_connection(self._address, timeout=_CONNECT)
            self._socket.settimeout(None)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._socket.sendall(self._secret)
        except OSError as error:
            logger.warning("no progress can be reported to %s:%d, nor checkpoints kept: %s", *self._address, error)
        try:
            yield
        finally:
            if self._socket is not None:
                self._socket.close()

    def ask(self, head: dict[str, Any], body: bytes = b"") -> bytes:
        """Send a message."""
        if self._socket is None:
            return b""
        encoded = codec.dumps(head)
        try:
            self._socket.sendall(_LENGTHS.pack(len(encoded), len(body)) + encoded)
            self._socket.sendall(body)
            if self._received(1) != b"\1":
                raise _stopped()
            return self._received(_LENGTH.unpack(self._received(_LENGTH.size))[0])
        except OSError as error:
            raise _stopped() from error

    def _received(self, size: int) -> bytes:
        assert self._socket is not None  # noqa: S101 - it is open, or nothing was sent
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(min(size - len(data), _PART))
            if not part:
                raise ConnectionError("the connection has ended")
            data += part
        return bytes(data)

    async def ask_on_loop(self, head: dict[str, Any], body: bytes = b"") -> bytes:
        """Send a message, in a thread."""
        return await asyncio.to_thread(self.ask, head, body)


def _stopped() -> JobCancelledError:
    return JobCancelledError("the process that asked for this training wants it no more, or is gone")


@asynccontextmanager
async def linked(answer: Answer, host: str | None) -> AsyncIterator[LocalLink]:
    """Take messages for the block.

    Parameters
    ----------
    host
        The address at which other processes reach this one; None: they come from this one.
    """
    link = LocalLink(answer)
    try:
        if host is None:
            yield link
        else:
            async with _served(link, host):
                yield link
    finally:
        await link.aclose()


@asynccontextmanager
async def _served(link: LocalLink, host: str) -> AsyncIterator[None]:
    """Take other processes' messages."""
    secret = secrets.token_bytes(_SECRET)
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        serving.add(task)
        try:
            await _serve(link, reader, writer, secret)
        finally:
            serving.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, host, 0)
    link.remote = (host, server.sockets[0].getsockname()[1], secret)
    try:
        yield
    finally:
        server.close()
        await end(serving)


async def _serve(link: LocalLink, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> None:
    """Take one connection's messages until it ends."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        if not hmac.compare_digest(await reader.readexactly(_SECRET), secret):
            return
        while True:
            head_length, body_length = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
            if head_length > _HEAD:
                return
            head = codec.loads(await reader.readexactly(head_length))
            body = await reader.readexactly(body_length)
            try:
                answer = await link.ask_on_loop(head, body)
            except JobCancelledError:
                writer.write(b"\0")
            else:
                writer.write(b"\1" + _LENGTH.pack(len(answer)))
                writer.write(answer)
            await writer.drain()
