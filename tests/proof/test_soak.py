"""A short soak: nothing is held at its end that was not held near its beginning. Times are `benchmarks/soak.py`'s to tell.

``ASYNCDL_SOAK`` says how many seconds it takes (10).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.places import stores_of
from tests.proof.soaking import soak

pytestmark = pytest.mark.anyio

SECONDS = float(os.environ.get("ASYNCDL_SOAK", "10"))
RATE = 500


@pytest.mark.timeout(300 + 5 * SECONDS)
@pytest.mark.parametrize("pair", [("sqlite", "sqlite"), ("postgresql", "postgresql")], ids=" + ".join)
async def test_a_soak_leaves_nothing_behind(
    pair: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.param = pair
    with stores_of(request, tmp_path) as uris:
        soaked = await soak(uris, SECONDS, RATE)
    early, _, end = soaked.held
    assert (
        soaked.inserted
        == len(soaked.latencies)
        == int(SECONDS * 0.1 * RATE) + int(SECONDS * 0.4 * RATE) + int(SECONDS * 0.5 * RATE)
    )
    assert end.tasks <= early.tasks + 5, soaked.summary()  # a service at rest waits in one task or in a few
    assert end.threads <= early.threads + 2, soaked.summary()  # a pool's threads begin when they are first needed
    assert end.files <= early.files + 8, soaked.summary()  # a pool's connections, too
    assert end.megabytes < early.megabytes + 60, soaked.summary()
