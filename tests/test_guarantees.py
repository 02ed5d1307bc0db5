"""docs/guarantees.md: a row for each guarantee of the design, and tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = re.findall(r"^\| (\d+) \|(.*)\|$", (ROOT / "docs" / "guarantees.md").read_text(), re.MULTILINE)
NAMED = sorted({each for _, row in ROWS for each in re.findall(r"`([\w/]+\.py::\w+)`", row)})


def test_each_guarantee_has_a_row_and_each_row_a_test():
    assert [int(number) for number, _ in ROWS] == sorted(int(number) for number, _ in ROWS)
    assert {int(number) for number, _ in ROWS} == set(range(1, 13))
    assert all(".py::" in row for _, row in ROWS)


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_exists(name):
    path, _, function = name.partition("::")
    assert re.search(rf"^ *(async )?def {function}\(", (ROOT / path).read_text(), re.MULTILINE)
