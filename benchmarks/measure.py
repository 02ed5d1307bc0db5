"""Runs of one competitor: each a process of its own, in a folder of its own, with its outputs checked."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import ROOT
from peers import workload

SCRIPTS = Path(__file__).resolve().parent / "peers"
TIMEOUT = 1800.0

Figures = dict[str, Any]


class RunFailedError(Exception):
    """A competitor ended with an error, or with wrong outputs."""


@dataclass(frozen=True)
class Run:
    """What is to be run."""

    name: str
    script: str
    rows: int
    keys: str
    mode: str = ""
    python: Path = Path(sys.executable)

    @property
    def outputs(self) -> int:
        """How many outputs there must be in the end."""
        return self.rows + (workload.CHUNK if self.mode in {"live", "one-row"} else 0)


expected = functools.cache(workload.expected)


def measure(run: Run) -> Figures:
    """Run a competitor once and return its figures."""
    with tempfile.TemporaryDirectory(prefix="asyncdl-") as folder:
        work = Path(folder)
        work.chmod(0o755)  # pixeltable's PostgreSQL may run as another user, and must get in
        command = [str(run.python), str(SCRIPTS / run.script), "--rows", str(run.rows), "--keys", run.keys]
        command += ["--mode", run.mode] if run.mode else []
        log = work / "log.txt"
        with log.open("wb") as output:
            try:
                ended = subprocess.run(
                    command,
                    cwd=work,
                    env=_surroundings(run, work),
                    stdout=output,
                    stderr=output,
                    timeout=TIMEOUT,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise RunFailedError(f"{run.name} was not done after {TIMEOUT:.0f} s") from error
        result = work / workload.RESULT
        if ended.returncode or not result.exists():
            tail = log.read_text(errors="replace").strip().splitlines()[-6:]
            raise RunFailedError(f"{run.name} ended with {ended.returncode}:\n" + "\n".join(tail))
        figures: Figures = json.loads(result.read_text())
    if figures["outputs"] != expected(run.outputs):
        raise RunFailedError(f"{run.name}: its outputs are {figures['outputs']}, and should be {expected(run.outputs)}")
    return figures


def _surroundings(run: Run, work: Path) -> dict[str, str]:
    """Return environment variables by which nobody's configuration is found, and asyncdl only in this checkout."""
    foreign = ("ASYNCDL_", "SUPERDUPER_", "PIXELTABLE_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own = {"PYTHONPATH": str(ROOT)} if run.script == "ours.py" else {}
    return kept | own | {"HOME": str(work)}
