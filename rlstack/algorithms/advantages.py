"""Advantages from rewards: one number per rollout, or per token, from [B] rewards.

`rewards` float [B] in reward units, NaN where a rollout could not be judged: it gets advantage 0
and stays out of every statistic. `group_ids` int64 [B], equal for rollouts of one prompt.
A group with one judged rollout has nothing to compare it with: its advantage is 0, never the bare
reward (which would silently be REINFORCE).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STD_EPSILON = 1e-6
WHITENING_EPSILON = 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class GroupStatistics:
    """Of every rollout's group, all [B].

    comparable: bool, judged and not alone in its group. counts: judged rollouts of the group.
    deviations: reward minus the group's (weighted) mean; exactly 0 where the group's rewards are
    all equal, and where not comparable.
    """

    comparable: Tensor
    counts: Tensor
    deviations: Tensor


def group_statistics(
    rewards: Tensor, group_ids: Tensor, weights: Tensor | None = None
) -> GroupStatistics:
    """Counts and deviations over the judged rollouts of each group.

    weights: [B], at least 0, what each rollout counts for in its group's mean; None: 1 each.
    """
    judged = ~rewards.isnan()
    num_groups = int(group_ids.max()) + 1
    sums = rewards.new_zeros(num_groups)
    counts = sums.index_add(0, group_ids, judged.to(rewards.dtype))
    # From the group's smallest reward on, so that equal rewards leave no rounding error.
    candidates = torch.where(judged, rewards, torch.inf)
    smallest = torch.full_like(sums, torch.inf).scatter_reduce(0, group_ids, candidates, "amin")
    shifted = torch.where(judged, rewards - smallest[group_ids], 0.0)
    if weights is None:
        means = sums.index_add(0, group_ids, shifted) / counts.clamp(min=1)
    else:
        weights = torch.where(judged, weights.to(rewards.dtype), 0.0)
        totals = sums.index_add(0, group_ids, weights)
        weighted = sums.index_add(0, group_ids, weights * shifted)
        means = torch.where(totals > 0, weighted / totals, 0.0)
    comparable = judged & (counts[group_ids] > 1)
    return GroupStatistics(
        comparable=comparable,
        counts=counts[group_ids],
        deviations=torch.where(comparable, shifted - means[group_ids], 0.0),
    )


def dr_grpo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Reward minus group mean, [B] (Dr.GRPO, arXiv 2503.20783, section 3.2)."""
    return group_statistics(rewards, group_ids).deviations


def grpo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Reward minus group mean over group std, [B] (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    The std is unbiased with 1e-6 added, as verl and SkyRL do.
    """
    group = group_statistics(rewards, group_ids)
    squares = rewards.new_zeros(int(group_ids.max()) + 1)
    squares = squares.index_add(0, group_ids, group.deviations.square())[group_ids]
    std = (squares / (group.counts - 1).clamp(min=1)).sqrt()
    return group.deviations / (std + STD_EPSILON)


def rloo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Reward minus the mean of the group's other rewards, [B] (RLOO, arXiv 2402.14740)."""
    group = group_statistics(rewards, group_ids)
    return group.deviations * group.counts / (group.counts - 1).clamp(min=1)


def opo(rewards: Tensor, group_ids: Tensor, lengths: Tensor) -> Tensor:
    """Reward minus the group's length-weighted mean reward, [B] (OPO, arXiv 2505.23585).

    sum_j l_j R_j / sum_j l_j is the baseline of least gradient variance where every token's
    gradient has the same expected square. lengths: [B], loss tokens of each rollout.
    """
    return group_statistics(rewards, group_ids, lengths).deviations


def gpg(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Reward minus group mean, times B / (B - M), [B] (GPG, arXiv 2504.02546).

    M of the B judged rollouts stand in groups without signal: all rewards equal, or one rollout.
    The factor keeps those from diluting the gradient of the others.
    """
    deviations = group_statistics(rewards, group_ids).deviations
    largest = rewards.new_zeros(int(group_ids.max()) + 1)
    largest = largest.scatter_reduce(0, group_ids, deviations.abs(), "amax")
    judged = ~rewards.isnan()
    with_signal = judged & (largest[group_ids] > 0)
    return deviations * judged.sum() / with_signal.sum().clamp(min=1)


def maxrl(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Reward minus group mean over group mean, [B] (MaxRL, arXiv 2602.02710).

    With rewards of 0 and 1 its expectation is the gradient of the log of a prompt's success rate
    rather than of the rate itself, so hard prompts weigh more. 0 where the mean is not positive.
    """
    deviations = group_statistics(rewards, group_ids).deviations
    means = torch.where(deviations == 0, 0.0, rewards - deviations)
    return torch.where(means > 0, deviations / means, 0.0)


def remax(rewards: Tensor, baseline_rewards: Tensor) -> Tensor:
    """Reward minus that of the greedy response to the same prompt, [B] (ReMax, arXiv 2310.10505).

    baseline_rewards: [B], reward units; NaN where the greedy response could not be judged: 0.
    """
    advantages = rewards - baseline_rewards
    return torch.where(advantages.isnan(), 0.0, advantages)


def reinforce_plus_plus(
    rewards: Tensor,
    group_ids: Tensor,
    loss_mask: Tensor,
    *,
    kl_penalty: Tensor | None,
    group_baseline: bool,
    turn_rewards: Tensor | None = None,
) -> Tensor:
    """Whitened returns per token, [B, T] (REINFORCE++, arXiv 2501.03262).

    The return of token t is the reward minus the KL penalties from t on, without the rewards of
    turns that were over before t, which it cannot have earned; it is whitened over all loss tokens
    of the batch. `group_baseline` takes the group mean off the reward first: that compares whole
    rollouts, so every token of a rollout has its whole reward, turns or not.

    loss_mask: bool [B, T]. kl_penalty: float [B, T], reward units, 0 where masked. turn_rewards:
    float [B, T], reward units, the part of `rewards` that is due on that token; None: none is.
    """
    used = ~rewards.isnan()
    outcome = rewards.nan_to_num(0.0)
    if group_baseline:
        group = group_statistics(rewards, group_ids)
        used, outcome = group.comparable, group.deviations
    returns = outcome.unsqueeze(1).expand(loss_mask.shape)
    if kl_penalty is not None:
        returns = returns - kl_penalty.flip(1).cumsum(1).flip(1)
    if turn_rewards is not None and not group_baseline:
        returns = returns - (turn_rewards.cumsum(1) - turn_rewards)
    return whiten(returns, loss_mask & used.unsqueeze(1))


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit (unbiased) std over all masked entries; 0 elsewhere, and if all equal."""
    chosen = values.masked_select(mask)
    if chosen.numel() < 2:
        return torch.zeros_like(values)
    # From the smallest value on and in units of the range: equal values leave no rounding error to
    # be magnified, values far from 0 keep their differences, the squares of huge ones are finite.
    smallest, largest = chosen.aminmax()
    spread = torch.where(largest > smallest, largest - smallest, 1.0)
    chosen = chosen.sub_(smallest).div_(spread)
    centre = chosen.mean() * spread
    scale = (chosen.var() + WHITENING_EPSILON / spread.square()).rsqrt() / spread
    # In place, on memory of its own: a temporary costs more than what is computed in it.
    return (values - smallest).sub_(centre).mul_(scale).masked_fill_(~mask, 0.0)


def per_token(advantages: Tensor, loss_mask: Tensor) -> Tensor:
    """Every loss token of a rollout gets its rollout's advantage: [B] -> [B, T]."""
    return torch.where(loss_mask, advantages.unsqueeze(1), 0.0)
