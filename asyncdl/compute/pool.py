"""Child processes that run models, each for one batch at a time.

Why not `concurrent.futures`: there one dead child breaks the pool and fails every batch in it, and a batch that takes
too long cannot be ended. Here a child is killed, or dies, alone; the next batch gets a fresh one. A child is a new
interpreter, never a fork (a fork of a process with threads deadlocks), and unlike those of `multiprocessing` it does
not run ``__main__`` again: a script needs no guard. It ends when its pipe does, so it survives neither this process's
end nor its being killed.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import cloudpickle

from asyncdl.compute.base import ModelCall
from asyncdl.compute.child import CALL, FORGET, LENGTH, LOAD
from asyncdl.compute.replies import FAILED, NO_OUTPUTS
from asyncdl.errors import ModelError, ModelOutputError, WorkerLostError

_MAIN = "import sys; sys.path[:] = sys.argv[1:]; from asyncdl.compute.child import main; main()"

_POLL = 1000
"""Milliseconds between looks at whether a silent child is alive."""

_LAST_WORDS = 5
"""Seconds that a child which closed its pipe may take to exit, before it is killed."""


class _Died(Exception):  # noqa: N818
    """The child's end of a pipe is closed."""


class Child:
    """A child process, started when first needed and again after it died; a worker's `Resource`.

    One thread talks to it. `begin` and `interrupt` come from the event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # between a thread that starts a process and the loop that kills it
        self._process: subprocess.Popen[bytes] | None = None
        self._killed: list[subprocess.Popen[bytes]] = []
        self._interrupted = False
        self._models: set[str] = set()

    # on the loop

    def begin(self) -> None:
        """Let a process that was killed be replaced."""
        with self._lock:
            if self._interrupted and self._process is not None:
                self._killed.append(self._process)
                self._process = None
            self._interrupted = False

    def interrupt(self) -> None:
        """Kill the process, and what it started."""
        with self._lock:
            self._interrupted = True
            if self._process is not None:
                _kill(self._process)

    # in the thread

    def load(self, call: ModelCall, payload: bytes) -> None:
        """Have the process load a model, unless it has it already.

        Raises
        ------
        ModelError
            It cannot be loaded.
        WorkerLostError
            The process died of it.
        """
        process = self._ready()
        if call.uuid in self._models:
            return
        try:
            self._ask(process, (LOAD, call), payload)
        except _Died:
            self._raise_died(process, f"while it loaded model {call.uuid}")
        self._models.add(call.uuid)

    def call(self, call: ModelCall, inputs: Sequence[Any]) -> list[Any]:
        """Return a loaded model's outputs for a batch.

        Raises
        ------
        ModelOutputError
            A batch function returned something else than one output for each input.
        ModelError
            The inputs or outputs cannot be pickled.
        WorkerLostError
            The process died.
        """
        with self._lock:
            process = self._process
        if process is None:  # interrupted between loading and calling
            raise ModelError(f"model {call.uuid}: the process was stopped")
        try:
            body = cloudpickle.dumps(inputs)
        except Exception as error:
            raise ModelError(f"model {call.uuid}: its inputs cannot be sent to a process: {error}") from error
        try:
            outputs: list[Any] = self._ask(process, (CALL, call), body)
        except _Died:
            self._raise_died(process, f"while it ran a batch of {len(inputs)} for model {call.uuid}")
        return outputs

    def forget(self, uuid: str) -> None:
        """Have the process drop a model."""
        if self._process is not None and uuid in self._models:
            self._models.discard(uuid)
            with suppress(_Died):
                self._send(self._process, cloudpickle.dumps((FORGET, ModelCall(uuid))), b"")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._interrupted = True
            processes = [*self._killed, *([self._process] if self._process is not None else [])]
            self._process, self._killed = None, []
        for process in processes:
            _end(process)

    def _ready(self) -> subprocess.Popen[bytes]:
        """Return a live process."""
        while self._killed:
            _end(self._killed.pop())
        process = self._process
        if process is not None and process.poll() is None:
            return process
        if process is not None:
            _end(process)
        self._models.clear()
        started = _start()
        with self._lock:
            self._process = started
            if self._interrupted:
                _kill(started)
        return started

    def _ask(self, process: subprocess.Popen[bytes], head: tuple[str, ModelCall], body: bytes) -> Any:
        self._send(process, cloudpickle.dumps(head), body)
        reply = _read(process, LENGTH.unpack(_read(process, LENGTH.size))[0])
        try:
            kind, value = pickle.loads(reply)  # noqa: S301 - our child's
        except Exception as error:
            raise ModelError(f"model {head[1].uuid}: its outputs cannot be unpickled: {error}") from error
        if kind == NO_OUTPUTS:
            raise ModelOutputError(value)
        if kind == FAILED:
            raise ModelError(f"model {head[1].uuid}: {value}")
        return value

    def _send(self, process: subprocess.Popen[bytes], *messages: bytes) -> None:
        assert process.stdin is not None  # noqa: S101 - we asked for a pipe
        try:
            for message in messages:
                process.stdin.write(LENGTH.pack(len(message)))
                process.stdin.write(message)
            process.stdin.flush()
        except OSError as error:
            raise _Died from error

    def _raise_died(self, process: subprocess.Popen[bytes], when: str) -> NoReturn:
        with self._lock:
            self._process = None
        raise WorkerLostError(f"a process {_end(process)} {when}; asyncdl starts another one") from None


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-c", _MAIN, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # killed with all that the model started; the terminal's Ctrl-C does not reach it
        )
    except OSError as error:
        raise ModelError(f"a process for models cannot be started: {error}") from error


def _read(process: subprocess.Popen[bytes], size: int) -> bytearray:
    """Read from a child; it may be dead while something that it started keeps the pipe open."""
    assert process.stdout is not None  # noqa: S101 - we asked for a pipe
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data, at = bytearray(size), 0
    while at < size:
        if not poll.poll(_POLL):
            if process.poll() is not None:
                raise _Died
            continue
        count = os.readv(descriptor, [memoryview(data)[at:]])
        if not count:
            raise _Died
        at += count
    return data


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started; what is dead may be killed again, soon after its end."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> str:
    """End a process, and return how it did."""
    with suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        status = process.wait(_LAST_WORDS)
    except subprocess.TimeoutExpired:
        _kill(process)
        status = process.wait()
    _kill(process)  # what it left behind
    if process.stdout is not None:
        process.stdout.close()
    if status >= 0:
        return f"exited with status {status}"
    return f"was killed by {signal.Signals(-status).name}"
