"""Moving from one set of backends to another."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import asyncdl
from asyncdl import Application, Datalayer, Listener, Model
from asyncdl.copying import copy
from asyncdl.errors import ConfigurationError
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio

Place = Callable[[str], AbstractAsyncContextManager[Datalayer]]

CALLS: list[Any] = []


def words(text: str) -> list[str]:
    CALLS.append(text)
    return text.split()


def length(word: str) -> int:
    CALLS.append(word)
    if word == "bad":
        raise ValueError("a bad word")
    return len(word)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return what connects to a place of its own for each name."""

    @asynccontextmanager
    async def connected(name: str) -> AsyncIterator[Datalayer]:
        folder = tmp_path / name
        uris = {"databackend": f"sqlite:///{folder}/app.db", "artifact_store": f"filesystem://{folder}/artifacts"}
        async with asyncdl.connect(**uris) as db:
            yield db

    return connected


async def fill(db: Datalayer) -> None:
    texts = ["one two three", "", "four bad five"] + [f"row number {number}" for number in range(2500)]
    notes = db["notes"]
    await db.execute(notes.insert([{"id": at, "text": text} for at, text in enumerate(texts)]))
    factor = 2
    split = Listener("word", model=Model("split", words, datatype="string"), key="text", select=notes, flatten=True)
    longer = Listener(
        "length",
        model=Model("len", lambda word: length(word) * factor, datatype="int64"),  # by value: an artifact
        key="word",
        select=notes.outputs("word").select("id", "word_position", "word"),
    )
    await db.add(Application("app", [split, longer]), wait=True)


async def test_rows_outputs_components_and_artifacts_are_copied(place: Place) -> None:
    async with place("one") as source, place("two") as target:
        await fill(source)
        CALLS.clear()
        copied = [each async for each in copy(source, target)]
        assert {(each.what, each.name): each.count for each in copied if each.what != "artifact"} == {
            ("table", "notes"): 2503,
            ("outputs", "word"): 2502,
            ("outputs", "length"): 3 * 2502 - 1,
            ("component", "model/split"): 1,
            ("component", "model/len"): 1,
            ("component", "listener/word"): 1,
            ("component", "listener/length"): 1,
            ("component", "application/app"): 1,
        }
        await target.wait_idle(timeout=60)
        assert CALLS == ["", "bad"], "only what had no output is computed"
        query = target["notes"].outputs("word", "length")
        assert await rows_of(target, query) == await rows_of(source, query)
        assert await target.show() == await source.show()
        assert await target.show("listener", "length", -1) == await source.show("listener", "length", -1)
        assert [key for key, _ in await target.errors("length")] == [2]

        # it goes on there
        await (await target.execute(target["notes"].insert({"id": 9000, "text": "more"}))).wait()
        await (await target.execute(target["notes"].update({"text": "changed"}, where=target["notes"].id == 0))).wait()
        rows = await rows_of(target, query.filter(query.id.isin([0, 9000])).select("id", "word", "length"))
        assert rows == [(0, "changed", 14), (9000, "more", 8)]


async def test_a_copy_that_was_interrupted_is_ended_by_another(place: Place) -> None:
    async with place("one") as source, place("two") as target:
        await fill(source)
        steps = len([each async for each in copy(source, target)])
    for stop in range(steps):
        async with place("one") as source, place(f"target {stop}") as target:
            interrupted = copy(source, target)
            for _ in range(stop + 1):
                await anext(interrupted)
            await interrupted.aclose()  # type: ignore[attr-defined]
            [each async for each in copy(source, target)]
            await target.wait_idle(timeout=60)
            query = target["notes"].outputs("word", "length")
            assert await rows_of(target, query) == await rows_of(source, query)


async def test_what_is_there_and_is_another_is_refused(place: Place) -> None:
    async with place("one") as source, place("two") as target:
        await fill(source)
        await target.execute(target["notes"].insert({"id": 1, "other": 1.5}))
        with pytest.raises(ConfigurationError, match="a table 'notes' already, with other columns"):
            await anext(copy(source, target))
        await target.drop(force=True, data=True)
        await target.add(Model("len", len))
        with pytest.raises(ConfigurationError, match="another model 'len' version 0"):
            await anext(copy(source, target))
        assert await target.tables() == []


@pytest.mark.parametrize("kind", ["postgresql", "duckdb", "frames"])
async def test_other_databases_hold_what_was_copied_to_them(
    kind: str, place: Place, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = {"duckdb": f"duckdb:///{tmp_path / 'd.duckdb'}", "frames": f"frames://{tmp_path / 'frames'}"}.get(kind)
    uri = uri or request.getfixturevalue("postgresql").url(tmp_path)
    options: dict[str, str] = {"artifact_store": f"filesystem://{tmp_path / 'copied'}"}
    if kind == "duckdb":
        options["metadata_store"] = f"sqlite:///{tmp_path / 'metadata.db'}"
    async with place("one") as source, asyncdl.connect(uri, **options) as target:
        await fill(source)
        [each async for each in copy(source, target)]
        await target.wait_idle(timeout=60)
        query = target["notes"].outputs("word", "length")
        assert await rows_of(target, query) == await rows_of(source, query)
        await (await target.execute(target["notes"].insert({"id": 9000, "text": "more"}))).wait(60)
        rows = await rows_of(target, query.filter(query.id == 9000).select("id", "word", "length"))
        assert rows == [(9000, "more", 8)]


def test_the_command_line_copies(tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path / 'one.db'}"

    async def begin() -> None:
        async with asyncdl.connect(source, artifact_store=f"filesystem://{tmp_path / 'artifacts'}") as db:
            await fill(db)

    asyncio.run(begin())
    command = [sys.executable, "-m", "asyncdl.cli", "copy", source, f"sqlite:///{tmp_path / 'two.db'}"]
    artifacts = ["--source-artifacts", f"filesystem://{tmp_path / 'artifacts'}"]
    done = subprocess.run([*command, *artifacts], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "table notes: 2,503" in done.stdout
    assert "component application/app: 1" in done.stdout
