"""Chat and embeddings, against a server that speaks the same HTTP API."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

import asyncdl
from asyncdl import Datalayer, Listener, Model
from asyncdl.adapters.openai import Chat, Embeddings
from asyncdl.errors import ModelError
from tests.openai_service import Service, serve

pytestmark = pytest.mark.anyio


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serve() as service:
        yield service


@pytest.fixture
async def db(tmp_path) -> AsyncIterator[Datalayer]:
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", artifact_store=f"filesystem://{tmp_path}") as db:
        yield db


async def test_chat(db, service, monkeypatch):
    monkeypatch.setenv("MY_KEY", "a secret")
    chat = Chat("backwards", base_url=service.url, api_key_variable="MY_KEY", system="be short", options={"top_p": 0.5})
    await db.add(Model("llm", chat))
    assert await db.predict("llm", "one two three") == "three two one"
    [(key, body)] = service.requests
    assert key == "Bearer a secret"
    assert body["messages"] == [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "one two three"},
    ]
    assert (body["model"], body["top_p"]) == ("backwards", 0.5)
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c d"},
    ]
    assert await db.predict("llm", messages) == "d c"


async def test_the_key_is_not_stored(db, service, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    chat = Chat("backwards", base_url=service.url)
    assert await chat("a b") == "b a"
    assert b"very-secret" not in pickle.dumps(chat)
    again = await db.add(Model("llm", chat))
    assert (await db.add(Model("llm", Chat("backwards", base_url=service.url)))).component.uuid == again.component.uuid
    await chat.aclose()
    assert await chat("c d") == "d c"  # opened again
    await chat.aclose()


async def test_refused_for_a_while(db, service):
    service.refusals = [429, 500, 429]
    await db.add(Model("llm", Chat("backwards", base_url=service.url)))
    assert await db.predict("llm", "a b") == "b a"
    assert len(service.requests) == 4


async def test_refused_for_good(db, service):
    service.refusals = [401]
    await db.add(Model("llm", Chat("backwards", base_url=service.url)))
    with pytest.raises(ModelError, match=r"AuthenticationError.*refused with 401"):
        await db.predict("llm", "a b")
    assert len(service.requests) == 1


async def test_stream(db, service):
    await db.add(Model("llm", Chat("backwards", base_url=service.url)))
    assert [piece async for piece in db.stream("llm", "one two three")] == ["three", " two", " one"]


async def test_stream_that_is_left(db, service):
    await db.add(Model("llm", Chat("backwards", base_url=service.url)))
    async with aclosing(db.stream("llm", "word " * 100_000)) as pieces:
        async for _ in pieces:
            break
    await service.left.wait()


async def test_context(db, service):
    t = db["facts"]
    await db.execute(
        t.insert([{"id": 1, "text": "the {prompt} sky"}, {"id": 2, "text": "is blue"}, {"id": 3, "text": "no"}])
    )
    await db.add(Model("llm", Chat("backwards", base_url=service.url, template="Known: {context} Asked: {prompt}")))
    select = t.filter(t.id < 3).select("id", "text").order_by("id")
    answer = await db.predict("llm", "why {context}?", context_select=select, context_key="text")
    asked = "Known: the {prompt} sky\n\nis blue Asked: why {context}?"
    assert service.requests[0][1]["messages"][-1]["content"] == asked
    assert answer.output == " ".join(asked.split(" ")[::-1])
    assert answer.sources == [{"id": 1, "text": "the {prompt} sky"}, {"id": 2, "text": "is blue"}]


async def test_embeddings_of_rows(db, service):
    t = db["docs"]
    await db.execute(t.insert([{"id": n, "text": "x" * n} for n in range(1, 101)]))
    model = Model("embed", Embeddings("small", base_url=service.url, options={"dimensions": 2}), batch=True)
    await db.add(Listener("vector", model=model, key="text", select=t), wait=True)
    rows = await (await db.execute(t.outputs("vector").order_by("id"))).to_list()
    assert [list(row["vector"]) for row in rows] == [[float(n), 1.0] for n in range(1, 101)]
    assert len(service.requests) < 100
    assert service.requests[0][1]["dimensions"] == 2


async def test_answers_of_rows_at_most_so_many_at_once(db, service):
    t = db["docs"]
    await db.execute(t.insert([{"id": n, "text": f"{n} is"} for n in range(200)]))
    model = Model("llm", Chat("backwards", base_url=service.url), max_concurrency=7)
    await db.add(Listener("answer", model=model, key="text", select=t), wait=True)
    rows = await (await db.execute(t.outputs("answer").order_by("id"))).to_list()
    assert [row["answer"] for row in rows] == [f"is {n}" for n in range(200)]
    assert len(service.requests) == 200
    assert service.most <= 7
