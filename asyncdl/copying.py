"""Moving from one set of backends to another: rows, artifacts, outputs and components.

What is there already is not copied again, so a copy that was interrupted is ended by another. Nobody should write to the
source meanwhile: what changes behind the copy's back is not noticed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from asyncdl.artifacts import ArtifactLeases
from asyncdl.components.datatype import Datatype
from asyncdl.components.declaration import asks
from asyncdl.components.registry import ListenerState, Registry
from asyncdl.databackend.tables import Outputs, OutputTable, Row, TableSchema
from asyncdl.datalayer import Datalayer
from asyncdl.errors import ConfigurationError, ConflictError, DuplicateKeyError
from asyncdl.events.types import ComponentAdded, ReconcileRequested
from asyncdl.intents import Intents
from asyncdl.metadata.changes import Change, PutComponent
from asyncdl.metadata.records import ComponentRecord
from asyncdl.query import load_query
from asyncdl.translation import Translation, as_it_is, to_documents, to_table

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Copied:
    """What has been copied of one thing.

    Parameters
    ----------
    what
        ``"table"``, ``"artifact"``, ``"outputs"`` or ``"component"``.
    name
        The table, hash, listener, or ``type/identifier``.
    count
        Rows, bytes, outputs; 1 for a component.
    """

    what: str
    name: str
    count: int


async def copy(source: Datalayer, target: Datalayer, *, rows_only: bool = False) -> AsyncIterator[Copied]:
    """Copy all that one datalayer holds to another, and yield what has been copied as it goes.

    Rows and outputs keep their keys, components their versions and uuids. What had no output in the source, or an error in
    its place, is computed in the target. The event log, jobs and the cursors of subscribers are not copied. Between MongoDB
    and a database that ibis queries, rows are translated as `asyncdl.translation` says.

    Parameters
    ----------
    rows_only
        Leave out components, with their artifacts and outputs.

    Raises
    ------
    ConfigurationError
        The target holds a table or component of the same name that is another one; or the two have not the language in
        common in which listeners and other components of the source select rows. Nothing has been copied then.
    DatatypeError
        A row cannot be held by the target: the message names table, key and the value's type. What documents no table can
        hold is told before anything is copied; otherwise rows before it are there, and another copy goes on.
    """
    copier = _Copier(source, target)
    await copier.check(rows_only=rows_only)
    async for each in copier.rows():
        yield each
    if rows_only:
        await target.metadata.commit(ReconcileRequested().change())  # for the listeners that are there
        return
    records = await source.metadata.components()
    hashes = {sha256 for record in records for sha256 in await source.metadata.artifacts(record.uuid)}
    leases = ArtifactLeases(target.metadata, target.artifact_store, Intents(target.metadata))
    async with leases.held(hashes) as release:
        async for each in copier.artifacts(hashes):
            yield each
        async for each in copier.outputs(records):
            yield each
        await copier.components(records, release)
    for record in records:
        yield Copied("component", f"{record.type_id}/{record.identifier}", 1)


class _Copier:
    """One copy under way."""

    def __init__(self, source: Datalayer, target: Datalayer) -> None:
        self._source = source
        self._target = target
        self._translations: dict[str, Translation] = {}
        self._registry = Registry(
            source.metadata, source.artifact_store, source.databackend.datatypes, allow_pickle=False
        )

    async def check(self, *, rows_only: bool) -> None:
        """Raise `ConfigurationError` where the target cannot take what the source holds; make datatypes known to it."""
        source, target = self._source, self._target
        records = await source.metadata.components()
        if not rows_only:
            self._check_language(records)
            await self._check_records(records)
        for record in records:
            if record.type_id == "datatype":
                loaded = await source.load("datatype", record.identifier)
                assert isinstance(loaded, Datatype)  # noqa: S101 - its record says so
                target.databackend.datatypes.register(loaded.identifier, loaded.encoder, loaded.decoder)
        for name in await source.databackend.tables():
            schema = await source.databackend.schema(name)
            if schema is not None:
                self._translations[name] = await self._translation(schema)

    def _check_language(self, records: Sequence[ComponentRecord]) -> None:
        one, other = self._source.databackend, self._target.databackend
        if one.language == other.language:
            return
        lost = [each for each in records if asks(msgspec.json.decode(each.data)["fields"])]
        if lost:
            names = ", ".join(sorted({f"{each.type_id} {each.identifier!r}" for each in lost}))
            raise ConfigurationError(
                f"{names} select rows in the language of {one.url} ({one.language}), which {other.url} ({other.language}) does "
                "not have: copy rows only (--rows-only), and add what you want of them there"
            )

    async def _check_records(self, records: Sequence[ComponentRecord]) -> None:
        there = {
            (each.type_id, each.identifier, each.version): each for each in await self._target.metadata.components()
        }
        for record in records:
            found = there.get((record.type_id, record.identifier, record.version))
            if found is not None and found.uuid != record.uuid:
                raise ConfigurationError(
                    f"the target holds another {record.type_id} {record.identifier!r} version {record.version}"
                )

    async def _translation(self, ours: TableSchema) -> Translation:
        source, target = self._source.databackend, self._target.databackend
        theirs = await target.schema(ours.name)
        if source.language != target.language:
            if target.language == "mongodb":
                return to_documents(ours)
            async with aclosing(source.rows(ours.name, size=_PAGE)) as documents:  # type: ignore[type-var]
                return await to_table(ours, documents, theirs)
        if theirs and not theirs.open and set(ours.columns) != set(theirs.columns):
            raise ConfigurationError(f"the target holds a table {ours.name!r} already, with other columns")
        if theirs and theirs.open and not theirs.columns.items() <= ours.columns.items():
            raise ConfigurationError(f"the target has a collection {ours.name!r} declared already, and otherwise")
        return as_it_is(ours)

    # rows

    async def rows(self) -> AsyncIterator[Copied]:
        """Copy every table."""
        for name, translation in self._translations.items():
            yield Copied("table", name, await self._table(name, translation))

    async def _table(self, name: str, translation: Translation) -> int:
        source, target = self._source.databackend, self._target.databackend
        async with target.transaction() as tx:
            await target.create_table(translation.schema, tx)
        schema = await source.schema(name)
        if schema is not None and not schema.primary_key and await self._any(name):
            raise ConfigurationError(
                f"the table {name!r} has no primary key and has rows in the target: they would be there twice"
            )
        count = 0
        async with aclosing(source.rows(name, size=_PAGE)) as pages:  # type: ignore[type-var]
            async for page in pages:
                rows = translation.rows(page)

                async def put(rows: Sequence[Mapping[str, Any]] = rows) -> None:
                    async with target.transaction() as tx:
                        await target.put_rows(name, rows, tx)

                try:
                    await target.retrying(put)
                except DuplicateKeyError:  # another copy has put them there meanwhile: they are replaced
                    await target.retrying(put)
                count += len(rows)
        return count

    async def _any(self, name: str) -> bool:
        found = await self._target.execute(self._target[name].limit(1))
        return bool(await found.to_list())

    # artifacts

    async def artifacts(self, hashes: Iterable[str]) -> AsyncIterator[Copied]:
        """Copy artifacts that are not there yet."""
        for sha256 in sorted(hashes):
            if not await self._target.artifact_store.exists(sha256):
                size = 0

                async def chunks(sha256: str = sha256) -> AsyncIterator[bytes]:
                    nonlocal size
                    async for chunk in self._source.artifact_store.open_stream(sha256):
                        size += len(chunk)
                        yield chunk

                await self._target.artifact_store.put(chunks())
                yield Copied("artifact", sha256, size)

    # outputs

    async def outputs(self, records: Sequence[ComponentRecord]) -> AsyncIterator[Copied]:
        """Copy the outputs of every listener that is ready; those of others are computed in the target."""
        for record in records:
            if record.type_id == "listener" and record.status == "ready":
                state = ListenerState.loads(record.state)
                if state.output.datatype is not None:
                    yield Copied("outputs", record.identifier, await self._of_listener(record, state))

    async def _of_listener(self, record: ComponentRecord, state: ListenerState) -> int:
        databackend, output = self._target.databackend, state.output
        async with databackend.transaction() as tx:
            await databackend.create_outputs(output, tx)
        select = load_query(msgspec.json.decode(record.data)["fields"]["select"]["v"])
        tables = {**await self._registry.outputs(state.listeners), record.identifier: output}
        rows = self._pages(select.outputs(record.identifier), tables, record.identifier)
        count = 0
        async for results in _grouped(rows) if output.flatten else _plain(rows):
            async with databackend.transaction() as tx:
                # 0: the positions of the source's log mean nothing in the target's
                await databackend.put_outputs(output, results, as_of=0, replaced=None, tx=tx)
            count += len(results)
        return count

    async def _pages(self, query: Any, tables: Mapping[str, OutputTable], column: str) -> AsyncIterator[list[Row]]:
        """Yield a query's rows in the order of their key: the key, then a column."""
        after: Row | None = None
        while True:
            rows = await self._source.databackend.scan(query, tables, [column], after=after, limit=_PAGE, missing=None)
            if rows:
                after = rows[-1][:-1]
                yield rows
            if len(rows) < _PAGE:
                return

    # components

    async def components(self, records: Sequence[ComponentRecord], release: Sequence[Change]) -> None:
        """Install the records, those that are held first, in one commit; then have outputs compared with rows."""
        try:
            await self._install(records, release)
        except ConflictError:  # another copy has installed some of them meanwhile
            await self._check_records(records)
            await self._install(records, release)

    async def _install(self, records: Sequence[ComponentRecord], release: Sequence[Change]) -> None:
        metadata = self._target.metadata
        there = {each.uuid for each in await metadata.components()}
        changes: list[Change] = []
        for record in await self._held_first(records):
            if record.uuid not in there:
                children = [each.uuid for each in await self._source.metadata.children(record.uuid)]
                artifacts = await self._source.metadata.artifacts(record.uuid)
                status = "pending" if record.status == "failed" else record.status
                changes.append(PutComponent(replace(record, status=status), children, sorted(artifacts)))
                if status == "pending":  # its set-up has not ended: it is done in the target
                    changes.append(ComponentAdded(**record.identity).change())
        if changes or release:
            await metadata.commit(*changes, *release, ReconcileRequested().change())

    async def _held_first(self, records: Sequence[ComponentRecord]) -> list[ComponentRecord]:
        ordered: dict[str, ComponentRecord] = {}

        async def visit(record: ComponentRecord) -> None:
            if record.uuid not in ordered:
                for child in await self._source.metadata.children(record.uuid):
                    await visit(child)
                ordered[record.uuid] = record

        for record in records:
            await visit(record)
        return list(ordered.values())


async def _plain(pages: AsyncIterator[list[Row]]) -> AsyncIterator[Outputs]:
    """Yield outputs, one for each source row."""
    async for rows in pages:
        *keys, values = zip(*rows, strict=True)
        yield Outputs(keys, values)


async def _grouped(pages: AsyncIterator[list[Row]]) -> AsyncIterator[Outputs]:
    """Yield outputs as lists, one for each source row; the elements of the last of a page may go on on the next."""
    lists: dict[Row, list[Any]] = {}
    async for rows in pages:
        for *key, _position, value in rows:
            lists.setdefault(tuple(key), []).append(value)
        last = lists.popitem()
        if lists:
            yield _listed(lists)
        lists = dict([last])
    if lists:
        yield _listed(lists)


def _listed(lists: Mapping[Row, list[Any]]) -> Outputs:
    return Outputs(list(zip(*lists, strict=True)), list(lists.values()))
