"""The last match of a pattern."""

import re

import pytest

from rewards.shipped.extraction import last_match


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"\d+", "1 then 22", "22"),
        (r"= *(\d+)", "= 1, = 22 or 3", "22"),
        (r"<a>(.*?)</a>", "<a> x </a>", "x"),
        (r"\d+", "none", None),
        (r"a(b)?", "a", None),
    ],
)
def test_last_match(pattern: str, text: str, found: str | None) -> None:
    assert last_match(text, re.compile(pattern)) == found
