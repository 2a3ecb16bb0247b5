"""From configuration to functions: the only place that knows which algorithm is configured."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlstack.algorithms import advantages, correction, kl, policy_losses, reductions
from rlstack.batch import PolicyBatch, TokenBatch
from rlstack.config.algorithm import (
    AlgorithmConfig,
    DrGRPOAdvantage,
    FixedLength,
    GPGAdvantage,
    GRPOAdvantage,
    MaxRLAdvantage,
    NoCorrection,
    OPOAdvantage,
    ReinforcePlusPlusAdvantage,
    ReMaxAdvantage,
    RLOOAdvantage,
    SequenceMean,
    TokenMean,
)
from rlstack.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdvantageEstimate:
    """advantages and correction_weights, float32 [B, T], and what was measured on the way."""

    advantages: Tensor
    correction_weights: Tensor
    metrics: Metrics


def estimate_advantages(
    batch: TokenBatch, old_logprobs: Tensor, ref_logprobs: Tensor, *, config: AlgorithmConfig
) -> AdvantageEstimate:
    """Advantages of a whole step's rollouts, and the weights that correct engine/trainer mismatch.

    old_logprobs, ref_logprobs: float32 [B, T], nats.
    """
    mask = batch.loss_mask
    penalty = None
    if config.kl.placement == "reward" and config.kl.coef > 0:
        penalty = config.kl.coef * kl.kl_per_token(
            old_logprobs, ref_logprobs, mask, estimator=config.kl.estimator
        )
    estimated = _advantages(batch, penalty, config)
    log_ratio = correction.log_mismatch(old_logprobs, batch.rollout_logprobs, mask)
    corrected = _correction(log_ratio, config)
    metrics = _reward_metrics(batch) + _mismatch_metrics(log_ratio, corrected.touched, mask)
    metrics += _advantage_metrics(estimated, mask)
    return AdvantageEstimate(
        advantages=estimated, correction_weights=corrected.weights, metrics=metrics
    )


def _advantages(batch: TokenBatch, penalty: Tensor | None, config: AlgorithmConfig) -> Tensor:
    rewards, groups, mask = batch.rewards, batch.group_ids, batch.loss_mask
    chosen = config.advantage
    if isinstance(chosen, ReinforcePlusPlusAdvantage):
        return advantages.reinforce_plus_plus(
            rewards, groups, mask, kl_penalty=penalty, group_baseline=chosen.group_baseline
        )
    if penalty is not None:
        rewards = rewards - penalty.sum(dim=1)
    match chosen:
        case GRPOAdvantage():
            per_rollout = advantages.grpo(rewards, groups)
        case DrGRPOAdvantage():
            per_rollout = advantages.dr_grpo(rewards, groups)
        case RLOOAdvantage():
            per_rollout = advantages.rloo(rewards, groups)
        case OPOAdvantage():
            per_rollout = advantages.opo(rewards, groups, mask.sum(dim=1))
        case GPGAdvantage():
            per_rollout = advantages.gpg(rewards, groups)
        case MaxRLAdvantage():
            per_rollout = advantages.maxrl(rewards, groups)
        case ReMaxAdvantage():
            assert batch.baseline_rewards is not None
            per_rollout = advantages.remax(rewards, batch.baseline_rewards)
    return advantages.per_token(per_rollout, mask)


def _correction(log_ratio: Tensor, config: AlgorithmConfig) -> correction.Correction:
    chosen = config.correction
    if isinstance(chosen, NoCorrection):
        untouched = torch.zeros_like(log_ratio, dtype=torch.bool)
        return correction.Correction(torch.ones_like(log_ratio), untouched)
    if chosen.level == "token":
        return correction.truncated_token_weights(log_ratio, cap=chosen.cap)
    return correction.truncated_sequence_weights(log_ratio, cap=chosen.cap)


def policy_loss(
    batch: PolicyBatch,
    logprobs: Tensor,
    entropy: Tensor,
    *,
    config: AlgorithmConfig,
    max_response_tokens: int,
) -> tuple[Tensor, Metrics]:
    """The loss of the rows of `batch`: their share of the loss of the whole optimizer step.

    logprobs, entropy: float32 [B, T], nats, of the policy being trained. Losses of micro-batches
    and ranks add up; so do the metrics (`policy/loss` counts this batch as its share of rollouts).
    """
    mask = batch.loss_mask
    settings = config.policy_loss
    surrogate = policy_losses.ppo_clip(
        logprobs,
        batch.old_logprobs,
        batch.advantages,
        mask,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
    )
    per_token = surrogate.loss * batch.correction_weights
    divergence = torch.zeros_like(logprobs)
    if config.needs_reference:
        divergence = kl.kl_per_token(
            logprobs, batch.ref_logprobs, mask, estimator=config.kl.estimator
        )
        if config.kl.placement == "loss":
            per_token = per_token + config.kl.coef * divergence
    loss = _reduce(per_token, batch, config, max_response_tokens)
    if config.entropy_coef > 0:
        bonus = reductions.token_mean(entropy, mask, num_loss_tokens=batch.num_loss_tokens)
        loss = loss - config.entropy_coef * bonus
    return loss, _loss_metrics(batch, loss, surrogate, logprobs, entropy, divergence, config)


def _reduce(
    per_token: Tensor, batch: PolicyBatch, config: AlgorithmConfig, max_response_tokens: int
) -> Tensor:
    mask = batch.loss_mask
    match config.reduction:
        case TokenMean():
            return reductions.token_mean(per_token, mask, num_loss_tokens=batch.num_loss_tokens)
        case SequenceMean():
            return reductions.sequence_mean(per_token, mask, num_rollouts=batch.num_rollouts)
        case FixedLength(length=length):
            return reductions.fixed_length(
                per_token,
                mask,
                num_rollouts=batch.num_rollouts,
                length=length or max_response_tokens,
            )


def _loss_metrics(
    batch: PolicyBatch,
    loss: Tensor,
    surrogate: policy_losses.PolicyLoss,
    logprobs: Tensor,
    entropy: Tensor,
    divergence: Tensor,
    config: AlgorithmConfig,
) -> Metrics:
    mask = batch.loss_mask
    approximate_kl = kl.kl_per_token(batch.old_logprobs, logprobs.detach(), mask, estimator="k3")
    totals = torch.stack(
        [
            surrogate.clipped_low.sum().float(),
            surrogate.clipped_high.sum().float(),
            surrogate.dual_clipped.sum().float(),
            approximate_kl.sum(),
            torch.where(mask, entropy.detach(), 0.0).sum(),
            divergence.detach().sum(),
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
    if config.policy_loss.dual_clip is not None:
        means["policy/dual_clip_fraction"] = (dual, count)
    if config.needs_reference:
        means["policy/ref_kl"] = (reference, count)
    if count == 0:
        return Metrics(means=means)
    return Metrics(
        means=means,
        maxima={"policy/ratio_max": largest},
        minima={"policy/ratio_min": smallest},
    )


def _reward_metrics(batch: TokenBatch) -> Metrics:
    judged = ~batch.rewards.isnan()
    rewards = batch.rewards[judged]
    metrics = Metrics.mean("reward/unjudged", float((~judged).sum()), batch.num_rows)
    if len(rewards) == 0:
        return metrics
    if batch.baseline_rewards is None:
        signal = advantages.dr_grpo(batch.rewards, batch.group_ids) != 0
    else:
        signal = advantages.remax(batch.rewards, batch.baseline_rewards) != 0
    num_groups = len(batch.group_ids.unique())
    with_signal = len(batch.group_ids[signal].unique())
    metrics += Metrics.of({"reward/std": float(rewards.std(correction=0))})
    metrics += Metrics.mean("reward/mean", float(rewards.sum()), len(rewards))
    return metrics + Metrics.mean(
        "reward/groups_without_signal", num_groups - with_signal, num_groups
    )


def _mismatch_metrics(log_ratio: Tensor, truncated: Tensor, mask: Tensor) -> Metrics:
    count = int(mask.sum())
    if count == 0:
        return Metrics()
    k3 = kl.k3(torch.zeros_like(log_ratio), log_ratio)
    return Metrics(
        means={
            "mismatch/logprob_difference_mean": (float(log_ratio.abs().sum()), count),
            "mismatch/k3": (float(k3.sum()), count),
            "mismatch/truncated_fraction": (float((truncated & mask).sum()), count),
        },
        maxima={"mismatch/logprob_difference_max": float(log_ratio.abs().max())},
    )


def _advantage_metrics(values: Tensor, mask: Tensor) -> Metrics:
    chosen = values[mask]
    if len(chosen) == 0:
        return Metrics()
    return Metrics(
        means={"advantage/mean": (float(chosen.sum()), len(chosen))},
        maxima={"advantage/max": float(chosen.max())},
        minima={"advantage/min": float(chosen.min())},
    )
