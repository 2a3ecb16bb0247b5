"""Seconds as people read them, also where rounding carries over."""

import pytest

from rlstack.run.durations import readable


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.23, "4.2 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (11520, "3 h 12 min"),
    ],
)
def test_readable(seconds: float, text: str) -> None:
    assert readable(seconds) == text
