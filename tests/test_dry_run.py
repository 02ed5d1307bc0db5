"""`add(..., dry_run=True)`: what it tells comes true, and it writes nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asyncdl import Application, Datalayer, Listener, Model, Table
from asyncdl.components.datatype import Datatype
from asyncdl.errors import ComponentNotFoundError, InvalidComponentError, TableNotFoundError, UnknownColumnError
from asyncdl.planning import AddPlan
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio


def everything(connection: sqlite3.Connection, folder: Path) -> tuple[int, list[str], dict[str, bytes]]:
    """Return all that is stored: a number that each commit changes, the database's contents as SQL, and the other files."""
    [[version]] = connection.execute("PRAGMA data_version")
    files = {str(each): each.read_bytes() for each in folder.rglob("*") if each.is_file() and "app.db" not in each.name}
    return version, list(connection.iterdump()), files


async def told(db: Datalayer, folder: Path, component: Any, *, replacing: bool = False) -> AddPlan:
    """Return the plan; everything stored is as before, and no commit was made."""
    await db.wait_idle(60)
    with closing(sqlite3.connect(folder / "app.db")) as connection:
        before = everything(connection, folder)
        found = await (db.replace if replacing else db.add)(component, dry_run=True)
        assert everything(connection, folder) == before
    assert isinstance(found, AddPlan)
    return found


def lines(plan: AddPlan) -> dict[str, tuple[Any, ...]]:
    return {f"{each.type_id} {each.identifier}": (each.fate, each.version, each.retires, each.rows) for each in plan}


def length(function: Any = len, **options: Any) -> Listener:
    select = options.pop("select")
    return Listener("length", model=Model("len", function), key="text", select=select, **options)


async def test_what_is_new_unchanged_and_changed(db: Datalayer, tmp_path: Path) -> None:
    docs = db["docs"]
    await db.execute(docs.insert([{"id": n, "text": "x" * n} for n in range(5)]))
    offset = 0

    def by_code(text: str) -> int:  # by no import path: an artifact
        return len(text) + offset

    new = length(by_code, select=docs)
    plan = await told(db, tmp_path, new)
    assert lines(plan) == {"model len": ("new", 0, None, 0), "listener length": ("new", 0, None, 5)}
    assert plan.changes_anything
    added = await db.add(new, wait=True)
    assert added.created
    plan = await told(db, tmp_path, new)
    assert lines(plan) == {"model len": ("unchanged", 0, None, 0), "listener length": ("unchanged", 0, None, 0)}
    assert not plan.changes_anything
    assert not (await db.add(new)).created
    changed = length(models.upper, select=docs.filter(docs.id > 1))
    plan = await told(db, tmp_path, changed)
    assert lines(plan) == {"model len": ("changed", 1, None, 0), "listener length": ("changed", 1, 0, 3)}
    await db.add(changed, wait=True)
    assert await rows_of(db, docs.outputs("length").select("id", "length")) == [(n, "X" * n) for n in (2, 3, 4)]
    assert (await db.show("listener", "length", 0))["status"] == "retired"


async def test_an_application_with_a_table_a_datatype_and_a_chain(db: Datalayer, tmp_path: Path) -> None:
    words = Listener("word", model=Model("words", models.words), key="text", select=db["docs"], flatten=True)
    loudly = Datatype("loudly", encoder=bytes, decoder=bytes)
    upper = Model("upper", models.upper_bytes, datatype=loudly)
    loud = Listener("loud", model=upper, key="word", select=db["docs"].outputs("word"))
    table = Table("docs", {"id": "int64", "text": "string"})
    app = Application("app", [table, words, loud])
    plan = await told(db, tmp_path, app)
    assert {name: (line[0], line[3]) for name, line in lines(plan).items()} == {
        "table docs": ("new", 0),
        "datatype loudly": ("new", 0),
        "model words": ("new", 0),
        "model upper": ("new", 0),
        "listener word": ("new", 0),
        "listener loud": ("new", None),  # nobody knows how many words there will be
        "application app": ("new", 0),
    }
    assert await db.tables() == []
    await db.add(app, wait=True)
    await (await db.execute(db["docs"].insert([{"id": 1, "text": "a b c"}, {"id": 2, "text": "d"}]))).wait(60)
    words = Listener("word", model=Model("words", str.split), key="text", select=db["docs"], flatten=True)
    more = Application("app", [table, words, loud])
    plan = await told(db, tmp_path, more)
    found = lines(plan)
    assert found["listener word"] == ("changed", 1, 0, 2)
    assert found["listener loud"] == ("recomputed", 0, None, 4)
    assert found["application app"][0] == "changed"
    assert found["table docs"][0] == found["model upper"][0] == "unchanged"


async def test_a_replaced_model_with_chained_listeners_and_what_it_tells_comes_true(
    db: Datalayer, tmp_path: Path
) -> None:
    t = db["numbers"]
    await db.execute(t.insert([{"id": n, "x": n} for n in range(7)]))
    await db.add(Listener("a", model=Model("first", models.double), key="x", select=t), wait=True)
    await db.add(Listener("b", model=Model("rest", models.counted), key="a", select=t.outputs("a")), wait=True)
    await db.add(Listener("c", model=Model("rest", models.counted), key="b", select=t.outputs("b")), wait=True)
    await db.add(Listener("alone", model=Model("rest", models.counted), key="x", select=t), wait=True)
    plan = await told(db, tmp_path, Model("first", models.slowly), replacing=True)
    expected = {
        "model first": ("changed", 1, None, 0),
        "listener a": ("changed", 1, 0, 7),
        "listener b": ("recomputed", 0, None, 7),
        "listener c": ("recomputed", 0, None, 7),
    }
    assert {name: line for name, line in lines(plan).items() if line[0] != "unchanged"} == expected
    models.calls.clear()
    await db.replace(Model("first", models.slowly), wait=True)
    assert models.calls == {n + 100: 2 for n in range(7)}  # by b and c, and not by `alone`
    with pytest.raises(ComponentNotFoundError):
        await db.replace(Model("other", models.slowly), dry_run=True)


async def test_a_reader_that_gets_a_new_key_is_in_the_plan(db: Datalayer, tmp_path: Path) -> None:
    docs = db["docs"]
    await db.execute(docs.insert([{"id": 1, "text": "a b"}]))
    await db.add(Listener("word", model=Model("words", models.words), key="text", select=docs), wait=True)
    await db.add(Listener("again", model=Model("counted", repr), key="word", select=docs.outputs("word")), wait=True)
    flattened = Listener("word", model=Model("words", models.words), key="text", select=docs, flatten=True)
    plan = await told(db, tmp_path, flattened)
    assert lines(plan)["listener word"] == ("changed", 1, 0, 1)
    assert lines(plan)["listener again"] == ("changed", 1, 0, None)


async def test_what_cannot_be_added_is_refused_as_by_add(db: Datalayer, tmp_path: Path) -> None:
    with pytest.raises(TableNotFoundError):
        await db.add(length(select=db["none"]), dry_run=True)
    await db.execute(db["docs"].insert([{"id": 1, "text": "a"}]))
    with pytest.raises(UnknownColumnError):
        await db.add(Listener("l", model=Model("m", len), key="nothing", select=db["docs"]), dry_run=True)
    with pytest.raises(InvalidComponentError):
        await db.add("docs", dry_run=True)  # type: ignore[call-overload]


async def test_a_datatype_is_not_replaced_in_this_process_by_asking(db: Datalayer, tmp_path: Path) -> None:
    shouted = Datatype("shouted", encoder=models.upper_bytes, decoder=models.lower_text)
    await db.add(shouted)
    await told(db, tmp_path, Datatype("shouted", encoder=len, decoder=len))
    assert db.databackend.datatypes.encode(shouted.column, "a") == b"A"


async def test_it_is_printed_as_a_table(db: Datalayer, tmp_path: Path) -> None:
    docs = db["docs"]
    await db.execute(docs.insert([{"id": n, "text": "x"} for n in range(1200)]))
    await db.add(length(select=docs), wait=True)
    plan = await db.add(length(models.upper, select=docs), dry_run=True)
    assert str(plan).splitlines() == [
        "         component        version  retires    rows",
        "changed  model len        1",
        "changed  listener length  1        version 0  1,200",
    ]
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(plan)
    assert "1,200" in console.export_text()
    console.file.close()
    assert plan["listener", "length"].rows == 1200
    with pytest.raises(KeyError):
        plan["listener", "none"]
