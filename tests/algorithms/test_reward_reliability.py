"""R^2 of rewards against actual scores: by hand, against numpy's fit, and what it chooses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlstack.algorithms.reward_reliability import most_reliable_strategy, r_squared

NAN = float("nan")


def test_by_hand() -> None:
    """Points (0, 0), (1, 2), (2, 1): slope 1/2, residuals 1.5 of 2 squares, R^2 = 1/4."""
    rewards = torch.tensor([0.0, 1.0, 2.0, NAN, 1.0])
    scores = torch.tensor([0.0, 2.0, 1.0, 9.0, NAN])
    assert r_squared(rewards, scores, torch.ones(5), num_bins=3) == pytest.approx(0.25)


def test_a_straight_line_gives_one_and_a_symmetric_curve_nothing() -> None:
    rewards = torch.linspace(-1, 1, 41, dtype=torch.float64)
    ones = torch.ones(41)
    assert r_squared(rewards, 3 - 2 * rewards, ones, num_bins=41) == pytest.approx(1)
    assert r_squared(rewards, rewards.square(), ones, num_bins=41) == pytest.approx(0, abs=1e-12)


@given(seed=st.integers(0, 1000), num_bins=st.integers(3, 8))
@settings(max_examples=40, deadline=None)
def test_is_the_fit_of_numpy_over_bins_made_by_a_loop(seed: int, num_bins: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, scores, weights = torch.rand(3, 60, generator=generator, dtype=torch.float64)
    weights = torch.where(weights > 0.3, weights, 0.0)
    low, high = float(rewards.min()), float(rewards.max())
    bins: dict[int, list[tuple[float, float, float]]] = {}
    for reward, score, weight in zip(
        rewards.tolist(), scores.tolist(), weights.tolist(), strict=True
    ):
        index = min(int((reward - low) / (high - low) * num_bins), num_bins - 1)
        bins.setdefault(index, []).append((weight, reward, score))
    points = [
        (sum(w * r for w, r, _ in bin_) / total, sum(w * s for w, _, s in bin_) / total)
        for bin_ in bins.values()
        if (total := sum(w for w, _, _ in bin_)) > 0
    ]
    x, y = np.array(points).T
    residuals = y - np.polyval(np.polyfit(x, y, 1), x)
    expected = 1 - (residuals**2).sum() / ((y - y.mean()) ** 2).sum()
    assert r_squared(rewards, scores, weights, num_bins=num_bins) == pytest.approx(expected)


def test_what_cannot_be_said_is_nan() -> None:
    rewards = torch.tensor([0.0, 0.5, 1.0])
    assert math.isnan(r_squared(rewards, torch.ones(3), torch.ones(3), num_bins=3))
    assert math.isnan(r_squared(rewards, rewards, torch.ones(3), num_bins=2))
    assert math.isnan(r_squared(rewards, rewards, torch.tensor([1.0, 0, 1]), num_bins=3))
    assert math.isnan(r_squared(torch.full((3,), NAN), rewards, torch.ones(3), num_bins=3))


def test_best_and_worst_are_chosen_where_the_middle_is_unreliable() -> None:
    """Extreme rewards are right, middling ones noise: the setting that the paper describes."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(400, 5, generator=generator, dtype=torch.float64) * 2 - 1
    best, worst = rewards.amax(1, keepdim=True), rewards.amin(1, keepdim=True)
    extreme = (rewards == best) | (rewards == worst)
    scores = torch.where(extreme, rewards, (7 * rewards).sin())
    choice = most_reliable_strategy(
        rewards.flatten(),
        scores.flatten(),
        torch.arange(400).repeat_interleave(5),
        strategies=("all", "best_random", "best_worst"),
        num_bins=20,
    )
    assert choice.best == "best_worst"
    assert choice.r_squared["best_worst"] == pytest.approx(1)
    assert choice.r_squared["all"] < choice.r_squared["best_random"] < 0.99


def test_no_strategy_can_be_chosen_from_equal_scores() -> None:
    with pytest.raises(ValueError, match=r"R\^2 is undefined for each of \['all'\]"):
        most_reliable_strategy(
            torch.rand(6), torch.ones(6), torch.zeros(6).long(), strategies=("all",), num_bins=4
        )
