"""The conformance suite of databackends: a listener's work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.tables import Key, Outputs, OutputTable, Row, TableSchema
from asyncdl.errors import DatatypeError, DuplicateKeyError, UnknownColumnError
from asyncdl.testing.databackend import RowTests
from asyncdl.testing.databackend_documents import DocumentTests
from asyncdl.testing.databackend_hooks import BackendHooks
from asyncdl.testing.databackend_moving import MovingTests
from asyncdl.testing.databackend_tables import TableTests

LENGTH = OutputTable("_outputs_length", "length", ("id",), {"id": "int64"}, "int64")
WORDS = OutputTable("_outputs_words", "words", ("id",), {"id": "int64"}, "string", flatten=True)
CHAINED = OutputTable(
    "_outputs_upper", "upper", ("id",), {"id": "int64", "words_position": "int64"}, "string", flatten=False
)
PAIR = OutputTable("_outputs_pair", "pair", ("a", "b"), {"a": "string", "b": "int64"}, "float64")


class Output(NamedTuple):
    """One row's result."""

    key: Row
    value: Any
    error: str | None = None


class OutputTests(BackendHooks):
    """Scans, and outputs of listeners."""

    @property
    def length(self) -> OutputTable:
        """A listener's outputs."""
        return self.language.outputs(LENGTH)

    @property
    def words(self) -> OutputTable:
        """The outputs of a listener that flattens."""
        return self.language.outputs(WORDS)

    @property
    def upper(self) -> OutputTable:
        """The outputs of a listener to those."""
        return self.language.outputs(CHAINED)

    async def put(
        self,
        backend: DataBackend,
        table: OutputTable,
        *results: Output,
        as_of: int = 1,
        replaced: Sequence[Key] | None = None,
        new: bool = False,
    ) -> None:
        """Write outputs in a transaction of their own, into a table that is made when missing."""
        async with backend.transaction() as tx:
            await backend.create_outputs(table, tx)
            columns = Outputs(
                list(zip(*(each.key for each in results), strict=True)),
                [each.value for each in results],
                {at: each.error for at, each in enumerate(results) if each.error is not None},
                new,
            )
            await backend.put_outputs(table, columns, as_of=as_of, replaced=replaced, tx=tx)

    async def stored(self, backend: DataBackend, table: OutputTable) -> list[tuple[Any, ...]]:
        """Return the outputs as queries see them, sorted."""
        identifier = table.identifier
        rows = await self.read(backend, self.language.joined("t", identifier), {identifier: table})
        own = [table.position] if table.flatten else []
        return sorted(tuple(row[name] for name in ("id", *own, identifier)) for row in rows)

    async def fill(self, backend: DataBackend, count: int = 5) -> None:
        """Insert rows 0, 1, ... with a text each."""
        await self.insert(backend, "t", *({"id": at, "text": "x" * at} for at in range(count)))

    # reading

    async def test_pages_are_in_order_and_without_gaps(self, backend: DataBackend) -> None:
        rows = [{"id": at * 7919 % 100_003, "text": str(at)} for at in range(100_000)]
        await self.insert(backend, "t", *rows)
        select, found = self.language.pick("t", "id", "text"), []
        await self.put(backend, self.length, *(Output((at,), 1) for at in range(0, 100_003, 10)))
        after = None
        while page := await backend.scan(select, {}, ["text"], after=after, limit=9999, missing=self.length):
            found += page
            after = page[-1][:1]
        expected = sorted((row["id"], row["text"]) for row in rows if row["id"] % 10)  # type: ignore[operator]
        assert found == expected
        assert await backend.count_missing(select, {}, self.length) == len(expected)
        assert await backend.count_missing(select, {}, None) == 100_000

    async def test_fetching_rows_by_id(self, backend: DataBackend) -> None:
        big = [2**53 + at for at in range(3000)]
        await self.insert(backend, "t", *({"id": at, "text": str(at)} for at in big))
        found = await backend.fetch(self.language.pick("t", "id", "text"), {}, ["text"], [*big[:2500:2], 5])
        assert sorted(found) == [(at, str(at)) for at in big[:2500:2]]
        assert await backend.fetch(self.language.pick("t", "id", "text"), {}, ["text"], []) == []

    async def test_fetching_by_odd_ids(self, backend: DataBackend) -> None:
        ids = ["", "a\0b", "'", "🙂", "a,b"]
        await self.insert(backend, "t", *({"id": each, "n": at} for at, each in enumerate(ids)))
        found = await backend.fetch(self.language.table("t"), {}, ["n"], ids[1:4])
        assert sorted(found) == sorted(zip(ids[1:4], range(1, 4), strict=True))

    # outputs

    async def test_outputs_join_their_rows(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(
            backend, self.length, *(Output((at,), at) for at in range(1, 4)), Output((4,), None, '{"type":"E"}')
        )
        assert await self.stored(backend, self.length) == [(1, 1), (2, 2), (3, 3)]
        assert await backend.count_missing(self.language.table("t"), {}, self.length) == 1
        assert await backend.failed(self.length) == [(4, '{"type":"E"}')]
        assert await backend.tables() == ["t"]

    async def test_an_older_output_never_overwrites_a_newer(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, self.length, Output((1,), 20), as_of=20)
        await self.put(backend, self.length, Output((1,), 10), Output((2,), 10), as_of=10)
        assert await self.stored(backend, self.length) == [(1, 20), (2, 10)]
        await self.put(backend, self.length, Output((1,), 21), as_of=20)
        await self.put(backend, self.length, as_of=10, replaced=[1, 2])
        assert await self.stored(backend, self.length) == [(1, 21)]
        assert await backend.current(self.length, [1, 2, 3], 20) == {1}
        assert await backend.current(self.length, [1], 21) == set()

    async def test_outputs_that_are_not_as_new_as_said_are_refused_whole_or_written_as_ever(
        self, backend: DataBackend
    ) -> None:
        await self.fill(backend)
        await self.put(backend, self.length, Output((1,), 10), Output((2,), None, "{}"), as_of=10, new=True)
        assert await self.stored(backend, self.length) == [(1, 10)]
        assert await backend.failed(self.length) == [(2, "{}")]
        try:
            await self.put(backend, self.length, Output((1,), 5), Output((3,), 5), as_of=5, new=True)
        except DuplicateKeyError:
            assert await self.stored(backend, self.length) == [(1, 10)]
        else:
            assert await self.stored(backend, self.length) == [(1, 10), (3, 5)]

    async def test_an_error_gives_way_to_an_output(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, self.length, Output((1,), None, "{}"))
        await self.put(backend, self.length, Output((1,), None), as_of=2)
        assert await backend.failed(self.length) == []
        assert await self.stored(backend, self.length) == [(1, None)]

    async def test_a_flattened_list_is_replaced_as_a_whole(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(
            backend, self.words, Output((1,), ["a", "b", "c"]), Output((2,), []), Output((3,), None, "{}"), as_of=5
        )
        assert await self.stored(backend, self.words) == [(1, 0, "a"), (1, 1, "b"), (1, 2, "c")]
        assert await backend.count_missing(self.language.table("t"), {}, self.words) == 2
        await self.put(backend, self.words, Output((1,), ["x"]), as_of=6, replaced=[1])
        assert await self.stored(backend, self.words) == [(1, 0, "x")]
        await self.put(backend, self.words, Output((1,), ["old", "older"]), as_of=5, replaced=[1])
        assert await self.stored(backend, self.words) == [(1, 0, "x")]
        await self.put(backend, self.words, Output((3,), ["now"]), Output((1,), []), as_of=7)
        assert await self.stored(backend, self.words) == [(3, 0, "now")]
        assert await backend.failed(self.words) == []
        assert await backend.current(self.words, [1, 2, 3], 7) == {1, 3}

    async def test_outputs_of_outputs(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, self.words, Output((1,), ["a", "b"]), Output((2,), ["c"]))
        select, outputs = self.language.joined("t", "words"), {"words": self.words}
        rows = await backend.scan(select, outputs, ["words"], after=None, limit=10, missing=None)
        assert rows == [(1, 0, "a"), (1, 1, "b"), (2, 0, "c")]
        await self.put(backend, self.upper, *(Output(row[:2], row[2].upper()) for row in rows))
        assert await backend.count_missing(select, outputs, self.upper) == 0
        assert sorted(await backend.fetch(select, outputs, ["words"], [1])) == [(1, 0, "a"), (1, 1, "b")]
        await self.put(backend, self.words, Output((1,), ["z"]), as_of=2, replaced=[1])
        async with backend.transaction() as tx:
            assert await backend.sweep(select, outputs, self.upper, ids=[1], tx=tx) == [1]
        await self.put(backend, self.upper, Output((1, 0), "Z"), as_of=2, replaced=[1])
        both = self.language.joined("t", "words", "upper")
        found = await self.read(backend, both, {"words": self.words, "upper": self.upper})
        assert sorted((row["id"], row["words"], row["upper"]) for row in found) == [(1, "z", "Z"), (2, "c", "C")]

    async def test_sweeping_deletes_what_has_no_row(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, self.length, *(Output((at,), at) for at in range(5)))
        await self.delete(backend, "t", ("id", "<", 3))
        async with backend.transaction() as tx:
            assert await backend.sweep(self.language.table("t"), {}, self.length, ids=[1, 4], tx=tx) == [1]
        async with backend.transaction() as tx:
            await backend.write(self.language.delete("t", ("id", "==", 3)), {}, tx)
            assert sorted(await backend.sweep(self.language.table("t"), {}, self.length, ids=None, tx=tx)) == [0, 2, 3]
        assert await self.stored(backend, self.length) == [(4, 4)]

    async def test_a_value_that_does_not_fit_is_told_before_anything_is_written(self, backend: DataBackend) -> None:
        await self.fill(backend)
        with pytest.raises(DatatypeError, match=r"length.*\(2,\)"):
            await self.put(backend, self.length, Output((1,), 1), Output((2,), "two"))
        assert isinstance(backend.encode_error(self.length, "two"), DatatypeError)
        assert backend.encode_error(self.length, 2) is None
        await self.put(backend, self.length, Output((1,), 1))
        assert await self.stored(backend, self.length) == [(1, 1)]

    async def test_dropping_outputs(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, self.length, Output((1,), 1))
        for _ in range(2):
            async with backend.transaction() as tx:
                await backend.drop_outputs(LENGTH, tx)
        await self.put(backend, self.length)
        assert await self.stored(backend, self.length) == []

    async def test_many_ids_at_once(self, backend: DataBackend) -> None:
        await self.fill(backend, 5000)
        await self.put(backend, self.length, *(Output((at,), at) for at in range(0, 5000, 2)))
        assert await backend.current(self.length, range(5000), 1) == set(range(0, 5000, 2))
        await self.delete(backend, "t", ("id", "<", 4000))
        async with backend.transaction() as tx:
            gone = await backend.sweep(self.language.table("t"), {}, self.length, ids=range(5000), tx=tx)
        assert sorted(gone) == list(range(0, 4000, 2))

    async def test_an_output_that_is_not_known_yet(self, backend: DataBackend) -> None:
        await self.fill(backend)
        unknown = self.language.outputs(OutputTable("_outputs_later", "later", ("id",), {"id": "int64"}, None))
        query = self.language.joined("t", "later")
        assert await self.read(backend, query, {"later": unknown}) == []
        assert await backend.failed(unknown) == []


class TableOutputTests(OutputTests):
    """The same of tables, whose keys may have several columns."""

    async def test_pages_of_composite_keys(self, backend: DataBackend) -> None:
        await self.create(backend, TableSchema("t", {"a": "string", "b": "int64", "v": "float64"}, ("a", "b")))
        keys = [(a, b) for a in ("x", "y", "z") for b in range(10)]
        await self.insert(backend, "t", *({"a": a, "b": b, "v": b / 2} for a, b in reversed(keys)))
        await self.put(backend, PAIR, Output(("x", 3), 1.0), Output(("y", 9), None, '{"type":"E"}'))
        select, found = self.language.table("t"), []
        after = None
        while page := await backend.scan(select, {}, ["v"], after=after, limit=7, missing=PAIR):
            found += page
            after = page[-1][:2]
        assert found == [(a, b, b / 2) for a, b in keys if (a, b) not in {("x", 3), ("y", 9)}]
        rows = await backend.fetch(select, {}, ["v"], [("x", 1), ("z", 9), ("no", 1)])
        assert sorted(rows) == [("x", 1, 0.5), ("z", 9, 4.5)]
        assert await backend.current(PAIR, [("x", 3), ("x", 4)], 1) == {("x", 3)}
        assert await backend.failed(PAIR) == [(("y", 9), '{"type":"E"}')]
        await self.put(backend, PAIR, replaced=[("x", 3)], as_of=2)
        assert await backend.current(PAIR, [("x", 3)], 1) == set()

    async def test_a_column_that_the_select_lacks(self, backend: DataBackend) -> None:
        await self.fill(backend)
        with pytest.raises(UnknownColumnError, match="text"):
            await backend.scan(self.language.pick("t", "id"), {}, ["text"], after=None, limit=1, missing=None)


class DataBackendTests(RowTests, TableTests, TableOutputTests, MovingTests):
    """What every databackend of tables must do."""


class DocumentBackendTests(RowTests, DocumentTests, OutputTests, MovingTests):
    """What every databackend of documents must do."""
