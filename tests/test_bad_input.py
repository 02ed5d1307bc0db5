"""Bad input: a named error that says what to do, before anything was changed, or recorded on the row."""

from __future__ import annotations

import json
import sqlite3

import pytest

import asyncdl
from asyncdl import Application, Listener, Model, Table
from asyncdl.errors import (
    ComponentNotFoundError,
    ConfigurationError,
    DatatypeError,
    DuplicateKeyError,
    InvalidComponentError,
    InvalidIdentifierError,
    InvalidRowError,
    JobFailedError,
    QueryError,
    StoreUnavailableError,
    TableNotFoundError,
    UnknownColumnError,
    UnknownComponentTypeError,
    UnknownSchemeError,
)
from tests import models
from tests.conftest import rows_of

pytestmark = pytest.mark.anyio

DOUBLE = Model("double", models.double)


@pytest.fixture
async def t(db):
    await db.execute(db["t"].insert([{"id": n, "x": n, "text": str(n)} for n in range(3)]))
    before = (await rows_of(db, db["t"]), await db.show(), await db.events.last(), await db.tables())
    yield db["t"]
    assert (await rows_of(db, db["t"]), await db.show(), await db.events.last(), await db.tables()) == before


# connecting


@pytest.mark.parametrize(
    ("uris", "error", "message"),
    [
        ({"databackend": "redis://here"}, UnknownSchemeError, "no databackend serves 'redis'.*sqlite://"),
        ({"databackend": "app.db"}, ConfigurationError, "no URI"),
        ({"databackend": "sqlite://a.db?mode=ro"}, ConfigurationError, "options"),
        ({"metadata_store": "redis://u:secret@h"}, UnknownSchemeError, r"redis://u:\*\*\*@h"),
        ({"artifact_store": "s3://bucket"}, UnknownSchemeError, "no artifact store serves 's3'"),
        ({"artifact_store": "filesystem://"}, ConfigurationError, "names no folder"),
        ({"compute": "ray://"}, UnknownSchemeError, "no compute backend serves 'ray'"),
        ({"databackend": 3}, ConfigurationError, "neither a URI nor a ready DataBackend"),
        ({"threads": 0}, ConfigurationError, "threads"),
        ({"thread": 1}, ConfigurationError, "no setting 'thread'"),
    ],
)
async def test_connect_refuses_at_once(uris, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        asyncdl.connect(**uris)
    assert list(tmp_path.iterdir()) == []


async def test_unreachable_paths(tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "text.db").write_text("this is no database, and longer than a header of SQLite" * 100)
    for uri in (f"sqlite:///{tmp_path}/file/app.db", f"sqlite:///{tmp_path}/text.db"):
        with pytest.raises(StoreUnavailableError):
            await asyncdl.connect(uri, artifact_store=f"filesystem://{tmp_path}/artifacts")
    with pytest.raises(StoreUnavailableError):
        await asyncdl.connect(f"sqlite:///{tmp_path}/app.db", artifact_store=f"filesystem://{tmp_path}/file")


# components


@pytest.mark.parametrize(
    "identifier", ["", "a b", "a'b", 'a"b', "a.b", "a/b", "../a", "a" * 300, "🙂", "1a", "a\x00b", None, 3]
)
def test_identifiers(identifier):
    with pytest.raises(InvalidIdentifierError, match="letters, digits"):
        Model(identifier, len)


@pytest.mark.parametrize("name", ["", "a b", "a'b", "a;drop table t", "a" * 300, "🙂", "_asyncdl_jobs", "a.b.c"])
async def test_names_of_tables(name, db):
    with pytest.raises(InvalidIdentifierError):
        db[name]
    with pytest.raises(InvalidIdentifierError):
        Table(name, {"x": "int64"})


@pytest.mark.parametrize(
    ("declare", "error", "message"),
    [
        (lambda t: Listener("l", model=DOUBLE, key="y", select=t), UnknownColumnError, "column 'y'.*id, x, text"),
        (lambda t: Listener("l", model=DOUBLE, key="x", select=t.select("id", "y")), UnknownColumnError, "y"),
        (lambda t: Listener("l", model=DOUBLE, key="x", select=t.filter(t.z > 1)), UnknownColumnError, "z"),
        (
            lambda t: Listener("l", model=DOUBLE, key=("x", "id"), select=t),
            InvalidComponentError,
            "does not fit its signature",
        ),
        (
            lambda t: Listener("l", model=DOUBLE, key={"y": "x"}, select=t),
            InvalidComponentError,
            "does not fit its signature",
        ),
        (lambda t: Listener("l", model=DOUBLE, key=(), select=t), InvalidComponentError, "key is"),
        (lambda t: Listener("l", model=DOUBLE, key=3, select=t), InvalidComponentError, "key is"),
        (lambda t: Listener("l", model=len, key="x", select=t), InvalidComponentError, "must be a Model"),
        (lambda t: Listener("l", model=DOUBLE, key="x", select="t"), InvalidComponentError, "must be a query"),
        (
            lambda t: Listener("l", model=DOUBLE, key="x", select=t.select("x")),
            InvalidComponentError,
            "primary key of 't'",
        ),
        (
            lambda t: Listener("l", model=DOUBLE, key="n", select=t.group_by("x").aggregate(n=t.count())),
            InvalidComponentError,
            "primary key",
        ),
        (lambda t: Listener("x", model=DOUBLE, key="x", select=t), InvalidComponentError, "has a column of this name"),
        (lambda t: Listener("l", model=DOUBLE, key="l", select=t.outputs("l")), InvalidComponentError, "cycle"),
        (
            lambda t: Listener("l", model=DOUBLE, key="k", select=t.outputs("k")),
            ComponentNotFoundError,
            "no listener 'k'",
        ),
        (lambda t: Model("m", 3), InvalidComponentError, "not callable"),
        (lambda t: Model("m", len, on="gpu"), InvalidComponentError, "'thread' or 'process'"),
        (lambda t: Model("m", len, max_concurrency=0), InvalidComponentError, "must be positive"),
        (lambda t: Application("a", [DOUBLE, 3]), InvalidComponentError, "is not a component"),
        (lambda t: Application("a", [DOUBLE, Model("double", len)]), InvalidComponentError, "two different components"),
        (lambda t: Table("t", {"id": "int64", "x": "string"}), InvalidComponentError, "a table 't' already"),
        (lambda t: Table("u", {"x": "int65"}), DatatypeError, "int65"),
        (lambda t: Table("u", {"x'": "int64"}), InvalidIdentifierError, "column"),
        (lambda t: Model("m", models.double, datatype="vectr(float32, 3)"), DatatypeError, "vectr"),
        (lambda t: DOUBLE.object, InvalidComponentError, "only components can be added"),
    ],
)
async def test_components_that_cannot_be(declare, error, message, db, t):
    with pytest.raises(error, match=message):
        await db.add(declare(t))


async def test_a_cyclic_chain_of_listeners(db, t):
    def on(name, upstream):
        return Listener(name, model=DOUBLE, key=upstream, select=t.outputs(upstream).select("id", upstream))

    with pytest.raises(InvalidComponentError, match="cycle: a → c → b → a"):
        await db.add(Application("circle", [on("a", "c"), on("b", "a"), on("c", "b")]))


async def test_a_listener_on_a_table_that_is_not_there(db, t):
    with pytest.raises(TableNotFoundError, match=r"Table\('nowhere'"):
        await db.add(Listener("l", model=DOUBLE, key="x", select=db["nowhere"]))


async def test_nothing_of_an_application_is_installed_when_a_part_cannot_be(db, t):
    good = Listener("good", model=DOUBLE, key="x", select=t)
    bad = Listener("bad", model=DOUBLE, key="y", select=t)
    with pytest.raises(UnknownColumnError):
        await db.add(Application("app", [Table("new", {"a": "int64"}), good, bad]))


async def test_a_component_of_an_unknown_type(db, tmp_path):
    await db.add(DOUBLE)
    await db.export("model", "double", tmp_path / "e")
    document = json.loads((tmp_path / "e" / "component.json").read_text())
    document["components"][0]["type_id"] = "gizmo"
    (tmp_path / "e" / "component.json").write_text(json.dumps(document))
    with pytest.raises(UnknownComponentTypeError, match=r"'gizmo'.*import the module"):
        await db.import_from(tmp_path / "e")
    with pytest.raises(ComponentNotFoundError, match="nor any other gizmo"):
        await db.load("gizmo", "double")


@pytest.mark.parametrize(
    "spoil", [lambda d: d.pop("asyncdl"), lambda d: d.update(asyncdl=99), lambda d: d.update(components=[])]
)
async def test_a_folder_that_holds_no_component(spoil, db, tmp_path):
    await db.add(DOUBLE)
    await db.export("model", "double", tmp_path / "e")
    document = json.loads((tmp_path / "e" / "component.json").read_text())
    spoil(document)
    (tmp_path / "e" / "component.json").write_text(json.dumps(document))
    with pytest.raises(InvalidComponentError):
        await db.import_from(tmp_path / "e")


# rows and queries


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda t: t.insert({"id": 1, "x": 3}), DuplicateKeyError, "UNIQUE"),
        (lambda t: t.insert([{"id": 7, "x": 3}, {"id": 7, "x": 4}]), DuplicateKeyError, "7"),
        (lambda t: t.insert([{"id": 7, "x": 3}, {"id": 8, "x": "three"}]), DatatypeError, "x"),
        (lambda t: t.insert([{"id": 7, "x": 2**63}]), DatatypeError, "x"),
        (lambda t: t.insert({"id": 7, "y": 3}), UnknownColumnError, "y"),
        (lambda t: t.insert({"id": None, "x": 3}), InvalidRowError, "id"),
        (lambda t: t.insert([{"id": 7}, 3]), InvalidRowError, "row 1"),
        (lambda t: t.insert({3: 4}), InvalidRowError, "3"),
        (lambda t: t.insert({"id": 7, "text": "\ud800"}), DatatypeError, "text"),
        (lambda t: t.update({"y": 3}, where=t.id == 1), UnknownColumnError, "y"),
        (lambda t: t.update({"id": 3}, where=t.id == 1), QueryError, "key"),
        (lambda t: t.update({"x": "three"}, where=t.id == 1), DatatypeError, "x"),
        (lambda t: t.update({"x": 1}, where=t.y == 1), UnknownColumnError, "y"),
        (lambda t: t.update({}, where=t.id == 1), QueryError, "needs a dict"),
        (lambda t: t.update({"x": 1}), QueryError, "where=True"),
        (lambda t: t.delete(), QueryError, "where=True"),
        (lambda t: t.filter(t.x > 1).insert({"id": 9}), QueryError, "table"),
        (lambda t: t.filter(t.y > 1), UnknownColumnError, "y"),
        (lambda t: t.select("nope"), UnknownColumnError, "nope"),
        (lambda t: t.outputs("nothing"), ComponentNotFoundError, "nothing"),
        (lambda t: t.missing_outputs("nothing"), ComponentNotFoundError, "nothing"),
        (lambda t: t.like({"text": "a"}, vector_index="i"), QueryError, "vector"),
        (lambda t: t.fliter(t.x > 1), QueryError, "filter"),
        (lambda t: t.x.execute(), QueryError, "execute"),
        (lambda t: "SELECT 1", QueryError, "execute takes a query"),
    ],
)
async def test_rows_and_queries_that_cannot_be(write, error, message, db, t):
    with pytest.raises(error, match=message):
        await (await db.execute(write(t))).to_list()


async def test_a_query_of_a_table_that_is_not_there(db, t):
    with pytest.raises(TableNotFoundError, match="did you mean 't'"):
        await db.execute(db["tt"])


async def test_rows_of_mixed_types_and_missing_fields(db):
    with pytest.raises(DatatypeError, match="x"):
        await db.execute(db["mixed"].insert([{"x": 1}, {"x": "one"}]))
    assert await db.tables() == []
    await db.execute(db["gaps"].insert([{"id": 1, "x": 1}, {"id": 2, "y": "two"}, {"id": 3}]))
    assert await rows_of(db, db["gaps"]) == [(1, 1, None), (2, None, "two"), (3, None, None)]


# models


async def test_the_wrong_number_of_outputs(tmp_path):
    uris = {"databackend": f"sqlite:///{tmp_path / 'a.db'}", "artifact_store": f"filesystem://{tmp_path / 'artifacts'}"}
    async with asyncdl.connect(**uris, job_max_attempts=1) as db:
        await db.execute(db["t"].insert([{"id": n, "x": n} for n in range(3)]))
        model = Model("few", models.one_too_few, batch=True)
        added = await db.add(Listener("few", model=model, key="x", select=db["t"]))
        with pytest.raises(JobFailedError, match="2 outputs for 3 inputs"):
            await added.wait()
        assert await rows_of(db, db["t"].outputs("few")) == []


async def test_an_output_that_its_datatype_cannot_hold_is_an_error_of_its_row(db):
    t = db["t"]
    await db.execute(t.insert([{"id": n, "x": n} for n in range(4)]))
    model = Model("odd", lambda x: "odd" if x % 2 else x, datatype="int64")
    await db.add(Listener("odd", model=model, key="x", select=t), wait=True)
    assert await rows_of(db, t.outputs("odd").select("id", "odd")) == [(0, 0), (2, 2)]
    errors = await db.errors("odd")
    assert [(key, error.type) for key, error in errors] == [(1, "DatatypeError"), (3, "DatatypeError")]
    assert "'odd'" in errors[0][1].message


async def test_a_flattened_model_that_returns_no_list(db):
    t = db["t"]
    await db.execute(t.insert([{"id": 1, "x": 1}]))
    await db.add(Listener("flat", model=DOUBLE, key="x", select=t, flatten=True), wait=True)
    [(key, error)] = await db.errors("flat")
    assert (key, error.type) == (1, "ModelOutputError")
    assert "must return a list" in error.message


async def test_a_table_without_a_primary_key(db, tmp_path):
    with sqlite3.connect(tmp_path / "app.db") as raw:
        raw.execute("CREATE TABLE plain (x INTEGER)")
        raw.execute("INSERT INTO plain VALUES (1)")
    raw.close()
    assert await rows_of(db, db["plain"]) == [(1,)]
    with pytest.raises(InvalidComponentError, match="no primary key"):
        await db.add(Listener("l", model=DOUBLE, key="x", select=db["plain"]))
