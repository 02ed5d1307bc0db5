"""Two who install, replace or remove at once: what comes out is what one after the other would have made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Application, Datalayer, Listener, Model
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


class Both:
    """Two datalayers on one database, as of two processes; what the first installs can be held up before its commit."""

    def __init__(self, first: Datalayer, second: Datalayer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.first, self.second = first, second
        self.holding = asyncio.Event()
        self.go_on = asyncio.Event()
        put = first.artifact_store.put

        async def held(data: Any) -> str:
            self.holding.set()
            await self.go_on.wait()
            return await put(data)

        monkeypatch.setattr(first.artifact_store, "put", held)

    async def meet(self, held: Any, other: Any) -> None:
        """Do one thing while another has looked at everything, and not committed yet."""
        begun = asyncio.create_task(held)
        await self.holding.wait()
        await other
        self.go_on.set()
        await begun
        await self.second.wait_idle(60)

    async def newest(self, type_id: str, identifier: str) -> Any:
        return (await self.second.metadata.components(type_id=type_id, identifier=identifier))[-1]

    async def uses(self, listener: str) -> str:
        """Return the uuid of the model that the newest version of a listener uses."""
        [model] = await self.second.metadata.children((await self.newest("listener", listener)).uuid)
        return str(model.uuid)


@pytest.fixture
async def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Both]:
    uris = {"databackend": f"sqlite:///{tmp_path / 'a.db'}", "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(**uris, worker=False) as first, asyncdl.connect(**uris) as second:
        await second.execute(second["numbers"].insert([{"id": n, "x": n} for n in range(3)]))
        await second.add(listener(second, "doubled", Model("m", models.double)), wait=True)
        yield Both(first, second, monkeypatch)
        seen = 0
        while await second.metadata.intents():  # artifacts that were stored in vain are deleted
            seen = await second.metadata.wait_for_commits(seen)
        assert {sha256 async for sha256 in second.artifact_store.list()} == await second.metadata.artifacts()


def listener(db: Datalayer, name: str, model: Model) -> Listener:
    return Listener(name, model=model, key="x", select=db["numbers"].select("id", "x"))


def pickled() -> Model:
    """Return a model that no import leads to, so that its object is put into the artifact store."""
    added = 1
    return Model("m", lambda x: x + added)


async def test_a_listener_that_is_added_while_its_model_is_replaced_uses_the_new_one(both: Both) -> None:
    """It is the other way round here, and comes to the same: the replacement comes second, and takes the listener along."""
    added = listener(both.second, "again", Model("m", models.double))
    await both.meet(both.first.replace(pickled()), both.second.add(added))
    model = await both.newest("model", "m")
    assert (model.version, await both.uses("again"), await both.uses("doubled")) == (1, model.uuid, model.uuid)
    t = both.second["numbers"]
    assert await rows_of(both.second, t.outputs("again", "doubled").drop("x")) == [(n, n + 1, n + 1) for n in range(3)]


async def test_a_model_that_is_replaced_while_a_listener_is_added_with_it_is_not_left_behind(both: Both) -> None:
    extra = replace(pickled(), identifier="extra")
    adding = Application("app", [listener(both.first, "again", Model("m", models.double)), extra])
    await both.meet(both.first.add(adding), both.second.replace(Model("m", models.counted)))
    model = await both.newest("model", "m")
    assert model.version == 2  # what was declared is not what is installed by then
    assert await both.uses("again") == model.uuid
    again = await both.second.load("model", "m")
    assert again.object is models.double


async def test_what_is_removed_while_it_is_replaced_stays_removed(both: Both) -> None:
    await both.meet(both.first.replace(pickled()), both.second.remove("listener", "doubled"))
    assert await both.second.show("listener") == []
    assert await both.second.show("model", "m") == [0, 1]


async def test_two_replacements_follow_each_other(both: Both) -> None:
    await both.meet(both.first.replace(pickled()), both.second.replace(Model("m", models.counted)))
    assert await both.second.show("listener", "doubled") == [0, 1, 2]
    assert await both.uses("doubled") == (await both.newest("model", "m")).uuid
    statuses = [each.status for each in await both.second.metadata.components(type_id="listener")]
    assert statuses == ["retired", "retired", "ready"]


async def test_many_who_add_different_components_at_once_all_get_through(both: Both) -> None:
    both.go_on.set()
    names = [f"n{number}" for number in range(12)]
    adding = [db.add(listener(db, name, pickled())) for name in names for db in (both.first, both.second)]
    handles = await asyncio.gather(*adding)
    assert sum(each.created for each in handles) == len(names)
    await both.second.wait_idle(60)
    assert await both.second.show("model", "m") == [0, 1]
    assert {await both.uses(name) for name in names} == {(await both.newest("model", "m")).uuid}
