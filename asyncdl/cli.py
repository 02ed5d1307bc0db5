"""The command line: ``asyncdl``."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.pretty import Pretty
from rich.table import Table

from asyncdl import copying
from asyncdl import demo as demonstration
from asyncdl.connect import connect
from asyncdl.errors import AsyncDLError
from asyncdl.settings import Settings, defaults, redact

app = typer.Typer(
    help="An asynchronous, event-driven datalayer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


@app.command()
def demo() -> None:
    """Follow Python's own language reference through two chained listeners, in a temporary folder."""
    asyncio.run(demonstration.run(console))


@app.command()
def show(
    type_id: Annotated[str | None, typer.Argument(help="A type of component, such as 'model'.")] = None,
    identifier: Annotated[str | None, typer.Argument(help="A component of this type.")] = None,
    version: Annotated[int | None, typer.Argument(help="One of its versions; -1: the newest.")] = None,
    databackend: Annotated[
        str | None, typer.Option(help="The databackend's URI; by default as the settings say.")
    ] = None,
) -> None:
    """Tell what is installed."""

    async def look() -> Any:
        async with connect(databackend) as db:
            return await db.show(type_id, identifier, version)

    found = asyncio.run(look())
    if isinstance(found, dict):
        console.print(Pretty(found))
    else:
        for each in found:
            console.print(f"{each['type_id']} {each['identifier']}" if isinstance(each, dict) else each)


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="The URI of the databackend to copy from.")],
    target: Annotated[str, typer.Argument(help="The URI of the databackend to copy to.")],
    source_metadata: Annotated[str | None, typer.Option(help="The source's metadata store, if elsewhere.")] = None,
    target_metadata: Annotated[str | None, typer.Option(help="The target's metadata store, if elsewhere.")] = None,
    source_artifacts: Annotated[str | None, typer.Option(help="The source's artifact store, if elsewhere.")] = None,
    target_artifacts: Annotated[str | None, typer.Option(help="The target's artifact store, if elsewhere.")] = None,
    rows_only: Annotated[bool, typer.Option(help="Leave out components, with their artifacts and outputs.")] = False,
) -> None:
    """Copy rows, components, artifacts and outputs from one set of backends to another; stop writing to the source first."""

    async def run() -> None:
        read = connect(source, metadata_store=source_metadata, artifact_store=source_artifacts, worker=False)
        write = connect(target, metadata_store=target_metadata, artifact_store=target_artifacts, worker=False)
        async with read as one, write as other:
            async for each in copying.copy(one, other, rows_only=rows_only):
                console.print(f"{each.what} {each.name}: {each.count:,}", highlight=False)

    asyncio.run(run())


@app.command()
def worker(
    databackend: Annotated[
        str | None, typer.Argument(help="The databackend's URI; by default as the settings say.")
    ] = None,
    grace: Annotated[
        float, typer.Option(help="Seconds that jobs under way have to end after SIGTERM or SIGINT.")
    ] = 20.0,
) -> None:
    """Do the work of an application, until SIGTERM or SIGINT: then jobs under way may end, and the rest is left to others."""
    asyncio.run(_work(databackend, grace))


async def _work(databackend: str | None, grace: float) -> None:
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopped.set)
    async with connect(databackend, worker=True) as db:
        console.print(f"working for {db!r}", soft_wrap=True, highlight=False)
        await stopped.wait()
        stopped.clear()
        console.print(f"stopping, within {grace:g} s; a second signal stops at once")
        draining = asyncio.ensure_future(db.drain(grace))
        at_once = asyncio.ensure_future(stopped.wait())
        await asyncio.wait({draining, at_once}, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (draining, at_once):
            waiting.cancel()


@app.command()
def settings() -> None:
    """Print the settings in force here, with what each means."""
    table = Table("setting", "value", "meaning")
    for name, field in Settings.model_fields.items():
        table.add_row(name, redact(str(getattr(defaults(), name))), field.description or "")
    console.print(table)


def main() -> None:
    """Run the command line; an error of asyncdl's is told in a line, without a traceback."""
    try:
        app()
    except AsyncDLError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: {error}", highlight=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
