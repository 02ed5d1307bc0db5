"""The page on backends says what the code declares. ``python -m tests.test_backends_page`` writes its tables anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from asyncdl.schemes import KINDS, Kind

PAGE = Path(__file__).parent.parent / "docs" / "backends.md"
ROLES = ("databackend", "metadata_store", "artifact_store")


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _needs(kind: Kind) -> str:
    return f'`pip install "asyncdl[{kind.extra}]"`' if kind.extra else "nothing"


def kinds() -> Iterator[str]:
    for kind in KINDS:
        schemes = "".join(f", `{each}://...`" for each in kind.schemes[1:])
        roles = " | ".join(_yes(getattr(kind, role)) for role in ROLES)
        yield f"| {kind.name} | `{kind.example}`{schemes} | {roles} | {_needs(kind)} |"


def databackends() -> Iterator[str]:
    for kind in KINDS:
        if kind.databackend is not None:
            can = kind.features
            language = "the driver's" if kind.name == "MongoDB" else "ibis"
            flags = " | ".join(_yes(each) for each in (can.one_commit, can.whole, can.several))
            yield f"| {kind.name} | {language} | {can.writes} | {flags} | {can.notices} |"


def written(page: str) -> str:
    """Return the page with its tables as the code has them."""
    lines: list[str] = []
    tables = iter((kinds(), databackends()))
    rows = False
    for line in page.splitlines():
        if line.startswith("|---"):
            lines += [line, *next(tables)]
            rows = True
        elif not (rows and line.startswith("|")):
            rows = False
            lines.append(line)
    return "\n".join(lines) + "\n"


def test_the_tables_are_what_the_code_declares() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page)
    assert page.count("\n| ") > len(KINDS)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
