"""What docs/reliability.md promises is held by tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_names_tests_that_exist():
    """A line, or the lines of a point, ends with at least one; each is a function of the file that is named."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    points = re.findall(r"^- .*?(?=^- |^#|^\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert points
    for point in points:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", point)
        assert named, f"no test holds: {point}"
        for file, test in named:
            assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"
