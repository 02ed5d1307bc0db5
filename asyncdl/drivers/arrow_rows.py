"""Rows out of Arrow."""

from __future__ import annotations

from typing import Any

from asyncdl.drivers.sql import Row


def rows_of(table: Any) -> list[Row]:
    """Return the rows of an Arrow table or batch."""
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


class Pages:
    """Cuts a stream of Arrow batches into pages of rows."""

    def __init__(self, reader: Any, size: int) -> None:
        self._reader = reader
        self._size = size
        self._rows: list[Row] = []

    def next(self) -> list[Row]:
        """Return the next page; one that is not full is the last."""
        while len(self._rows) < self._size:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                break
            self._rows += rows_of(batch)
        page, self._rows = self._rows[: self._size], self._rows[self._size :]
        return page
