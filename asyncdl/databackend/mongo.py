"""MongoDB as a databackend: documents, queried in MongoDB's own language."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from asyncdl.databackend.base import DataBackend
from asyncdl.databackend.documents import DocumentPlan
from asyncdl.databackend.mongo_moving import MongoMover
from asyncdl.databackend.mongo_outputs import MongoOutputs, hashed
from asyncdl.databackend.mongo_scan import MongoScanner
from asyncdl.databackend.mongo_values import MongoValues
from asyncdl.databackend.mongo_writes import MongoWriter, check_request
from asyncdl.databackend.requests import ReadQuery, RowChanges, Written
from asyncdl.databackend.tables import ANY, MISSING_KEY, Key, Outputs, OutputTable, Row, TableSchema
from asyncdl.datatypes import Datatypes
from asyncdl.drivers.elsewhere import Elsewhere
from asyncdl.drivers.mongo import MongoDatabase
from asyncdl.drivers.mongo_documents import MongoDocuments
from asyncdl.drivers.mongo_stream import changes
from asyncdl.drivers.mongo_units import MongoUnit, prepare_marks, retrying, unit
from asyncdl.errors import ClosedError, QueryError, TableNotFoundError
from asyncdl.names import check_column, check_table

T = TypeVar("T")

KEY = "_id"
TABLES = "_asyncdl_tables"
_HIDDEN = ("_asyncdl", "_outputs_", "system.")
_FILES = (".files", ".chunks")
_INTERVAL = 1.0


class MongoCatalog:
    """What a query is built on: where outputs are. Documents themselves need no schema."""

    def __init__(self, outputs: Mapping[str, OutputTable]) -> None:
        self._outputs = outputs

    def table(self, name: str) -> str:
        """Return a collection's name."""
        return name

    def primary_key(self, name: str) -> tuple[str, ...]:
        """Return what identifies the documents of any collection."""
        return (KEY,)

    def outputs(self, identifier: str) -> OutputTable:
        """Return a listener's output table."""
        return self._outputs[identifier]

    def outputs_table(self, identifier: str) -> str | None:
        """Return the name of its collection, None while there is none."""
        output = self._outputs[identifier]
        return None if output.datatype is None else output.name


class MongoDataBackend(DataBackend):
    """The user's documents in a MongoDB database.

    On a replica set a write, and the events about it where the metadata store is in the same database, are one transaction.
    A standalone server has none: a write that fails half-way leaves what it had written.

    Parameters
    ----------
    database
        The database; metadata and artifact stores may share it.
    datatypes
        How asyncdl's own datatypes become bytes.
    """

    language: Literal["ibis", "mongodb"] = "mongodb"
    tables_with_rows = False

    def __init__(self, database: MongoDatabase, datatypes: Datatypes) -> None:
        self.database = database
        self.url = database.url
        self.datatypes = datatypes
        self._values = MongoValues(datatypes)
        self._documents = MongoDocuments(database)
        self._writer = MongoWriter(self._documents, self._values)
        self._mover = MongoMover(self._documents, self._values)
        self._declared: dict[str, TableSchema] = {}
        self._making: WeakKeyDictionary[MongoUnit, dict[str, TableSchema]] = WeakKeyDictionary()
        self._looked = -_INTERVAL
        self._looking = asyncio.Lock()
        self._open = False

    @property
    def atomic(self) -> bool:
        """Whether a transaction that fails leaves nothing."""
        return self.database.transactional

    async def open(self) -> None:
        """Connect."""
        if not self._open:
            await self.database.open()
            try:
                if self.database.transactional:
                    await prepare_marks(self.database)
            except BaseException:
                await self.database.aclose()
                raise
            self._open, self._looked, self._looking = True, -_INTERVAL, asyncio.Lock()

    async def aclose(self) -> None:
        """Close what `open` opened."""
        if self._open:
            self._open = False
            await self.database.aclose()

    def _check_open(self) -> None:
        if not self._open:
            raise ClosedError(f"the databackend {self.url} is not open")

    def elsewhere(self) -> Callable[[Datatypes], DataBackend]:
        """Return what makes this databackend in another process."""
        return partial(_on, self.database.elsewhere())

    def transaction(self) -> AbstractAsyncContextManager[MongoUnit]:
        """Begin a unit of work."""
        self._check_open()
        return unit(self.database)

    async def retrying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run what makes a transaction, again when the server undid it."""
        return await retrying(attempt)

    # collections

    async def tables(self) -> list[str]:
        """Return the names of the user's collections and views."""
        self._check_open()
        names = await self._documents.names()
        return [name for name in names if not name.startswith(_HIDDEN) and not name.endswith(_FILES)]

    async def schema(self, table: str) -> TableSchema | None:
        """Return what is declared of a collection; one that is not there yet may have any documents, too."""
        found = (await self._schemas()).get(table)
        return found or TableSchema(table, {KEY: ANY}, (KEY,), open=True)

    async def _schemas(self) -> dict[str, TableSchema]:
        self._check_open()
        if time.monotonic() - self._looked >= _INTERVAL:
            async with self._looking:  # one looks for all who ask at that moment
                if time.monotonic() - self._looked >= _INTERVAL:
                    await self._look()
        return self._declared

    async def _look(self) -> None:
        rows = await self._documents.find(TABLES, {})
        self._declared = {
            row[KEY]: TableSchema(row[KEY], {KEY: ANY, **dict(row["columns"])}, (KEY,), open=True) for row in rows
        }
        self._looked = time.monotonic()

    async def _columns(self, table: str, tx: MongoUnit | None = None) -> Mapping[str, str]:
        found = None if tx is None else self._making.get(tx, {}).get(table)
        found = found or (await self._schemas()).get(table)
        return {} if found is None else found.columns

    def as_made(self, schema: TableSchema) -> TableSchema:
        """Return a declared table as it is here: its documents are identified by ``_id``, and may have other keys, too."""
        if schema.primary_key not in {(MISSING_KEY,), (KEY,)}:
            raise QueryError(
                f"{schema.name!r}: on MongoDB documents are identified by _id, not by {schema.primary_key}"
            )
        own = {KEY, MISSING_KEY} if schema.primary_key == (MISSING_KEY,) else {KEY}
        columns = {name: datatype for name, datatype in schema.columns.items() if name not in own}
        return TableSchema(schema.name, {KEY: ANY, **columns}, (KEY,), open=True)

    async def create_table(self, schema: TableSchema, tx: MongoUnit) -> None:
        """Create a collection, if there is none of that name, and note what is declared of it."""
        made = self.as_made(schema)
        check_table(made.name)
        columns = [[name, datatype] for name, datatype in made.columns.items() if name != KEY]
        for name, _ in columns:
            check_column(name)
        await self._documents.create(made.name)
        row = {KEY: made.name, "columns": columns}
        tx.defer(lambda session: self._documents.put_declared(TABLES, row, session))
        tx.afterwards(lambda _: self._look_again())
        self._making.setdefault(tx, {})[made.name] = made

    async def drop_table(self, name: str, tx: MongoUnit) -> None:
        """Drop a collection, if there is one."""
        tx.defer(lambda session: self._documents.delete(TABLES, {KEY: name}, session))
        tx.afterwards(lambda _: self._look_again())
        tx.afterwards(lambda _: self._documents.drop(name))
        self._making.get(tx, {}).pop(name, None)

    async def _look_again(self) -> None:
        self._looked = -_INTERVAL

    # queries

    async def _plan(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable]
    ) -> tuple[DocumentPlan, tuple[str, ...], Mapping[str, str]]:
        """Return a query's plan, its key, and the datatypes of what it gives, as far as they are declared."""
        self._check_open()
        built = query.build(MongoCatalog(outputs))
        if not isinstance(built.expression, DocumentPlan):
            raise QueryError(
                f"a MongoDB databackend takes MongoDB's own queries, such as db['docs'].find(...), not {query!r}"
            )
        plan, columns = built.expression, await self._columns(built.expression.collection)
        plan = self._values.asked(columns, plan)
        return plan, built.key, {**columns, **plan.decoded}

    async def check(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable], tables: Mapping[str, TableSchema] | None = None
    ) -> TableSchema:
        """Have the server plan a query, and return what is known of its documents."""
        plan, key, _ = await self._plan(query, outputs)
        await self._documents.explain(plan.collection, plan.stages)
        declared = dict(await self._columns(query.root()))
        joined = {name: output.datatype or ANY for name, output in outputs.items()}
        columns = {**declared, **dict.fromkeys(key, ANY), **joined}
        return TableSchema(query.root(), columns, key, open=True)

    async def read(
        self, query: ReadQuery, outputs: Mapping[str, OutputTable], *, size: int = 1000
    ) -> AsyncIterator[tuple[tuple[str, ...], list[Any]]]:
        """Run a query and yield documents: no column names, and mappings in the place of tuples. A value has a name."""
        plan, _, decoded = await self._plan(query, outputs)
        call, name = plan.call, plan.collection
        if call is not None and call.method == "find_one":
            found = await self._documents.find_one(name, *call.args, **call.options)
            self._values.decode(decoded, [found] if found else [])
            yield (), [] if found is None else [found]
            return
        if call is not None and call.method not in {"find", "aggregate"}:
            yield ("value",), [(await self._value(plan),)]
            return
        method, args, options = "aggregate", (list(plan.stages),), {}
        if call is not None:
            method, args, options = call.method, call.args, dict(call.options)
        yielded = False
        async with aclosing(self._documents.pages(name, method, args, options, size)) as pages:
            async for page in pages:
                self._values.decode(decoded, page)
                yield (), page
                yielded = True
        if not yielded:
            yield (), []

    async def _value(self, plan: DocumentPlan) -> Any:
        assert plan.call is not None  # noqa: S101 - a value is a call
        if not plan.call.method.startswith("piped"):
            return await self._documents.value(plan.collection, plan.call.method, plan.call.args, plan.call.options)
        rows = await self._documents.aggregate(plan.collection, plan.stages)
        if plan.call.method == "piped distinct":
            return [row[KEY] for row in rows]
        return rows[0]["count"] if rows else 0

    async def prepare(self, request: Any) -> tuple[Any, list[Key] | None]:
        """Return a write whose documents have their ids, and the ids of those that it may concern, where they are known."""
        columns = await self._columns(check_request(request).table)
        request = self._writer.with_ids(self._values.concerned(columns, request))
        return request, await self._writer.concerned(request)

    async def write(self, request: Any, outputs: Mapping[str, OutputTable], tx: MongoUnit) -> Written:
        """Make the writes of a request."""
        self._check_open()
        request = check_request(request)
        check_table(request.table)
        columns = await self._columns(request.table, tx)
        return await self._writer.write(self._values.concerned(columns, request), columns, tx)

    # moving

    async def rows(
        self, table: str, *, after: Row | None = None, size: int = 1000
    ) -> AsyncIterator[list[Mapping[str, Any]]]:
        """Yield a collection's documents, as they are, in the order of their ids."""
        self._check_open()
        async with aclosing(self._mover.rows(table, await self._columns(table), after, size)) as pages:  # type: ignore[type-var]
            async for page in pages:
                yield page

    async def put_rows(self, table: str, rows: Sequence[Mapping[str, Any]], tx: MongoUnit) -> None:
        """Write documents as they are, in the place of those that have their ids."""
        self._check_open()
        encoded = await self._mover.encoded(check_table(table), await self._columns(table, tx), rows)
        tx.defer(lambda session: self._mover.put(table, encoded, session))

    # what other programs write

    def why_no_changes(self) -> str | None:
        """Return why there is no change stream, None if there is one."""
        if self.database.transactional:
            return None
        return f"{self.url} is a standalone server, which has no change streams (mongod --replSet makes a replica set of it)"

    async def changes(self, since: str | None) -> AsyncIterator[RowChanges]:
        """Yield what other programs change."""
        self._check_open()
        async with aclosing(changes(self.database, since)) as stream:
            async for each in stream:
                rows: list[tuple[str, Any, list[Key]]] = []
                for table, kind, key in each.rows:
                    if not rows or rows[-1][:2] != (table, kind):
                        rows.append((table, kind, []))
                    rows[-1][2].append(key)
                yield RowChanges(each.token, rows, each.collections, each.lost)

    # a listener's work

    def _outputs(self, table: OutputTable) -> MongoOutputs:
        self._check_open()
        if table.datatype is None:
            raise TableNotFoundError(
                f"the outputs of {table.identifier!r} have no collection before the first of them is known"
            )
        return MongoOutputs(self._documents, self._values, table)

    async def _scanner(self, select: ReadQuery, outputs: Mapping[str, OutputTable]) -> MongoScanner:
        plan, key, decoded = await self._plan(select, outputs)
        if not key:
            raise QueryError("the select of a listener must keep _id, and this one does not")
        return MongoScanner(self._documents, self._values, plan, key, decoded)

    async def scan(
        self,
        select: ReadQuery,
        outputs: Mapping[str, OutputTable],
        columns: Sequence[str],
        *,
        after: Row | None,
        limit: int,
        missing: OutputTable | None,
    ) -> list[Row]:
        """Return the next rows of a select in the order of its key: key columns first, then ``columns``."""
        scanner = await self._scanner(select, outputs)
        return await scanner.scan(columns, after, limit, None if missing is None else self._outputs(missing))

    async def fetch(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], columns: Sequence[str], ids: Sequence[Key]
    ) -> list[Row]:
        """Return a select's rows that come from these documents of its root collection."""
        return await (await self._scanner(select, outputs)).fetch(columns, ids)

    async def count_missing(
        self, select: ReadQuery, outputs: Mapping[str, OutputTable], missing: OutputTable | None
    ) -> int:
        """Return how many rows `scan` would yield in all."""
        return await (await self._scanner(select, outputs)).count(None if missing is None else self._outputs(missing))

    async def create_outputs(self, table: OutputTable, tx: MongoUnit) -> None:
        """Create an output collection, if there is none of that name: at once, which does no harm."""
        await self._outputs(table).create()

    async def drop_outputs(self, table: OutputTable, tx: MongoUnit) -> None:
        """Drop an output collection, if there is one."""
        tx.afterwards(lambda _: self._documents.drop(table.name))

    async def put_outputs(
        self, table: OutputTable, results: Outputs, *, as_of: int, replaced: Sequence[Key] | None, tx: MongoUnit
    ) -> None:
        """Write outputs; one that is there with a larger ``_as_of`` is left as it is."""
        outputs = self._outputs(table)
        stored = outputs.documents_of(results, as_of)
        tx.defer(lambda session: outputs.put(stored, as_of, replaced, session))

    def encode_error(self, table: OutputTable, value: Any) -> Exception | None:
        """Return why a value cannot be stored as an output, None if it can."""
        return self._outputs(table).encode_error(value)

    async def sweep(
        self,
        select: ReadQuery,
        outputs: Mapping[str, OutputTable],
        table: OutputTable,
        *,
        ids: Sequence[Key] | None,
        tx: MongoUnit,
    ) -> list[Key]:
        """Delete the outputs whose source row the select no longer has; return the ids of their root rows."""
        scanner, there = await self._scanner(select, outputs), self._outputs(table)
        if tx.fresh:
            # Looked for outside the transaction, where it may take long; and again in it, where there are any.
            found = await scanner.orphans(there, ids)
        else:  # what it has deleted is seen by itself alone
            found = await tx.run(lambda session: scanner.orphans(there, ids, session))
        roots = list({hashed(root): root for root in found.values()}.values())
        return await tx.run(lambda session: scanner.sweep(there, roots, session)) if roots else []

    async def current(self, table: OutputTable, ids: Sequence[Key], as_of: int) -> set[Key]:
        """Return those of these root ids all of whose outputs are of ``as_of`` or later, those with errors among them."""
        return await self._outputs(table).current(ids, as_of)

    async def failed(self, table: OutputTable, *, limit: int = 1000) -> list[tuple[Key, str]]:
        """Return the root ids and errors of source rows that the model failed on."""
        return [] if table.datatype is None else await self._outputs(table).failed(limit)


def _on(database: Elsewhere[MongoDatabase], datatypes: Datatypes) -> MongoDataBackend:
    return MongoDataBackend(database(), datatypes)
