"""DAPO equation 13, by a table: limit 100 tokens, buffer 20."""

import math

import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rewards.shipped.overlong import overlong
from rlstack.errors import RewardError
from rlstack.types import RewardRequest


def request(tokens: int, *, limit: int = 100) -> RewardRequest:
    return RewardRequest(prompt="", response="", response_tokens=tokens, max_response_tokens=limit)


@pytest.mark.parametrize(
    ("tokens", "value"),
    [(0, 0.0), (79, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (140, -1)],
)
def test_equation_13(tokens: int, value: float) -> None:
    assert overlong(request(tokens), buffer_tokens=20) == pytest.approx(value)


def test_no_penalty_is_plain_zero() -> None:
    penalty = overlong(request(80), buffer_tokens=20)
    assert penalty is not None
    assert math.copysign(1, penalty) == 1


def test_without_a_limit_it_cannot_judge() -> None:
    assert overlong(request(50, limit=0), buffer_tokens=20) is None


def test_buffer_longer_than_the_limit() -> None:
    with pytest.raises(RewardError, match="buffer_tokens=101 is more than the 100 tokens"):
        overlong(request(50), buffer_tokens=101)


def test_buffer_is_required_and_positive() -> None:
    with pytest.raises(RewardError, match="needs the parameter 'buffer_tokens'"):
        build("overlong", {})
    with pytest.raises(RewardError, match="greater than 0"):
        build("overlong", {"buffer_tokens": 0})
