"""What trains the models of the tests: importable, so that other processes find it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from asyncdl import AsyncTraining, Training

hold: dict[str, threading.Event] = {}
"""By the name of a model that is `held`: what its training waits for."""
reached: dict[str, threading.Event] = {}
"""What it sets once it waits."""


class Mean:
    """Predicts the mean of the targets, and knows how often it was fitted."""

    def __init__(self) -> None:
        self.mean = float("nan")
        self.fitted = 0

    def fit(self, X: list[float], y: list[float]) -> None:
        self.mean, self.fitted = sum(y) / len(y), self.fitted + 1

    def predict(self, X: list[float]) -> list[float]:
        return [self.mean] * len(X)


def epochs(model: Mean, X: list[Any], y: list[Any], training: Training, *, log: str, count: int = 6) -> None:
    """Note each epoch in a file; where the environment says so, hang after an epoch whose checkpoint was kept."""
    state = training.restored or {"epoch": 0, "total": 0.0}
    if "ASYNCDL_TEST_DIES_AFTER" in os.environ:
        timer = threading.Timer(float(os.environ["ASYNCDL_TEST_DIES_AFTER"]), os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    for epoch in range(state["epoch"], count):
        with Path(log).open("a") as file:
            file.write(f"{epoch}\n")
        state = {"epoch": epoch + 1, "total": state["total"] + float(np.mean(y))}
        training.checkpoint(state)
        training.report(epoch + 1, count, loss=1 / (epoch + 1))
        if os.environ.get("ASYNCDL_TEST_HANG_AFTER") == str(epoch):
            sys.stdout.write("hanging\n")
            sys.stdout.flush()
            time.sleep(600)
    model.mean = state["total"] / count


async def epochs_on_loop(model: Mean, X: list[Any], y: list[Any], training: AsyncTraining, *, count: int = 3) -> Mean:
    state = training.restored or 0
    for epoch in range(state, count):
        await training.checkpoint(epoch + 1)
        await training.report(epoch + 1, count, loss=1.0)
    trained = Mean()
    trained.fit(X, y)
    return trained


def held(model: Mean, X: list[Any], y: list[Any], training: Training, *, name: str) -> None:
    """Train once the test lets it, and report meanwhile: so that it can be cancelled."""
    reached[name].set()
    while not hold[name].wait(0.01):
        training.report(0, 1, waiting=1)
    model.fit(X, y)


passes: set[str] = set()
"""Those of which a `held_once` waits no more, if it has not begun to."""


def held_once(model: Mean, X: list[Any], y: list[Any], training: Training, *, name: str) -> None:
    if name not in passes:
        held(model, X, y, training, name=name)
    model.fit(X, y)


def fails(model: Mean, X: list[Any], y: list[Any]) -> None:
    raise ValueError("there is nothing to be learned")


broken = True
"""Whether `fails_while_broken` does."""


def fails_while_broken(model: Mean, X: list[Any], y: list[Any], training: Training) -> None:
    training.checkpoint("begun")
    if broken:
        raise ValueError("broken")
    assert training.restored == "begun"
    model.fit(X, y)


def returns_nonsense(model: Mean, X: list[Any], y: list[Any]) -> int:
    return 3


def wide(model: Mean, *, pairs: list[tuple[float, float]], target: list[float]) -> Mean:
    """Take what a mapping names."""
    model.mean = sum(left * right for left, right in pairs) + sum(target)
    return model


def kills_its_process(model: Mean, X: list[Any], y: list[Any]) -> None:
    os._exit(3)


def mean_error(targets: list[float], outputs: list[float]) -> float:
    return float(np.mean(np.abs(np.array(targets) - np.array(outputs))))


async def largest_error(targets: list[float], outputs: list[float], *, scale: float = 1.0) -> float:
    return max(abs(target - output) for target, output in zip(targets, outputs, strict=True)) * scale


def of_means(model: Any, X: list[float], y: list[float]) -> Any:
    """Return a function in the place of what was declared."""
    trained = Mean()
    trained.fit(X, y)
    return trained.predict


def wide_mean(model: Mean, X: list[float], y: list[float], *, plus: float) -> None:
    model.mean = sum(y) / len(y) + plus


def never_ends(model: Mean, X: list[Any], y: list[Any], training: Training, *, pid: str) -> None:
    Path(pid).write_text(str(os.getpid()))
    training.report(1, 2, begun=1)
    time.sleep(600)


def naps(model: Mean, X: list[Any], y: list[Any]) -> None:
    time.sleep(2)


def doubles_later(x: float, *, name: str) -> float:
    reached[name].set()
    hold[name].wait()
    return 2 * x
