"""Random deeds, faults, kills and cancellations, held against a simple model in memory.

``ASYNCDL_STATEFUL`` says how many examples are tried for each store (30).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import traceback
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from asyncdl.testing.faults import FAULTS
from tests.places import stores_of
from tests.proof import world
from tests.proof.world import How, World

EXAMPLES = int(os.environ.get("ASYNCDL_STATEFUL", "30"))
STEPS = 25
STORES = [("sqlite", "sqlite"), ("sqlite", "own"), ("postgresql", "postgresql"), ("replica set", "replica set")]

KEYS = st.lists(st.integers(0, 20), min_size=1, max_size=4, unique=True)
TEXTS = st.sampled_from(["", "one", "one two", "three two one"])
NAMES = st.sampled_from(["a", "b", world.WORDS])
CALLS = st.integers(1, 60)
HOW = st.one_of(
    st.sampled_from([How("waited"), How("returned")]),
    st.builds(How, st.just("cancelled"), CALLS),
    st.builds(How, st.just("faulty"), CALLS, st.sampled_from(FAULTS)),
    st.builds(How, st.just("killed"), CALLS),
)


class Machine(RuleBasedStateMachine):
    """The rules; what they do is in `World`, which lives on an event loop in a thread of its own."""

    def __init__(self, stores: Any, failures: list[str]) -> None:
        super().__init__()
        self._failures, self._steps = failures, []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stateful test")
        self._thread.start()
        self._stores = contextlib.ExitStack()
        self.world = World(self._stores.enter_context(stores()))
        self._run(self.world.begin())

    def _run(self, doing: Coroutine[Any, Any, Any], *step: Any) -> None:
        self._steps.append(f"{doing.__qualname__}{step}")
        try:
            asyncio.run_coroutine_threadsafe(doing, self._loop).result(300)
        except BaseException:  # what Hypothesis says of a failure that does not happen again does not tell of it
            self._failures.append("\n".join([*self._steps, traceback.format_exc()]))
            raise

    @rule(what=st.sampled_from(world.WRITES), keys=KEYS, text=TEXTS, how=HOW)
    def write(self, what: Any, keys: list[int], text: str, how: How) -> None:
        deed = what(self.world.state, keys, text)
        if deed is not None:
            self._run(self.world.do(deed, how), what.__name__, keys, text, how)

    @rule(what=st.sampled_from(world.CHANGES), name=NAMES, more=st.integers(0, 9), how=HOW)
    def change(self, what: Any, name: str, more: int, how: How) -> None:
        deed = what(self.world.state, name, more)
        if deed is not None:
            self._run(self.world.do(deed, how), what.__name__, name, more, how)

    @rule(which=st.integers(0, 100))
    def cancel_a_job(self, which: int) -> None:
        self._run(self.world.cancel_a_job(which))

    @rule()
    def restart(self) -> None:
        self._run(self.world.restart())

    @rule()
    def check(self) -> None:
        self._run(self.world.check())

    def teardown(self) -> None:
        try:
            self._run(self.world.check())
        finally:
            try:
                self._run(self.world.end())
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
                self._stores.close()


@pytest.mark.timeout(600 + 60 * EXAMPLES)
@pytest.mark.parametrize("pair", STORES, ids=" + ".join)
def test_whatever_is_done_the_stores_hold_what_must_be_there(
    pair: tuple[str, str], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    request.param = pair

    @contextlib.contextmanager
    def stores() -> Iterator[dict[str, str]]:
        folder: Path = tmp_path_factory.mktemp("stateful")
        with stores_of(request, folder) as uris:
            yield uris

    bounds = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[
            Phase.generate
        ],  # made smaller, a failure that is a timeout would take an hour: its steps are told instead
        suppress_health_check=list(HealthCheck),
    )
    failures: list[str] = []
    try:
        run_state_machine_as_test(lambda: Machine(stores, failures), settings=bounds)
    except BaseException as error:
        error.add_note(f"The first failure was:\n{(failures or ['none'])[0]}")
        raise
