"""A child process that runs models: what `asyncdl.compute.pool` starts.

It reads requests from its standard input and writes replies to its standard output (a model's own prints go to
standard error). A message is a length of 8 bytes and as many bytes. A request is two messages: a pickled head
``(kind, call)`` and a body. Each but ``"forget"`` is answered with one: a pickled ``(kind, value)``.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import threading
from queue import SimpleQueue
from typing import Any, BinaryIO

from asyncdl.compute.base import ModelCall
from asyncdl.compute.calling import Stop, row_error, run, target
from asyncdl.compute.replies import FAILED, NO_OUTPUTS, outputs_reply
from asyncdl.errors import ModelError, ModelOutputError

LENGTH = struct.Struct("!Q")

LOAD, CALL, FORGET = "load", "call", "forget"
LOADED = "loaded"


def main() -> None:
    """Serve requests until the parent closes the pipe, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    models: dict[str, Any] = {}
    while True:
        reply = _serve(models, inbox.get(), inbox.get())
        if reply is not None:
            replies.write(LENGTH.pack(len(reply)))
            replies.write(reply)
            replies.flush()


def _receive(requests: BinaryIO, inbox: SimpleQueue[bytes]) -> None:
    """Read on while a model runs: the end of the pipe is the parent's end, and must be ours at once."""
    while len(length := requests.read(LENGTH.size)) == LENGTH.size:
        inbox.put(requests.read(LENGTH.unpack(length)[0]))
    os._exit(0)


def _serve(models: dict[str, Any], head: bytes, body: bytes) -> bytes | None:
    kind: str
    call: ModelCall
    try:
        kind, call = pickle.loads(head)  # noqa: S301 - our parent's
        if kind == FORGET:
            models.pop(call.uuid, None)
            return None
        if kind == LOAD:
            models[call.uuid] = pickle.loads(body)  # noqa: S301 - the parent has checked what it sends
            return pickle.dumps((LOADED, None))
        outputs = run(target(models[call.uuid], call), call, pickle.loads(body), Stop())  # noqa: S301
        return outputs_reply(outputs)
    except ModelOutputError as error:
        return pickle.dumps((NO_OUTPUTS, str(error)))
    except ModelError as error:
        return pickle.dumps((FAILED, str(error)))
    except BaseException as error:  # unpickling runs anybody's code
        what = row_error(error)
        return pickle.dumps((FAILED, f"in a process: {what.type}: {what.message}\n{what.traceback}"))
