"""The conformance suite of databackends: a listener's work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from asyncdl.databackend.base import DataBackend, Key, Outputs, OutputTable, Row, TableSchema, WriteRequest
from asyncdl.errors import DatatypeError, UnknownColumnError
from asyncdl.testing.databackend import RowTests

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


class DataBackendTests(RowTests):
    """What every databackend must do."""

    async def put(
        self,
        backend: DataBackend,
        table: OutputTable,
        *results: Output,
        as_of: int = 1,
        replaced: Sequence[Key] | None = None,
    ) -> None:
        """Write outputs in a transaction of their own, into a table that is made when missing."""
        async with backend.transaction() as tx:
            await backend.create_outputs(table, tx)
            columns = Outputs(
                list(zip(*(each.key for each in results), strict=True)),
                [each.value for each in results],
                {at: each.error for at, each in enumerate(results) if each.error is not None},
            )
            await backend.put_outputs(table, columns, as_of=as_of, replaced=replaced, tx=tx)

    async def stored(self, backend: DataBackend, table: OutputTable) -> list[tuple[Any, ...]]:
        """Return the outputs as queries see them, sorted."""
        identifier = table.identifier
        rows = await self.read(backend, self.joined("t", identifier), {identifier: table})
        own = [table.position] if table.flatten else []
        return sorted(tuple(row[name] for name in ("id", *own, identifier)) for row in rows)

    async def fill(self, backend: DataBackend, count: int = 5) -> None:
        """Insert rows 0, 1, ... with a text each."""
        await self.write(backend, "insert", "t", *({"id": at, "text": "x" * at} for at in range(count)))

    # reading

    async def test_pages_are_in_order_and_without_gaps(self, backend: DataBackend) -> None:
        rows = [{"id": at * 7919 % 100_003, "text": str(at)} for at in range(100_000)]
        await self.write(backend, "insert", "t", *rows)
        select, found = self.pick("t", "id", "text"), []
        await self.put(backend, LENGTH, *(Output((at,), 1) for at in range(0, 100_003, 10)))
        after = None
        while page := await backend.scan(select, {}, ["text"], after=after, limit=9999, missing=LENGTH):
            found += page
            after = page[-1][:1]
        expected = sorted((row["id"], row["text"]) for row in rows if row["id"] % 10)  # type: ignore[operator]
        assert found == expected
        assert await backend.count_missing(select, {}, LENGTH) == len(expected)
        assert await backend.count_missing(select, {}, None) == 100_000

    async def test_pages_of_composite_keys(self, backend: DataBackend) -> None:
        async with backend.transaction() as tx:
            await backend.create_table(TableSchema("t", {"a": "string", "b": "int64", "v": "float64"}, ("a", "b")), tx)
        keys = [(a, b) for a in ("x", "y", "z") for b in range(10)]
        await self.write(backend, "insert", "t", *({"a": a, "b": b, "v": b / 2} for a, b in reversed(keys)))
        await self.put(backend, PAIR, Output(("x", 3), 1.0), Output(("y", 9), None, '{"type":"E"}'))
        select, found = self.table("t"), []
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

    async def test_fetching_rows_by_id(self, backend: DataBackend) -> None:
        big = [2**53 + at for at in range(3000)]
        await self.write(backend, "insert", "t", *({"id": at, "text": str(at)} for at in big))
        found = await backend.fetch(self.pick("t", "id", "text"), {}, ["text"], [*big[:2500:2], 5])
        assert sorted(found) == [(at, str(at)) for at in big[:2500:2]]
        assert await backend.fetch(self.pick("t", "id", "text"), {}, ["text"], []) == []

    async def test_fetching_by_odd_ids(self, backend: DataBackend) -> None:
        ids = ["", "a\0b", "'", "🙂", "a,b"]
        await self.write(backend, "insert", "t", *({"id": each, "n": at} for at, each in enumerate(ids)))
        found = await backend.fetch(self.table("t"), {}, ["n"], ids[1:4])
        assert sorted(found) == sorted(zip(ids[1:4], range(1, 4), strict=True))

    async def test_a_column_that_the_select_lacks(self, backend: DataBackend) -> None:
        await self.fill(backend)
        with pytest.raises(UnknownColumnError, match="text"):
            await backend.scan(self.pick("t", "id"), {}, ["text"], after=None, limit=1, missing=None)

    # outputs

    async def test_outputs_join_their_rows(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, LENGTH, *(Output((at,), at) for at in range(1, 4)), Output((4,), None, '{"type":"E"}'))
        assert await self.stored(backend, LENGTH) == [(1, 1), (2, 2), (3, 3)]
        assert await backend.count_missing(self.table("t"), {}, LENGTH) == 1
        assert await backend.failed(LENGTH) == [(4, '{"type":"E"}')]
        assert await backend.tables() == ["t"]

    async def test_an_older_output_never_overwrites_a_newer(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, LENGTH, Output((1,), 20), as_of=20)
        await self.put(backend, LENGTH, Output((1,), 10), Output((2,), 10), as_of=10)
        assert await self.stored(backend, LENGTH) == [(1, 20), (2, 10)]
        await self.put(backend, LENGTH, Output((1,), 21), as_of=20)
        await self.put(backend, LENGTH, as_of=10, replaced=[1, 2])
        assert await self.stored(backend, LENGTH) == [(1, 21)]
        assert await backend.current(LENGTH, [1, 2, 3], 20) == {1}
        assert await backend.current(LENGTH, [1], 21) == set()

    async def test_an_error_gives_way_to_an_output(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, LENGTH, Output((1,), None, "{}"))
        await self.put(backend, LENGTH, Output((1,), None), as_of=2)
        assert await backend.failed(LENGTH) == []
        assert await self.stored(backend, LENGTH) == [(1, None)]

    async def test_a_flattened_list_is_replaced_as_a_whole(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(
            backend, WORDS, Output((1,), ["a", "b", "c"]), Output((2,), []), Output((3,), None, "{}"), as_of=5
        )
        assert await self.stored(backend, WORDS) == [(1, 0, "a"), (1, 1, "b"), (1, 2, "c")]
        assert await backend.count_missing(self.table("t"), {}, WORDS) == 2
        await self.put(backend, WORDS, Output((1,), ["x"]), as_of=6, replaced=[1])
        assert await self.stored(backend, WORDS) == [(1, 0, "x")]
        await self.put(backend, WORDS, Output((1,), ["old", "older"]), as_of=5, replaced=[1])
        assert await self.stored(backend, WORDS) == [(1, 0, "x")]
        await self.put(backend, WORDS, Output((3,), ["now"]), Output((1,), []), as_of=7)
        assert await self.stored(backend, WORDS) == [(3, 0, "now")]
        assert await backend.failed(WORDS) == []
        assert await backend.current(WORDS, [1, 2, 3], 7) == {1, 3}

    async def test_outputs_of_outputs(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, WORDS, Output((1,), ["a", "b"]), Output((2,), ["c"]))
        select, outputs = self.joined("t", "words"), {"words": WORDS}
        rows = await backend.scan(select, outputs, ["words"], after=None, limit=10, missing=None)
        assert rows == [(1, 0, "a"), (1, 1, "b"), (2, 0, "c")]
        await self.put(backend, CHAINED, *(Output(row[:2], row[2].upper()) for row in rows))
        assert await backend.count_missing(select, outputs, CHAINED) == 0
        assert sorted(await backend.fetch(select, outputs, ["words"], [1])) == [(1, 0, "a"), (1, 1, "b")]
        await self.put(backend, WORDS, Output((1,), ["z"]), as_of=2, replaced=[1])
        async with backend.transaction() as tx:
            assert await backend.sweep(select, outputs, CHAINED, ids=[1], tx=tx) == [1]
        await self.put(backend, CHAINED, Output((1, 0), "Z"), as_of=2, replaced=[1])
        both = self.joined("t", "words", "upper")
        found = await self.read(backend, both, {"words": WORDS, "upper": CHAINED})
        assert sorted((row["id"], row["words"], row["upper"]) for row in found) == [(1, "z", "Z"), (2, "c", "C")]

    async def test_sweeping_deletes_what_has_no_row(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, LENGTH, *(Output((at,), at) for at in range(5)))
        await self.write(backend, "delete", "t", where=self.where("t", "id", "<", 3))
        async with backend.transaction() as tx:
            assert await backend.sweep(self.table("t"), {}, LENGTH, ids=[1, 4], tx=tx) == [1]
        async with backend.transaction() as tx:
            await backend.write(WriteRequest("delete", "t", where=self.where("t", "id", "==", 3)), {}, tx)
            assert sorted(await backend.sweep(self.table("t"), {}, LENGTH, ids=None, tx=tx)) == [0, 2, 3]
        assert await self.stored(backend, LENGTH) == [(4, 4)]

    async def test_a_value_that_does_not_fit_is_told_before_anything_is_written(self, backend: DataBackend) -> None:
        await self.fill(backend)
        with pytest.raises(DatatypeError, match=r"length.*\(2,\)"):
            await self.put(backend, LENGTH, Output((1,), 1), Output((2,), "two"))
        assert isinstance(backend.encode_error(LENGTH, "two"), DatatypeError)
        assert backend.encode_error(LENGTH, 2) is None
        await self.put(backend, LENGTH, Output((1,), 1))
        assert await self.stored(backend, LENGTH) == [(1, 1)]

    async def test_dropping_outputs(self, backend: DataBackend) -> None:
        await self.fill(backend)
        await self.put(backend, LENGTH, Output((1,), 1))
        for _ in range(2):
            async with backend.transaction() as tx:
                await backend.drop_outputs(LENGTH, tx)
        await self.put(backend, LENGTH)
        assert await self.stored(backend, LENGTH) == []

    async def test_many_ids_at_once(self, backend: DataBackend) -> None:
        await self.fill(backend, 5000)
        await self.put(backend, LENGTH, *(Output((at,), at) for at in range(0, 5000, 2)))
        assert await backend.current(LENGTH, range(5000), 1) == set(range(0, 5000, 2))
        await self.write(backend, "delete", "t", where=self.where("t", "id", "<", 4000))
        async with backend.transaction() as tx:
            gone = await backend.sweep(self.table("t"), {}, LENGTH, ids=range(5000), tx=tx)
        assert sorted(gone) == list(range(0, 4000, 2))

    async def test_an_output_that_is_not_known_yet(self, backend: DataBackend) -> None:
        await self.fill(backend)
        unknown = OutputTable("_outputs_later", "later", ("id",), {"id": "int64"}, None)
        query = self.joined("t", "later")
        assert await self.read(backend, query, {"later": unknown}) == []
        assert await backend.failed(unknown) == []
