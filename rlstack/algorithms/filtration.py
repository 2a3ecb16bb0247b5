"""Which rollouts to train on: masks, sampling weights and row indices from [B] rewards.

`rewards` float [B] in reward units, NaN where a rollout could not be judged: such a row is never
chosen. `group_ids` int64 [B], equal for rollouts of one prompt. Masks are bool [B], so that they
can be combined with `&`; `rows` turns the result into indices for `TokenBatch.select`.
"""

from typing import Literal

import torch
from torch import Tensor

Strategy = Literal["all", "best", "best_random", "best_worst"]


def rows(mask: Tensor) -> Tensor:
    """Indices of the True entries, int64 [N], ascending."""
    return mask.nonzero().squeeze(1)


def _reduced(values: Tensor, group_ids: Tensor, kind: Literal["sum", "amin", "amax"]) -> Tensor:
    """Sum, minimum or maximum over each row's group, [B]."""
    num_groups = int(group_ids.max()) + 1 if group_ids.numel() else 0
    start = {"sum": 0, "amin": torch.inf, "amax": -torch.inf}[kind]
    groups = values.new_full((num_groups,), start)
    return groups.scatter_reduce(0, group_ids, values, kind)[group_ids]


def _extremes(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest judged reward of each row's group, both [B]."""
    judged = ~rewards.isnan()
    smallest = _reduced(torch.where(judged, rewards, torch.inf), group_ids, "amin")
    largest = _reduced(torch.where(judged, rewards, -torch.inf), group_ids, "amax")
    return smallest, largest


def has_signal(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Judged rollouts of groups whose judged rewards differ, bool [B].

    Dynamic sampling (DAPO, arXiv 2503.14476, equation 11). Rewards are compared as they are: a
    threshold on the std would call a group of equal rewards different after rounding.
    """
    smallest, largest = _extremes(rewards, group_ids)
    return ~rewards.isnan() & (largest > smallest)


def within_difficulty(rewards: Tensor, group_ids: Tensor, *, low: float, high: float) -> Tensor:
    """Judged rollouts of groups with mean judged reward strictly between low and high, bool [B].

    The same as `has_signal` for rewards 0 and 1 with bounds (0, 1).
    """
    judged = ~rewards.isnan()
    counts = _reduced(judged.to(rewards.dtype), group_ids, "sum")
    means = _reduced(rewards.nan_to_num(0.0), group_ids, "sum") / counts.clamp(min=1)
    return judged & (means > low) & (means < high)


def within_length(
    lengths: Tensor, truncated: Tensor, *, max_tokens: int, keep_truncated: bool
) -> Tensor:
    """Responses of at most max_tokens, bool [B]; truncated ones only with `keep_truncated`.

    Without truncated ones it is overlong filtering (DAPO, arXiv 2503.14476).

    lengths: int64 [B], response tokens. truncated: bool [B], cut at the limit of generation.
    """
    short = lengths <= max_tokens
    return short if keep_truncated else short & ~truncated


def rank_weights(rewards: Tensor, group_ids: Tensor, *, strategy: Strategy) -> Tensor:
    """Weights by rank that sum to 1 in every group with a judged rollout, float [B].

    Source: PF-PPO (arXiv 2409.06957). By descending reward among a group's N judged
    rollouts: "best" (1, 0, ..., 0); "best_random" (1/2, 1/(2(N-1)), ...); "best_worst" (1/2, 0,
    ..., 0, 1/2); "all" 1/N each. Rollouts with equal rewards share the weight of their ranks
    equally, so the weights do not depend on the order of rows. A rollout alone has weight 1.
    """
    judged = ~rewards.isnan()
    smallest, largest = _extremes(rewards, group_ids)
    best, worst = judged & (rewards == largest), judged & (rewards == smallest)
    count, num_best, num_worst = (
        _reduced(chosen.to(rewards.dtype), group_ids, "sum").clamp(min=1)
        for chosen in (judged, best, worst)
    )
    match strategy:
        case "all":
            weights = 1 / count
        case "best":
            weights = best / num_best
        case "best_random":
            other = 0.5 / (count - 1).clamp(min=1)
            weights = torch.where(best, (0.5 + (num_best - 1) * other) / num_best, other)
        case "best_worst":
            weights = 0.5 * best / num_best + 0.5 * worst / num_worst
    alone = judged & (count == 1)
    return torch.where(alone, 1.0, torch.where(judged, weights, 0.0))


def power_weights(rewards: Tensor, group_ids: Tensor, *, power: float) -> Tensor:
    """Weights proportional to |R|^power that sum to 1 in every group with a judged rollout, [B].

    Source: PF-PPO (arXiv 2409.06957), with rewards in [-1, 1] and power 1, 2 or 3: a
    reward model is trusted most where it is most certain. A group of zeros gets equal weights.
    """
    judged = ~rewards.isnan()
    sizes = torch.where(judged, rewards.abs(), 0.0)
    largest = _reduced(sizes, group_ids, "amax")
    # Relative to the group's largest, so that a high power does not underflow to a group of zeros.
    relative = torch.where(largest > 0, sizes / largest.clamp(min=torch.finfo(sizes.dtype).tiny), 1)
    powers = torch.where(judged, relative.pow(power), 0.0)
    totals = _reduced(powers, group_ids, "sum")
    return torch.where(judged, powers / totals.clamp(min=1), 0.0)


def sample_rows(
    weights: Tensor, group_ids: Tensor, *, num_per_group: int, generator: torch.Generator
) -> Tensor:
    """Soft selection: draws from every group with replacement, int64 [N], ascending.

    Row i of a group is drawn with probability weights[i] over the group's total; a row of weight 0
    never is, and a group with no weight is left out. The same generator state gives the same rows.
    """
    # The largest of log w + Gumbel noise is a draw from w, for all groups and draws at once.
    shape = (num_per_group, len(weights))
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    noise = -(-uniform.clamp(min=torch.finfo(torch.float64).tiny).log()).log()
    keys = weights.double().log() + noise
    num_groups = int(group_ids.max()) + 1 if len(group_ids) else 0
    draws = group_ids + num_groups * torch.arange(num_per_group).unsqueeze(1)
    largest = _reduced(keys.flatten(), draws.flatten(), "amax").reshape(shape)
    winners = (keys == largest) & (weights > 0)
    return winners.nonzero()[:, 1].sort().values


def select_rows(
    rewards: Tensor, group_ids: Tensor, *, strategy: Strategy, generator: torch.Generator
) -> Tensor:
    """Hard selection by rank: a subset of rows, int64 [N], ascending.

    Source: PF-PPO (arXiv 2409.06957). "best" keeps one rollout of a group, "best_random"
    the best and one other, drawn equally, "best_worst" the best and the worst, "all" every judged
    one. Equal rewards are ordered at random. The same generator state gives the same rows.
    """
    shuffled = torch.randperm(len(rewards), generator=generator)
    shuffled = shuffled[~rewards.isnan()[shuffled]]
    by_reward = shuffled[rewards[shuffled].argsort(descending=True, stable=True)]
    order = by_reward[group_ids[by_reward].argsort(stable=True)]
    groups = group_ids[order]
    if strategy == "all":
        return order.sort().values
    new_group = groups[1:] != groups[:-1]
    edge = torch.ones(min(len(groups), 1), dtype=torch.bool)
    first, last = torch.cat((edge, new_group)), torch.cat((new_group, edge))
    match strategy:
        case "best":
            chosen = first
        case "best_worst":
            chosen = first | last
        case "best_random":
            keys = torch.rand(len(groups), generator=generator, dtype=torch.float64)
            keys = torch.where(first, -1.0, keys)
            chosen = first | (keys == _reduced(keys, groups, "amax"))
    return order[chosen].sort().values
