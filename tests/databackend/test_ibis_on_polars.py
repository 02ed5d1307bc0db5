"""The databackend over ibis' connections, on Polars, which lives in memory and in its connection."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio
pytest.importorskip("polars")
