"""A folder of dataframes: a Parquet file for each table, and DuckDB in memory over them.

A table is loaded when its file is new or has changed (time, size or inode), and its file is written anew, whole, by each
transaction that changes it: under a temporary name, flushed to the disk, then renamed. Where a transaction changes several,
a journal of the renames is written before the first of them: who finds it finishes them. One process writes at a time, by a
lock on a file. What is asyncdl's own, outputs among it, is in the subfolder ``.asyncdl/tables``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdl.drivers.duckdb import DuckDBDatabase
from asyncdl.drivers.sql import Outcome, Row, Statement
from asyncdl.errors import StoreTimeoutError, StoreUnavailableError

if TYPE_CHECKING:
    import duckdb
    from filelock import FileLock

_WAIT = 30.0
_SUFFIX = ".parquet"
_NEW = ".new"
_CHANGES = re.compile(
    r'(?:INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE IF NOT EXISTS|DROP TABLE IF EXISTS) ("(?:[^"]|"")+"|\w+)'
)
_Stamp = tuple[int, int, int]


class FramesDatabase(DuckDBDatabase):
    """The tables of one folder.

    Parameters
    ----------
    folder
        Where the files are; it is made when missing.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(None)
        self.folder = Path(folder)
        self.url = f"frames://{folder}"
        self._own = self.folder / ".asyncdl" / "tables"
        self._journal = self._own / "journal.json"
        self._lock: FileLock | None = None
        self._seen: dict[str, _Stamp] = {}
        self._touched: set[str] = set()

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
                name = each.name.removesuffix(_SUFFIX)
                if name != each.name and name.startswith("_") == own:
                    with suppress(FileNotFoundError):
                        stat = each.stat()
                        found[name] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        return found

    def _path(self, name: str) -> Path:
        return (self._own if name.startswith("_") else self.folder) / f"{name}{_SUFFIX}"

    def _refresh(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Load what has changed, with the lock held and outside transactions."""
        files = self._files()
        if files == self._seen:
            return
        for name in self._seen.keys() - files.keys():
            raw.execute(f"DROP TABLE IF EXISTS {_quoted(name)}")
            del self._seen[name]
        for name, stamp in files.items():
            if self._seen.get(name) != stamp:
                self._load(raw, name)
                self._seen[name] = stamp

    def _load(self, raw: duckdb.DuckDBPyConnection, name: str) -> None:
        import duckdb  # noqa: PLC0415 - it is loaded

        path, table = self._path(name), _quoted(name)
        self._seen.pop(name, None)
        raw.execute(f"DROP TABLE IF EXISTS {table}")
        try:
            said = raw.execute(
                "SELECT decode(value) FROM parquet_kv_metadata(?) WHERE decode(key) = 'asyncdl'", [str(path)]
            ).fetchone()
            source = f"read_parquet({_text(str(path))})"
            if said is not None:
                described = json.loads(said[0])
                columns, key = described["columns"], described["key"]
            else:
                rows = raw.execute(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {source})").fetchall()  # noqa: S608
                columns, key = [list(row) for row in rows], self._guessed_key(raw, source, [row[0] for row in rows])
            parts = [f"{_quoted(column)} {kind}" for column, kind in columns]
            if key:
                parts.append(f"PRIMARY KEY ({', '.join(map(_quoted, key))})")
            raw.execute(f"CREATE TABLE {table} ({', '.join(parts)})")
            names = ", ".join(_quoted(column) for column, _ in columns)
            raw.execute(f"INSERT INTO {table} SELECT {names} FROM {source}")  # noqa: S608 - quoted
        except (duckdb.Error, ValueError, KeyError) as error:
            raw.execute(f"DROP TABLE IF EXISTS {table}")
            raise StoreUnavailableError(f"{self.url}: the file {path} cannot be read as a table: {error}") from error

    @staticmethod
    def _guessed_key(raw: duckdb.DuckDBPyConnection, source: str, names: Sequence[str]) -> list[str]:
        """Return ``["id"]`` where a file of another program has such a column, all of whose values differ."""
        if "id" not in names:
            return []
        sql = f"SELECT count(DISTINCT id) = count(*) FROM {source}"  # noqa: S608 - quoted
        (unique,) = raw.execute(sql).fetchall()[0]
        return ["id"] if unique else []

    # transactions

    def begin(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Take the folder's lock, load what has changed, and begin."""
        from filelock import Timeout  # noqa: PLC0415 - it is loaded

        assert self._lock is not None  # noqa: S101 - `connect` sets it
        try:
            self._lock.acquire()
        except Timeout as error:
            raise StoreTimeoutError(f"{self.url}: another process has written for {_WAIT:.0f} s") from error
        except OSError as error:
            raise StoreUnavailableError(f"{self.url}: {error}") from error
        try:
            self._finish_renames()
            self._refresh(raw)
            self._touched.clear()
            super().begin(raw)
        except BaseException:
            self._lock.release()
            raise

    def run_statement(self, raw: duckdb.DuckDBPyConnection, statement: Statement) -> Outcome:
        """Run a statement, and remember the table that it changes."""
        found = _CHANGES.match(statement.sql)
        if found is not None:
            self._touched.add(found[1].strip('"').replace('""', '"'))
        return super().run_statement(raw, statement)

    def commit(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Write the files of the tables that were changed, and commit."""
        assert self._lock is not None  # noqa: S101 - `connect` sets it
        try:
            renames = [self._written(raw, name) for name in sorted(self._touched)]
            if renames:
                self._put_journal(renames)
        except OSError as error:
            raise StoreUnavailableError(f"{self.url}: nothing was written: {error}") from error
        super().commit(raw)
        try:
            if renames:
                self._finish_renames()
                files = self._files()
                self._seen = {name: files.get(name, (0, 0, 0)) for name in self._seen.keys() | self._touched}
                self._seen = {name: stamp for name, stamp in self._seen.items() if stamp != (0, 0, 0)}
        finally:
            self._lock.release()

    def rollback(self, raw: duckdb.DuckDBPyConnection) -> None:
        """Roll back, and let go of the lock."""
        assert self._lock is not None  # noqa: S101 - `connect` sets it
        try:
            super().rollback(raw)
            for name in self._touched:
                self._path(name).with_suffix(_NEW).unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _written(self, raw: duckdb.DuckDBPyConnection, name: str) -> tuple[str, bool]:
        """Write a table's new file beside the old; return its name, and whether there is a table still."""
        columns = raw.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index", [name]
        ).fetchall()
        if not columns:
            return name, False
        key = raw.execute(
            "SELECT constraint_column_names FROM duckdb_constraints() "
            "WHERE table_name = ? AND constraint_type = 'PRIMARY KEY'",
            [name],
        ).fetchone()
        described = json.dumps({"columns": columns, "key": key[0] if key else []})
        # Parquet would cut intervals to milliseconds
        shown = ", ".join(
            f"CAST({_quoted(column)} AS VARCHAR) AS {_quoted(column)}" if kind == "INTERVAL" else _quoted(column)
            for column, kind in columns
        )
        path = self._path(name).with_suffix(_NEW)
        raw.execute(
            f"COPY (SELECT {shown} FROM {_quoted(name)}) TO {_text(str(path))} "  # noqa: S608 - quoted
            f"(FORMAT parquet, KV_METADATA {{asyncdl: {_text(described)}}})"
        )
        _flush(path)
        return name, True

    def _put_journal(self, renames: Sequence[tuple[str, bool]]) -> None:
        path = self._journal.with_suffix(_NEW)
        path.write_text(json.dumps(renames))
        _flush(path)
        path.replace(self._journal)
        _flush(self._own)

    def _finish_renames(self) -> None:
        """Do what the journal says, which may be half done; idempotent."""
        try:
            renames = json.loads(self._journal.read_text())
        except FileNotFoundError:
            return
        for name, there in renames:
            path = self._path(name)
            if not there:
                path.unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):  # renamed before
                path.with_suffix(_NEW).replace(path)
        _flush(self.folder)
        self._journal.unlink()

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
        """Have files loaded that have changed; while a transaction is open here, nobody else changes them."""
        if not self._turn.locked() and await self._read(lambda _: self._files()) != self._seen:
            async with self.transaction() as tx:
                await tx.run()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
