"""README and docs: their code blocks run, and they name everything public."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asyncdl
from asyncdl.settings import Settings

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DESIGN = ROOT.parent / "shared" / "DESIGN.md"


def blocks(page: Path) -> list[tuple[int, str]]:
    """Return a page's Python blocks, each with the number of its first line."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def is_program(code: str) -> bool:
    return "asyncio.run(" in code


PROGRAMS = [(page, line, code) for page in PAGES for line, code in blocks(page) if is_program(code)]
assert PROGRAMS


@pytest.mark.parametrize(("page", "line", "code"), PROGRAMS, ids=lambda value: getattr(value, "name", None))
def test_a_program_runs(page, line, code, tmp_path):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(not is_program(code) for _, code in blocks(page))],
    ids=lambda page: page.name,
)
async def test_fragments_run_in_the_order_of_their_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with asyncdl.connect("sqlite://app.db") as db:
        names = {"db": db, "__name__": "fragments"}
        for line, code in blocks(page):
            if not is_program(code):
                padded = "\n" * (line - 1) + code
                compiled = compile(padded, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(compiled, names)
                if inspect.isawaitable(result):
                    await result
        assert set(names) > {"db"}


def documentation() -> str:
    return "\n".join(page.read_text() for page in PAGES)


@pytest.mark.parametrize("name", asyncdl.__all__)
def test_every_public_name_has_documentation(name):
    assert inspect.getdoc(getattr(asyncdl, name))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in asyncdl.__all__
        if isinstance(getattr(asyncdl, name), type)
        and issubclass(getattr(asyncdl, name), (asyncdl.Event, asyncdl.Component))
    ],
)
def test_every_event_and_component_is_on_a_page(name):
    assert re.search(rf"`.*\b{name}\b.*`|^## {name}$", documentation(), re.MULTILINE)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_on_its_page_with_its_default(name):
    page = (ROOT / "docs" / "settings.md").read_text()
    row = re.search(rf"^\| `{name}` \|(.*)$", page, re.MULTILINE)
    assert row
    default = Settings.model_fields[name].default
    if default is not None:
        shown = (
            str(default).lower()
            if isinstance(default, bool)
            else f"{default:g}"
            if isinstance(default, float)
            else str(default)
        )
        assert f"`{shown}`" in row[1]


@pytest.mark.parametrize("name", [name for name in vars(asyncdl.Datalayer) if name[0] != "_" and name != "closes"])
def test_every_method_of_the_datalayer_is_on_its_page(name):
    assert re.search(rf"^\| .*db\.{name}\(", (ROOT / "docs" / "datalayer.md").read_text(), re.MULTILINE) or name == "on"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists()
