"""A folder of dataframes: a Parquet or CSV file for each table, and DuckDB in memory over them.

A table is loaded when its file is new or has changed (time, size or inode), and its file is written anew, whole, by each
transaction that changes it: under a temporary name, flushed to the disk, then renamed, by a journal (`frames_files`). One
process writes at a time, by a lock on a file. What is asyncdl's own, outputs among it, is in the subfolder ``.asyncdl/tables``.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdl.drivers.duckdb import DuckDBDatabase
from asyncdl.drivers.frames_files import FileOperations, Journal, Rename, beside
from asyncdl.drivers.frames_tables import SUFFIXES, load, quoted, write
from asyncdl.drivers.sql import Outcome, Row, Statement
from asyncdl.errors import AsyncDLError, StoreTimeoutError, StoreUnavailableError

if TYPE_CHECKING:
    import duckdb
    from filelock import FileLock

_WAIT = 30.0
_PAUSE = 0.005
_CHANGES = re.compile(
    r'(?:INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE IF NOT EXISTS|DROP TABLE IF EXISTS) ("(?:[^"]|"")+"|\w+)'
)
_Stamp = tuple[str, int, int, int]


class FramesDatabase(DuckDBDatabase):
    """The tables of one folder.

    Parameters
    ----------
    folder
        Where the files are; it is made when missing.
    suffix
        What the names of new tables' files end in: ``".parquet"`` or ``".csv"``. A table that has a file keeps its kind.
    operations
        What is done to files.
    """

    def __init__(self, folder: str | Path, suffix: str = ".parquet", operations: FileOperations | None = None) -> None:
        super().__init__(None)
        self.folder = Path(folder)
        self.url = f"frames://{folder}"
        self._suffix = suffix
        self._own = self.folder / ".asyncdl" / "tables"
        self._operations = operations or FileOperations()
        self._journal = Journal(self.folder, self._own, self._operations)
        self._lock: FileLock | None = None
        self._seen: dict[str, _Stamp] = {}
        self._touched: set[str] = set()
        self._begun = False
        """Whether a transaction has the folder's lock and has loaded what there is; of the writing thread."""

    def connect(self) -> None:
        """Make the folder and load what is in it, on the writing thread."""
        from filelock import FileLock  # noqa: PLC0415 - loaded when a folder is opened

        try:
            self._own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"{self.url}: {error}") from error
        super().connect()
        self._lock = FileLock(self._own / "lock", timeout=_WAIT)
        assert self._raw is not None  # noqa: S101 - `connect` sets it
        self.begin(self._raw)
        self.rollback(self._raw)

    def disconnect(self) -> None:
        """Forget what was loaded, on the writing thread."""
        self._seen.clear()
        super().disconnect()

    # what is there

    def _files(self) -> dict[str, _Stamp]:
        """Return the tables that have files, with what changes when a file does."""
        found: dict[str, _Stamp] = {}
        for folder, own in ((self.folder, False), (self._own, True)):
            try:
                entries = list(os.scandir(folder))
            except OSError as error:
                raise StoreUnavailableError(f"{self.url}: {error}") from error
            for each in entries:
                name, suffix = os.path.splitext(each.name)
                if suffix in SUFFIXES and name.startswith("_") == own:
                    if name in found:
                        raise StoreUnavailableError(
                            f"{self.url}: {name}.parquet and {name}.csv would be one table; rename one of them"
                        )
                    with suppress(FileNotFoundError):
                        stat = each.stat()
                        found[name] = (suffix, stat.st_mtime_ns, stat.st_size, stat.st_ino)
        return found

    def _path(self, name: str) -> Path:
        """Return a table's file, or where it will be."""
        if name.startswith("_"):
            return self._own / f"{name}.parquet"
        return self.folder / f"{name}{self._seen[name][0] if name in self._seen else self._suffix}"

    def _types(self, name: str) -> Path:
        return self._own / f"{name}.types.json"

    def _refresh(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Load what has changed, with the lock held and outside transactions."""
        files = self._files()
        if files == self._seen:
            return
        raw.begin()  # who reads meanwhile sees the tables as they were, or as they are, and not that one is gone
        try:
            for name in self._seen.keys() - files.keys():
                raw.execute(f"DROP TABLE IF EXISTS {quoted(name)}")
            for name, stamp in files.items():
                if self._seen.get(name) != stamp:
                    self._load(raw, name, stamp)
            raw.commit()
        except BaseException:
            raw.rollback()
            raise
        self._seen = files

    def _load(self, raw: duckdb.DuckDBPyConnection, name: str, stamp: _Stamp) -> None:
        import duckdb  # noqa: PLC0415 - it is loaded

        raw.execute(f"DROP TABLE IF EXISTS {quoted(name)}")
        path = (self._own if name.startswith("_") else self.folder) / f"{name}{stamp[0]}"
        try:
            load(raw, name, path, self._types(name))
        except (duckdb.Error, OSError, ValueError, KeyError) as error:
            raise StoreUnavailableError(f"{self.url}: the file {path} cannot be read as a table: {error}") from error

    # transactions

    def begin(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Take the folder's lock, load what has changed, and begin."""
        from filelock import Timeout  # noqa: PLC0415 - it is loaded

        assert self._lock is not None  # noqa: S101 - `connect` sets it
        try:
            self._lock.acquire(poll_interval=_PAUSE)
        except Timeout as error:
            raise StoreTimeoutError(f"{self.url}: another process has written for {_WAIT:.0f} s") from error
        except OSError as error:
            raise StoreUnavailableError(f"{self.url}: {error}") from error
        try:
            self._journal.carry_out()
            self._refresh(raw)
            self._touched.clear()
            super().begin(raw)
            self._begun = True
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError) and not isinstance(error, AsyncDLError):
                raise StoreUnavailableError(f"{self.url}: {error}") from error
            raise

    def run_statement(self, raw: duckdb.DuckDBPyConnection, statement: Statement) -> Outcome:
        """Run a statement, and remember the table that it changes."""
        found = _CHANGES.match(statement.sql)
        if found is not None:
            self._touched.add(found[1].strip('"').replace('""', '"'))
        return super().run_statement(raw, statement)

    def commit(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Write the files of the tables that were changed, and commit.

        The journal is what decides: once it is there, the files will be what it says, though a rename may fail for now.
        """
        assert self._lock is not None  # noqa: S101 - `connect` sets it
        try:
            renames = [each for name in sorted(self._touched) for each in self._written(raw, name)]
            if renames:
                self._journal.decide(renames)
        except OSError as error:
            raise StoreUnavailableError(f"{self.url}: nothing was written: {error}") from error
        try:
            super().commit(raw)
        except BaseException:
            if self._journal.withdraw():
                raise
            self._seen = {}  # it stands, so memory is to follow the files
        else:
            with suppress(OSError):  # the next to come tries again, before anything else
                self._journal.carry_out()
                files = self._files()
                self._seen = {name: files[name] for name in self._seen.keys() | self._touched if name in files}
        self._begun = False
        self._lock.release()

    def rollback(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Roll back, and let go of the lock."""
        assert self._lock is not None  # noqa: S101 - `connect` sets it
        try:
            super().rollback(raw)
            for name in self._touched:
                for path in (self._path(name), self._types(name)):
                    with suppress(OSError):  # what is left there will be written over
                        self._operations.delete(beside(path))
        finally:
            self._begun = False
            self._lock.release()

    def _written(self, raw: duckdb.DuckDBPyConnection, name: str) -> list[Rename]:
        """Write a table's new file beside the old; return what is to be renamed, and deleted."""
        path, types = self._path(name), self._types(name)
        described = write(raw, name, path, beside(path))
        if described is None:
            return [(path, False), (types, False)]
        self._operations.flush(beside(path))
        if path.suffix != ".csv":
            return [(path, True)]
        self._operations.write(beside(types), described)
        self._operations.flush(beside(types))
        return [(types, True), (path, True)]

    # reading

    async def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one reading statement outside any transaction and return all its rows."""
        await self._look()
        return await super().fetch(sql, params)

    async def stream(self, sql: str, params: Sequence[Any] = (), *, size: int = 1000) -> AsyncIterator[list[Row]]:
        """Run one reading statement and yield its rows in lists of at most ``size``."""
        await self._look()
        async for rows in super().stream(sql, params, size=size):
            yield rows

    async def _look(self) -> None:
        """Have files loaded that have changed."""
        if await self._read(lambda _: self._journal.decided or self._files() != self._seen):
            await self.call_writer(self._catch_up)

    def _catch_up(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Load what has changed, on the writing thread, unless a transaction has: until it ends nobody else changes anything.

        One that waits for the folder's lock has loaded nothing yet, and who writes at that time is another process.
        """
        if not self._begun:
            self.begin(raw)
            self.rollback(raw)
