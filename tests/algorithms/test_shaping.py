"""Reward shaping: tables from the formulas, monotony, and independence of how rewards are cut."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlstack.algorithms import shaping

NAN = float("nan")
BRANCHES = {
    "correct_shortest": 1.0,
    "correct_longest": 0.5,
    "wrong_shortest": -1.0,
    "wrong_longest": -0.5,
}
reward_lists = st.lists(st.floats(-10, 10) | st.just(NAN), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("tokens", "value"),
    [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (101, -1), (10**6, -1)],
)
def test_soft_overlong_is_equation_13_and_never_below_minus_one(tokens: int, value: float) -> None:
    assert shaping.soft_overlong(tokens, max_tokens=100, buffer_tokens=20) == pytest.approx(value)


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_soft_overlong_refuses_an_impossible_buffer(buffer: int) -> None:
    with pytest.raises(ValueError, match=f"buffer_tokens={buffer} must be above 0 and at most"):
        shaping.soft_overlong(1, max_tokens=100, buffer_tokens=buffer)


@pytest.mark.parametrize(
    ("tokens", "correct", "value"),
    [
        (0, True, 1.0),
        (50, True, 0.75),
        (25, True, 0.75 + 0.25 * math.sqrt(0.5)),
        (100, True, 0.5),
        (200, True, 0.5),  # the bare cosine would be back at 1.0
        (0, False, -1.0),
        (50, False, -0.75),
        (100, False, -0.5),
        (200, False, -0.5),
    ],
)
def test_cosine_length_table(tokens: int, correct: bool, value: float) -> None:
    found = shaping.cosine_length(tokens, correct=correct, max_tokens=100, **BRANCHES)
    assert found == pytest.approx(value)


@given(first=st.integers(0, 300), second=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_cosine_length_is_monotone_in_both_branches(first: int, second: int) -> None:
    short, long = sorted((first, second))

    def reward(tokens: int, correct: bool) -> float:
        return shaping.cosine_length(tokens, correct=correct, max_tokens=100, **BRANCHES)

    assert reward(short, True) >= reward(long, True)
    assert reward(short, False) <= reward(long, False)


def test_cosine_length_refuses_the_swapped_defaults_of_open_rs() -> None:
    wrong = {**BRANCHES, "wrong_shortest": 0.0, "wrong_longest": -0.5}
    with pytest.raises(ValueError, match=r"wrong_shortest=0\.0 is more than wrong_longest=-0\.5"):
        shaping.cosine_length(1, correct=True, max_tokens=100, **wrong)
    with pytest.raises(ValueError, match="must not gain from length"):
        shaping.cosine_length(
            1, correct=False, max_tokens=100, **{**BRANCHES, "correct_longest": 2.0}
        )
    with pytest.raises(ValueError, match="max_tokens=0 must be above 0"):
        shaping.cosine_length(1, correct=True, max_tokens=0, **BRANCHES)


def test_clipping_leaves_what_was_not_judged() -> None:
    rewards = np.array([-7.0, NAN, 0.5, 9.0], dtype=np.float32)
    clipped = shaping.clip(rewards, low=-5.0, high=5.0)
    np.testing.assert_array_equal(clipped, np.array([-5.0, NAN, 0.5, 5.0]))
    assert clipped.dtype == np.float32
    assert rewards[0] == -7.0
    with pytest.raises(ValueError, match=r"low=1\.0 is more than high=0\.0"):
        shaping.clip(rewards, low=1.0, high=0.0)


def test_whitening_by_hand() -> None:
    rewards = np.array([1.0, NAN, 3.0, 5.0])
    whitened = shaping.whiten(rewards, shift_mean=True)
    np.testing.assert_allclose(whitened, [-1.0, NAN, 0.0, 1.0], atol=1e-8)
    np.testing.assert_allclose(
        shaping.whiten(rewards, shift_mean=False), [2.0, NAN, 3.0, 4.0], atol=1e-8
    )
    assert shaping.whiten(rewards.astype(np.float32), shift_mean=True).dtype == np.float32


@pytest.mark.parametrize("rewards", [[0.1] * 7, [0.7], [0.1, NAN, 0.1, 0.1]])
def test_equal_rewards_deviate_by_exactly_zero(rewards: list[float]) -> None:
    for dtype in (np.float32, np.float64):
        array = np.array(rewards, dtype=dtype)
        judged = ~np.isnan(array)
        assert (shaping.whiten(array, shift_mean=True)[judged] == 0).all()
        np.testing.assert_array_equal(shaping.whiten(array, shift_mean=False), array)


def test_nothing_judged() -> None:
    assert np.isnan(shaping.whiten(np.array([NAN, NAN]), shift_mean=True)).all()
