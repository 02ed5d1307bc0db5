"""Virtual environments for the competitors, each made once and kept.

Standard library only: this may run before anything is installed.
"""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PEERS = {
    "superduper": ["superduper-framework==0.10.0", "superduper-sql==0.10.0"],
    "pixeltable": ["pixeltable==0.7.*"],
}


def default_folder() -> Path:
    """Return where environments are kept.

    Root's are not kept under its home, which only root can reach: pixeltable's PostgreSQL runs as somebody else.
    """
    if os.geteuid() == 0:
        return Path("/var/cache/asyncdl-benchmarks")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asyncdl-benchmarks"


def environment(name: str, requirements: list[str], folder: Path) -> Path:
    """Return the interpreter of an environment; make it where it is missing, unfinished or for other requirements."""
    place = folder / name
    python = place / "bin" / "python"
    stamp = place / "installed.txt"
    wanted = "\n".join([sys.version, *requirements])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {', '.join(requirements)} into {place}", flush=True)
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *requirements], check=True
        )
        stamp.write_text(wanted)
    return python


def ensure_own(folder: Path) -> None:
    """Start again in an environment with asyncdl's dependencies, unless this one has them."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    try:
        for requirement in requirements:
            distribution(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    except PackageNotFoundError:
        python = environment("asyncdl", requirements, folder)
        if Path(sys.prefix).resolve() == python.parent.parent.resolve():
            raise  # it was installed just now: starting again would not end
        os.execv(python, [str(python), *sys.argv])
