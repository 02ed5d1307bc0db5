"""``asyncdl demo``: Python's own language reference, followed through two chained listeners."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncdl.components.listener import Listener
from asyncdl.components.model import Model
from asyncdl.connect import connect
from asyncdl.datalayer import Datalayer
from asyncdl.events.types import ComponentAdded, ComponentReady, OutputsWritten, RowsDeleted, RowsInserted, RowsUpdated

_WORD = re.compile(r"[A-Za-z_]{3,}")


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text."""
    return [each.strip() for each in re.split(r"\n\s*\n", text) if each.strip()]


def longest_word(paragraph: str) -> str:
    """Return the longest word of a paragraph, the first of several."""
    return max(_WORD.findall(paragraph), key=len, default="")


async def run(console: Console) -> None:
    """Run the demonstration, telling what happens as it happens."""
    with tempfile.TemporaryDirectory(prefix="asyncdl-demo-") as folder:
        begun = time.perf_counter()
        data, artifacts = Path(folder) / "demo.db", Path(folder) / "artifacts"
        async with connect(f"sqlite:///{data}", artifact_store=f"filesystem://{artifacts}", progress=False) as db:
            _announce(db, console)
            await _follow(db, console)
        console.print(f"\nClosed after {time.perf_counter() - begun:.1f} s; the folder {folder} is gone, too.")


def _announce(db: Datalayer, console: Console) -> None:
    """Print events as they come, from a handler such as applications register."""

    @db.on(RowsInserted, RowsUpdated, RowsDeleted, OutputsWritten, ComponentAdded, ComponentReady)
    def tell(event: Any) -> None:
        what = getattr(event, "table", None) or event.identifier
        rows = f" · {len(event.ids)} rows" if hasattr(event, "ids") else ""
        console.print(f"  [dim]event {event.seq:>3}[/]  {type(event).__name__} [cyan]{what}[/]{rows}", highlight=False)


async def _follow(db: Datalayer, console: Console) -> None:
    docs = db["docs"]
    rows = [{"id": name, "text": text} for name, text in sorted(topics.items())]
    console.rule(f"{len(rows)} topics of Python's language reference into [bold]{db.databackend.url}", align="left")
    await db.execute(docs.insert(rows))

    console.rule(
        "A listener splits each text into paragraphs; one listening on it finds the longest word of each", align="left"
    )
    first = Listener(
        "paragraph", model=Model("paragraphs", paragraphs, datatype="string"), key="text", select=docs, flatten=True
    )
    await db.add(first)
    select = docs.outputs("paragraph").select("id", "paragraph_position", "paragraph")
    added = await db.add(Listener("word", model=Model("longest_word", longest_word), key="paragraph", select=select))
    await added.wait()
    await db.wait_idle()
    await _table(db, console, "The longest words")

    console.rule("A row is updated, another deleted: the outputs follow", align="left")
    text = "A short text.\n\nIts longest word is incomprehensibilities."
    updated = await db.execute(docs.update({"text": text}, where=docs.id == "lambda"))
    await updated.wait()
    deleted = await db.execute(docs.delete(where=docs.id == "assert"))
    await deleted.wait()
    words = docs.outputs("paragraph", "word")
    now = await (await db.execute(words.filter(words.id == "lambda").select("paragraph", "word"))).to_list()
    gone = await (await db.execute(words.filter(words.id == "assert").count().name("rows"))).to_list()
    await db.wait_idle()
    console.print(f"'lambda' has now {now}")
    console.print(f"'assert' has now {gone[0]['rows']} outputs")


async def _table(db: Datalayer, console: Console, title: str) -> None:
    words = db["docs"].outputs("paragraph", "word")
    longest = words.mutate(letters=words.word.length())
    best = longest.order_by([longest.letters.desc(), longest.id]).select("word", "letters", "id").limit(6)
    table = Table("word", "letters", "topic", title=title, title_justify="left")
    async for row in await db.execute(best):
        table.add_row(row["word"], str(row["letters"]), row["id"])
    console.print(table)
