"""What a step measures of its rewards, advantages, mismatch and loss, as metrics that add up."""

from math import isnan

import torch
from torch import Tensor

from rlstack.algorithms import advantages, filtration, kl
from rlstack.algorithms.policy_losses import PolicyLoss
from rlstack.algorithms.value_losses import ValueLoss, explained_variance
from rlstack.batch import PolicyBatch, TokenBatch
from rlstack.metrics import Metrics


def of_loss(
    batch: PolicyBatch,
    loss: Tensor,
    surrogate: PolicyLoss,
    logprobs: Tensor,
    entropy: Tensor,
    divergence: Tensor | None,
) -> Metrics:
    """What the loss of one micro-batch did; parts of a step add up.

    divergence: float [B, T], nats, KL to the reference; None without one.
    """
    mask = batch.loss_mask
    nothing = loss.new_zeros(())
    dual_clipped = surrogate.dual_clipped
    approximate_kl = kl.kl_per_token(batch.old_logprobs, logprobs.detach(), mask, estimator="k3")
    totals = torch.stack(
        [
            surrogate.clipped_low.sum().float(),
            surrogate.clipped_high.sum().float(),
            nothing if dual_clipped is None else dual_clipped.sum().float(),
            approximate_kl.sum(),
            torch.where(mask, entropy.detach(), 0.0).sum(),
            nothing if divergence is None else divergence.detach().sum(),
            loss.detach(),
            torch.where(mask, surrogate.ratio, -torch.inf).max(),
            torch.where(mask, surrogate.ratio, torch.inf).min(),
            mask.sum().float(),
            mask.any(dim=1).sum().float(),
        ]
    )
    # One transfer: on a GPU each .item() would wait for the device.
    low, high, dual, approximate, entropies, reference, value, largest, smallest, count, rows = (
        totals.tolist()
    )
    means = {
        "policy/clip_fraction_low": (low, count),
        "policy/clip_fraction_high": (high, count),
        "policy/approx_kl": (approximate, count),
        "policy/entropy": (entropies, count),
        # Shares add up to the step's loss; `rows` of all parts add up to num_rollouts.
        "policy/loss": (value * max(batch.num_rollouts, 1), rows),
    }
    if dual_clipped is not None:
        means["policy/dual_clip_fraction"] = (dual, count)
    if divergence is not None:
        means["policy/ref_kl"] = (reference, count)
    if count == 0:
        return Metrics(means=means)
    return Metrics(
        means=means,
        maxima={"policy/ratio_max": largest},
        minima={"policy/ratio_min": smallest},
    )


def of_value_loss(found: ValueLoss, mask: Tensor) -> Metrics:
    """What the critic's loss of one micro-batch did; parts of a step add up."""
    count = float(mask.sum())
    return Metrics(
        means={
            "critic/loss": (float(found.loss.detach().sum()), count),
            "critic/clip_fraction": (float(found.clipped.sum()), count),
        }
    )


def of_values(values: Tensor, returns: Tensor, mask: Tensor) -> Metrics:
    """How well the critic foresaw the returns of a step, before it learns from them."""
    count = float(mask.sum())
    explained = float(explained_variance(values, returns, mask))
    metrics = Metrics(
        means={
            "critic/value_mean": (float(values[mask].sum()), count),
            "critic/return_mean": (float(returns[mask].sum()), count),
        }
    )
    return (
        metrics
        if isnan(explained)
        else metrics + Metrics.of({"critic/explained_variance": explained})
    )


def of_rewards(batch: TokenBatch) -> Metrics:
    """Rewards of a step, and how many groups had nothing to compare."""
    judged = ~batch.rewards.isnan()
    rewards = batch.rewards[judged]
    metrics = Metrics.mean("reward/unjudged", float((~judged).sum()), batch.num_rows)
    if len(rewards) == 0:
        return metrics
    if batch.baseline_rewards is None:
        signal = filtration.has_signal(batch.rewards, batch.group_ids)
    else:
        signal = advantages.remax(batch.rewards, batch.baseline_rewards) != 0
    num_groups = len(batch.group_ids.unique())
    with_signal = len(batch.group_ids[signal].unique())
    metrics += Metrics.of({"reward/std": float(rewards.std(correction=0))})
    metrics += Metrics.mean("reward/mean", float(rewards.sum()), len(rewards))
    return metrics + Metrics.mean(
        "reward/groups_without_signal", num_groups - with_signal, num_groups
    )


def of_training(sampled: TokenBatch, chosen: TokenBatch) -> Metrics:
    """What of the rollouts is trained on, where not all are: their share and mean reward.

    chosen: `sampled`, or the rows of it that a filtration kept and some without loss tokens.
    `update/num_tokens` are the loss tokens of an epoch.
    """
    metrics = Metrics.of({"update/num_tokens": int(chosen.loss_mask.sum())})
    if chosen is sampled:
        return metrics
    kept = chosen.loss_mask.any(dim=1)
    rewards = chosen.rewards[kept & ~chosen.rewards.isnan()]
    metrics += Metrics.mean("filtration/kept_fraction", int(kept.sum()), sampled.num_rows)
    if len(rewards) == 0:
        return metrics
    return metrics + Metrics.mean("filtration/reward", float(rewards.sum()), len(rewards))


def of_mismatch(log_ratio: Tensor, touched: Tensor, mask: Tensor) -> Metrics:
    """How far engine and trainer differ, and the share of tokens that the correction touched.

    log_ratio: float [B, T], nats, trainer over engine.
    """
    count = int(mask.sum())
    if count == 0:
        return Metrics()
    k3 = kl.k3(torch.zeros_like(log_ratio), log_ratio)
    return Metrics(
        means={
            "mismatch/logprob_difference_mean": (float(log_ratio.abs().sum()), count),
            "mismatch/k3": (float(k3.sum()), count),
            "mismatch/corrected_fraction": (float((touched & mask).sum()), count),
        },
        maxima={"mismatch/logprob_difference_max": float(log_ratio.abs().max())},
    )


def of_advantages(values: Tensor, mask: Tensor) -> Metrics:
    """Mean and extremes of the advantages of loss tokens."""
    chosen = values[mask]
    if len(chosen) == 0:
        return Metrics()
    return Metrics(
        means={"advantage/mean": (float(chosen.sum()), len(chosen))},
        maxima={"advantage/max": float(chosen.max())},
        minima={"advantage/min": float(chosen.min())},
    )
