"""The files of a folder of dataframes: several of them are replaced together, or none is.

New files are written beside the old and flushed. Then a journal of the renames is put into place, and that is the moment from
which the change has been made: whoever finds a journal does what it says, as often as it takes, before anything else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_NEW = ".new"

Rename = tuple[Path, bool]
"""A file, and whether there is to be one: then its new content is beside it, else it is deleted."""


class FileOperations:
    """What is done to files, one operation each: a place for faults in tests."""

    def write(self, path: Path, text: str) -> None:
        """Write a text."""
        path.write_text(text, encoding="utf-8")

    def flush(self, path: Path) -> None:
        """Have a file, or a folder's entries, on the disk."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, path: Path, to: Path) -> None:
        """Give a file the place of another."""
        path.replace(to)

    def delete(self, path: Path) -> None:
        """Delete a file, if it is there."""
        path.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """Return where a file's new content is until it takes its place."""
    return path.with_suffix(_NEW) if path.suffix == ".parquet" else path.with_name(path.name + _NEW)


class Journal:
    """Replaces files together.

    Parameters
    ----------
    folder
        Where the tables' files are.
    own
        Where those of asyncdl's own are, and the journal.
    """

    def __init__(self, folder: Path, own: Path, operations: FileOperations) -> None:
        self._folder = folder
        self._own = own
        self._path = own / "journal.json"
        self._operations = operations

    def decide(self, renames: Sequence[Rename]) -> None:
        """Have files replaced, whose new content is beside them: from now on that is done, even if it is not done yet.

        Raises
        ------
        OSError
            It is not, and will not be.
        """
        new = self._path.with_suffix(_NEW)
        try:
            for folder in (self._folder, self._own):
                self._operations.flush(folder)
            entries = [[os.path.relpath(path, self._folder), there] for path, there in renames]
            self._operations.write(new, json.dumps(entries))
            self._operations.flush(new)
            self._operations.rename(new, self._path)
            self._operations.flush(self._own)
        except OSError:
            if not self.withdraw():
                return
            raise

    @property
    def decided(self) -> bool:
        """Whether something has been decided that is not known to be done."""
        return self._path.exists()

    def withdraw(self) -> bool:
        """Take a decision back, if that is possible; return whether there is none any more."""
        with suppress(OSError):
            self._operations.delete(self._path)
        return not self.decided

    def carry_out(self) -> None:
        """Do what was decided, which may be half done; raises `OSError`, and then it is still to be done."""
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        for name, there in entries:
            path = self._of(name)
            if not there:
                self._operations.delete(path)
            elif (new := beside(path)).exists():  # else it was renamed before
                self._operations.rename(new, path)
        for folder in (self._folder, self._own):
            self._operations.flush(folder)
        self._operations.delete(self._path)

    def _of(self, name: str) -> Path:
        if Path(name).suffix:
            return self._folder / name
        # as asyncdl wrote it before it knew other files than Parquet
        return (self._own if name.startswith("_") else self._folder) / f"{name}.parquet"
