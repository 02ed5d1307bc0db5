"""What a run says while it runs: each failure at once, and where a test stands that hangs.

With xdist nothing else does. pytest-timeout ends the worker, and what it says of it is lost with that; a run that is cut off,
as in CI, never comes to its summary; and of a test that has failed pytest-timeout no longer counts the time, so that one whose
fixtures then hang, as they wait for what the test has left half done, would hang for ever.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import threading
from collections.abc import Iterator

import pytest

_APART = 10.0
"""Seconds by which we tell of a hanging test before pytest-timeout ends its process, and end it after that, if it did not."""


class FailuresAtOnce:
    """Tells of each failure as it happens."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._plugins.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line("")
            terminal.write_line(f"{report.when} of {report.nodeid}:", red=True)
            terminal.write_line(report.longreprtext[-3000:])


class Hanging:
    """Tells of a test that will soon be ended for its time, with the stacks of its threads and tasks, and sees that it is."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._stderr = os.fdopen(os.dup(2), "w")  # that of the process: nothing is captured yet

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        marker = item.get_closest_marker("timeout")
        limit = marker.args[0] if marker is not None else float(self._config.getini("timeout"))
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=[item.nodeid, limit, ended], daemon=True)
        watch.start()
        try:
            return (yield)
        finally:
            ended.set()

    def _watch(self, test: str, limit: float, ended: threading.Event) -> None:
        if ended.wait(max(1.0, limit - _APART)):
            return
        self._tell(test)
        if not ended.wait(2 * _APART):
            os._exit(1)

    def _tell(self, test: str) -> None:
        print(f"\n{test} hangs:", file=self._stderr, flush=True)
        faulthandler.dump_traceback(self._stderr)  # a hundred threads of them, at most
        for each in gc.get_objects():
            # isinstance would ask proxies of dead objects, too
            if issubclass(type(each), asyncio.Task) and not each.done():
                each.print_stack(file=self._stderr)
        self._stderr.flush()
