"""How well rewards tell actual scores apart, to choose a filtration strategy.

Source: PF-PPO (arXiv 2409.06957), the criterion of table 1. A calibration set of responses has both
the reward that training would use and the actual score (unit tests, a human, a verifier).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import torch
from torch import Tensor

from rlstack.algorithms.filtration import Strategy, rank_weights

MIN_POINTS = 3
"""A line goes through two points whatever they are."""


def r_squared(rewards: Tensor, scores: Tensor, weights: Tensor, *, num_bins: int) -> float:
    """Coefficient of determination of a straight line from reward to actual score.

    R^2 = 1 - sum (s - s_hat)^2 / sum (s - s_mean)^2 over groups of responses of similar reward:
    `num_bins` bins of equal width between the smallest and the largest judged reward, each a point
    at the weighted mean reward and score of its responses. Bins without weight are left out.

    rewards, scores, weights: float [B]; a row that is NaN in rewards or scores counts for nothing.
    NaN if fewer than three bins are left, or all scores are equal: nothing can be said then.
    """
    judged = ~(rewards.isnan() | scores.isnan())
    rewards, scores, weights = (x[judged].double() for x in (rewards, scores, weights))
    if rewards.numel() == 0:
        return nan
    low, high = rewards.min(), rewards.max()
    width = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    bins = ((rewards - low) / width * num_bins).long().clamp(max=num_bins - 1)
    totals, reward_sums, score_sums = (
        torch.zeros(num_bins, dtype=torch.float64).index_add(0, bins, values)
        for values in (weights, weights * rewards, weights * scores)
    )
    used = totals > 0
    if int(used.sum()) < MIN_POINTS:
        return nan
    x, y = reward_sums[used] / totals[used], score_sums[used] / totals[used]
    x, y = x - x.mean(), y - y.mean()
    if not y.square().sum() > 0:
        return nan
    slope = (x * y).sum() / x.square().sum()
    return 1.0 - ((y - slope * x).square().sum() / y.square().sum()).item()


@dataclass(frozen=True, slots=True)
class StrategyChoice:
    """R^2 of each strategy, NaN where it is undefined, and the one with the highest."""

    r_squared: dict[Strategy, float]
    best: Strategy


def most_reliable_strategy(
    rewards: Tensor,
    scores: Tensor,
    group_ids: Tensor,
    *,
    strategies: Sequence[Strategy],
    num_bins: int,
) -> StrategyChoice:
    """The strategy after which rewards say most about actual scores; the earlier one if equal.

    rewards, scores: float [B]. group_ids: int64 [B]. Each strategy is taken in expectation, by its
    `rank_weights`, so nothing is drawn at random.

    Raises:
        ValueError: if R^2 is undefined for every strategy.
    """
    found: dict[Strategy, float] = {
        strategy: r_squared(
            rewards,
            scores,
            rank_weights(rewards, group_ids, strategy=strategy),
            num_bins=num_bins,
        )
        for strategy in strategies
    }
    defined: list[Strategy] = [strategy for strategy in strategies if not isnan(found[strategy])]
    if not defined:
        raise ValueError(
            f"most_reliable_strategy: R^2 is undefined for each of {list(strategies)}; it needs "
            f"{MIN_POINTS} bins with responses (num_bins={num_bins}) and scores that differ"
        )
    return StrategyChoice(found, max(defined, key=lambda strategy: found[strategy]))
