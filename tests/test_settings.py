"""Settings, their cascade, and the URIs that `connect` takes."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import asyncdl
from asyncdl.errors import ClosedError, ConfigurationError
from asyncdl.settings import Settings, defaults, redact

pytestmark = pytest.mark.anyio


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Run in an empty folder, with defaults that are read anew."""
    monkeypatch.chdir(tmp_path)
    defaults.cache_clear()
    yield tmp_path
    defaults.cache_clear()


def test_the_cascade(here, monkeypatch):
    assert Settings().threads is None
    (here / "pyproject.toml").write_text("[tool.asyncdl]\nthreads = 1\nprocesses = 1\njob_lease = 7\n")
    assert (Settings().threads, Settings().processes, Settings().job_lease) == (1, 1, 7.0)
    (here / "asyncdl.toml").write_text("threads = 2\nprocesses = 2\r\n")
    assert (Settings().threads, Settings().processes, Settings().job_lease) == (2, 2, 7.0)
    monkeypatch.setenv("ASYNCDL_THREADS", "3")
    assert (Settings().threads, Settings().processes) == (3, 2)
    assert Settings(threads=4).threads == 4
    assert asyncdl.CFG.threads == 3


def test_cfg_is_the_default_of_later_connections(here):
    asyncdl.CFG.databackend = "sqlite://changed.db"
    connecting = asyncdl.connect()
    asyncdl.CFG.databackend = "sqlite://again.db"
    assert repr(connecting) == "<asyncdl.connect to sqlite://changed.db, not open yet>"
    with pytest.raises(ValueError, match="threads"):
        asyncdl.CFG.threads = 0


@pytest.mark.parametrize("text", ["threads = 0", "theads = 3", "threads = ", "pickle = 'perhaps'"])
def test_files_that_cannot_be_used(here, text):
    (here / "asyncdl.toml").write_text(text)
    with pytest.raises(ConfigurationError):
        Settings()


@pytest.mark.parametrize(
    ("uri", "redacted"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("mongodb://me:se:c@r@host,other/db?x=1", "mongodb://me:***@host,other/db?x=1"),
        ("mongodb://host/db?password=secret&x=1", "mongodb://host/db?password=***&x=1"),
        ("sqlite://app.db", "sqlite://app.db"),
    ],
)
def test_passwords_are_not_shown(uri, redacted):
    assert redact(uri) == redacted
    assert redacted in repr(Settings(databackend=uri))
    assert "secret" not in repr(Settings(databackend=uri))


@pytest.mark.parametrize(
    "form", ["sqlite://name.db", "sqlite:///name.db", "sqlite://./name.db", "sqlite:////{}/name.db"]
)
async def test_every_form_of_sqlite_uri_is_one_file(here, form):
    uri = form.format(str(here).lstrip("/"))
    async with asyncdl.connect(uri) as db:
        await db.execute(db["t"].insert({"id": 1}))
        assert db.metadata.joins(db.databackend)
    assert (here / "name.db").exists()
    assert (here / ".asyncdl" / "artifacts").is_dir()


async def test_nothing_but_defaults(here):
    async with asyncdl.connect() as db:
        await db.execute(db["t"].insert({"id": 1}))
    assert {path.name for path in here.iterdir()} == {".asyncdl"}
    assert (here / ".asyncdl" / "asyncdl.db").exists()


async def test_in_memory_leaves_nothing(here):
    async with asyncdl.connect("sqlite://:memory:", artifact_store="filesystem://./data") as db:
        await db.execute(db["t"].insert({"id": 1}))
        path = db.databackend.database.path
        assert path.exists()
    assert not path.exists()
    assert {each.name for each in here.iterdir()} == {"data"}


@pytest.mark.parametrize("metadata_store", ["sqlite://app.db", "sqlite:///./app.db"])
async def test_the_same_file_under_two_names_is_one_database(here, metadata_store):
    async with asyncdl.connect("sqlite://app.db", metadata_store=metadata_store) as db:
        assert db.metadata.joins(db.databackend)


async def test_awaited_and_closed_by_hand(here):
    connecting = asyncdl.connect("sqlite://app.db")
    db = await connecting
    with pytest.raises(ClosedError):
        await connecting
    await db.aclose()


async def test_two_datalayers_on_one_file_in_one_process(here):
    async with asyncdl.connect("sqlite://app.db") as one, asyncdl.connect("sqlite://app.db") as other:
        await one.execute(one["t"].insert({"id": 1}))
        assert await (await other.execute(other["t"])).to_list() == [{"id": 1}]


def test_importing_asyncdl_loads_nothing_heavy():
    code = "import sys, asyncdl; dir(asyncdl); print(sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in (
        "ibis",
        "pandas",
        "numpy",
        "pyarrow",
        "sqlalchemy",
        "dask",
        "distributed",
        "motor",
        "pydantic",
        "rich",
    ):
        assert f"'{heavy}'" not in loaded


def test_the_public_names():
    assert asyncdl.__all__ == sorted(asyncdl.__all__)
    assert set(asyncdl.__all__) <= set(dir(asyncdl))
    importlib.import_module("asyncdl.connect")
    assert callable(asyncdl.connect)  # the function, though a module of this name has been imported
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = asyncdl.nothing
