"""A model behind aiohttp: the datalayer is opened and closed by the application's ``cleanup_ctx``.

pip install asyncdl aiohttp
python examples/aiohttp_app.py

curl 'localhost:8080/length?text=hello'
curl -X POST localhost:8080/words -d 'a line of text'
"""

import sys
from collections.abc import AsyncIterator

from aiohttp import web

import asyncdl
from asyncdl import Datalayer, Listener, Model, Table

DATALAYER = web.AppKey("datalayer", Datalayer)


def length(text: str) -> int:
    return len(text)


async def datalayer(app: web.Application) -> AsyncIterator[None]:
    async with asyncdl.connect() as db:
        await db.add(Table("lines", {"text": "string"}))
        await db.add(Listener("length", model=Model("length", length), key="text", select=db["lines"]))
        app[DATALAYER] = db
        yield


async def predict(request: web.Request) -> web.Response:
    db = request.app[DATALAYER]
    return web.json_response({"length": await db.predict("length", request.query["text"])})


async def write(request: web.Request) -> web.Response:
    db = request.app[DATALAYER]
    rows = [{"text": line} for line in (await request.text()).splitlines()]
    written = await db.execute(db["lines"].insert(rows))
    return web.json_response({"ids": written.ids}, status=202)  # the outputs follow; nobody waits for them here


async def read(request: web.Request) -> web.Response:
    db = request.app[DATALAYER]
    rows = await db.execute(db["lines"].outputs("length").order_by("id"))
    return web.json_response(await rows.to_list())


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(datalayer)
    app.add_routes([web.get("/length", predict), web.post("/words", write), web.get("/words", read)])
    return app


if __name__ == "__main__":
    web.run_app(make_app(), port=int(sys.argv[1]) if len(sys.argv) > 1 else 8080)
