"""The work that every competitor does: the rows, the function, and what must come out.

It runs in every competitor's environment, so it imports the standard library only.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CHUNK = 1_000
"""Rows in one write."""

RESULT = "result.json"
"""Where a competitor leaves its figures, in its working directory."""


def length(text: str) -> int:
    """The model: as good as nothing, so that what is measured is everything around it."""
    return len(text)


def text(number: int) -> str:
    """Return the text of a row: 6 to 50 characters, some of them beyond ASCII."""
    return f"row {number} " + "café "[: number % 5] * (number % 11)


def key(number: int, kind: str) -> int | str:
    """Return the primary key of a row: its number, or 32 hexadecimal digits that begin at random, as a UUID4 does."""
    if kind == "int":
        return number
    return f"{number * 2_654_435_761 % 2**32:08x}{number:024x}"


def number(key: int | str) -> int:
    """Return the number of the row that has this key."""
    return key if isinstance(key, int) else int(key[8:], 16)


def row(number: int, kind: str) -> dict[str, Any]:
    """Return a row."""
    return {"id": key(number, kind), "text": text(number)}


def chunks(start: int, stop: int, kind: str, size: int = CHUNK) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a range of numbers in lists, one at a time."""
    for first in range(start, stop, size):
        yield [row(number, kind) for number in range(first, min(first + size, stop))]


def summary(outputs: Iterable[tuple[int | str, int]]) -> dict[str, int]:
    """Sum up pairs of key and output: `paired` differs, too, where outputs stand at the wrong rows."""
    count = total = paired = 0
    for key, output in outputs:
        count += 1
        total += output
        paired += (number(key) + 1) * output
    return {"count": count, "total": total, "paired": paired}


def expected(count: int) -> dict[str, int]:
    """Return the summary of the right outputs of the first rows."""
    return summary((number, length(text(number))) for number in range(count))


def finish(*, seconds: float, outputs: dict[str, int], **figures: Any) -> None:
    """Leave the figures to whoever started this process."""
    Path(RESULT).write_text(json.dumps({"seconds": seconds, "outputs": outputs, **figures}))


def parser() -> argparse.ArgumentParser:
    """Return a parser of the options that every competitor has."""
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--keys", choices=("int", "text"), default="int")
    return options
