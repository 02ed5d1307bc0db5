"""Notes with keywords, as a FastAPI application: the datalayer lives as long as the application does.

pip install "asyncdl[web]"
uvicorn examples.fastapi_app:app

curl -X POST localhost:8000/notes -H 'content-type: application/json' -d '{"text": "Bread needs flour, water and time"}'
"""

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

import asyncdl
from asyncdl import Application, Listener, Model, Table


def keywords(text: str) -> list[str]:
    """Return the three words of at least four letters that occur most often, in the order of the text."""
    return [word for word, _ in Counter(re.findall(r"\w{4,}", text.lower())).most_common(3)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncdl.connect() as db:  # ASYNCDL_DATABACKEND, or .asyncdl/ in the working directory
        app.state.db = db
        notes = db["notes"]
        model = Model("keywords", keywords, datatype="json")
        # Adding what is installed already changes nothing, so this can run at every start, in every worker.
        await db.add(
            Application(
                "notes", [Table("notes", {"text": "string"}), Listener("words", model=model, key="text", select=notes)]
            )
        )
        yield


app = FastAPI(title="notes", lifespan=lifespan)


class Note(BaseModel):
    text: str


@app.post("/notes", status_code=201)
async def create(note: Note, request: Request) -> dict[str, Any]:
    db = request.app.state.db
    written = await db.execute(db["notes"].insert([{"text": note.text}]))
    await written.wait()  # leave this out, and the answer does not wait for the keywords
    return await read(written.ids[0], request)


@app.get("/notes")
async def index(request: Request) -> list[dict[str, Any]]:
    db = request.app.state.db
    return await (await db.execute(db["notes"].outputs("words").order_by("id"))).to_list()


@app.get("/notes/{id}")
async def read(id: str, request: Request) -> dict[str, Any]:
    db = request.app.state.db
    notes = db["notes"].outputs("words")
    row = await (await db.execute(notes.filter(notes.id == id))).first()
    if row is None:
        raise HTTPException(404, f"there is no note {id}")
    return row


@app.put("/notes/{id}")
async def update(id: str, note: Note, request: Request) -> dict[str, Any]:
    db = request.app.state.db
    notes = db["notes"]
    written = await db.execute(notes.update({"text": note.text}, where=notes.id == id))
    await written.wait()
    return await read(id, request)


@app.delete("/notes/{id}", status_code=204)
async def delete(id: str, request: Request) -> None:
    db = request.app.state.db
    notes = db["notes"]
    await db.execute(notes.delete(where=notes.id == id))
