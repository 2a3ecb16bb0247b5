"""From configuration to functions: the only place that knows which algorithm is configured."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlstack.algorithms import (
    advantages,
    correction,
    gae,
    kl,
    measurements,
    policy_losses,
    reductions,
    sequence_losses,
    shaping,
    supervised_losses,
    value_losses,
)
from rlstack.batch import CriticBatch, PolicyBatch, TokenBatch
from rlstack.config.algorithm import (
    AlgorithmConfig,
    CISPOLoss,
    DistillationAdvantage,
    DrGRPOAdvantage,
    FixedLength,
    GAEAdvantage,
    GMPOLoss,
    GPGAdvantage,
    GRPOAdvantage,
    GSPOLoss,
    MaskedCorrection,
    MaxRLAdvantage,
    NoCorrection,
    OPOAdvantage,
    PolicyGradientLoss,
    PPOClipLoss,
    ReinforcePlusPlusAdvantage,
    RejectedCorrection,
    ReMaxAdvantage,
    RLOOAdvantage,
    SAPOLoss,
    SecondMomentCorrection,
    SequenceMean,
    TokenMean,
    TruncatedCorrection,
)
from rlstack.config.critic import CriticConfig
from rlstack.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdvantageEstimate:
    """What a step learns from, and what was measured on the way.

    advantages, correction_weights: float32 [B, T]. returns: float32 [B, T], reward units, what the
    critic should have said; None without a critic.
    """

    advantages: Tensor
    correction_weights: Tensor
    returns: Tensor | None
    metrics: Metrics


def estimate_advantages(
    batch: TokenBatch,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor | None = None,
    *,
    config: AlgorithmConfig,
    kl_coef: float,
) -> AdvantageEstimate:
    """Advantages of a whole step's rollouts, and the weights that correct engine/trainer mismatch.

    old_logprobs, ref_logprobs: float32 [B, T], nats. values: float32 [B, T], reward units, the
    critic's, where the algorithm needs them. kl_coef: reward units per nat, this step's.
    """
    mask = batch.loss_mask
    batch = _shaped(batch, config)
    penalty = None
    if config.kl.placement == "reward" and config.needs_reference:
        assert config.kl.estimator != "k3_corrected", "RLConfig.problems rules it out"
        penalty = kl_coef * kl.kl_per_token(
            old_logprobs, ref_logprobs, mask, estimator=config.kl.estimator
        )
    returns = None
    if isinstance(config.advantage, GAEAdvantage):
        assert values is not None
        estimated, returns = _gae(batch, penalty, values, config.advantage)
    elif isinstance(config.advantage, DistillationAdvantage):
        estimated = supervised_losses.distillation_advantages(
            old_logprobs, ref_logprobs, mask, weight=config.advantage.weight
        )
    else:
        estimated = _advantages(batch, penalty, config)
    log_ratio = correction.log_mismatch(old_logprobs, batch.rollout_logprobs, mask)
    corrected = _correction(log_ratio, mask, config)
    metrics = measurements.of_mismatch(log_ratio, corrected.touched, mask)
    metrics += measurements.of_advantages(estimated, mask)
    if returns is not None and values is not None:
        metrics += measurements.of_values(values, returns, mask)
    return AdvantageEstimate(
        advantages=estimated,
        correction_weights=corrected.weights,
        returns=returns,
        metrics=metrics,
    )


def _shaped(batch: TokenBatch, config: AlgorithmConfig) -> TokenBatch:
    """The batch with its rewards clipped and whitened as configured.

    Both are of whole rollouts, and the rewards of turns are scaled as theirs is: by as much as a
    clip shortens it, and by the deviation that whitening divides by, whose shift is due at the end.
    """
    clip, rewards, baselines = config.reward.clip, batch.rewards.numpy(), batch.baseline_rewards
    turns = batch.turn_rewards
    if clip is not None:
        if turns is not None:
            size = batch.rewards.abs()
            turns = turns * torch.where(size > clip, clip / size, 1.0).unsqueeze(1)
        rewards = shaping.clip(rewards, low=-clip, high=clip)
        if baselines is not None:
            baselines = baselines.clamp(-clip, clip)
    if config.reward.whiten:
        if turns is not None:
            turns = turns / float(shaping.deviation(rewards))
        rewards = shaping.whiten(rewards, shift_mean=False)
    shaped = torch.from_numpy(rewards)
    return replace(batch, rewards=shaped, baseline_rewards=baselines, turn_rewards=turns)


def _gae(
    batch: TokenBatch, penalty: Tensor | None, values: Tensor, config: GAEAdvantage
) -> tuple[Tensor, Tensor]:
    """Advantages and returns; a rollout that could not be judged teaches nothing."""
    mask = batch.loss_mask & ~batch.rewards.isnan().unsqueeze(1)
    lam: float | Tensor = config.lam
    if config.length_adaptive is not None:
        lam = gae.length_adaptive_lambda(mask, alpha=config.length_adaptive)
    estimated, returns = gae.decoupled_gae(
        gae.token_rewards(batch.rewards, mask, kl_penalty=penalty, turn_rewards=batch.turn_rewards),
        values,
        mask,
        gamma=config.gamma,
        policy_lam=lam,
        critic_lam=config.critic_lam,
    )
    return (advantages.whiten(estimated, mask) if config.whiten else estimated), returns


def _advantages(batch: TokenBatch, penalty: Tensor | None, config: AlgorithmConfig) -> Tensor:
    rewards, groups, mask = batch.rewards, batch.group_ids, batch.loss_mask
    chosen = config.advantage
    if isinstance(chosen, ReinforcePlusPlusAdvantage):
        return advantages.reinforce_plus_plus(
            rewards,
            groups,
            mask,
            kl_penalty=penalty,
            group_baseline=chosen.group_baseline,
            turn_rewards=batch.turn_rewards,
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
        case GAEAdvantage() | DistillationAdvantage():
            raise AssertionError("made token by token")
    return advantages.per_token(per_rollout, mask)


def _correction(log_ratio: Tensor, mask: Tensor, config: AlgorithmConfig) -> correction.Correction:
    match config.correction:
        case NoCorrection():
            return correction.uncorrected(log_ratio)
        case TruncatedCorrection(level=level, cap=cap):
            ratios = correction.importance_ratios(log_ratio, mask, level=level)
            return correction.truncated(ratios, cap=cap)
        case MaskedCorrection(level=level, low=low, high=high):
            ratios = correction.importance_ratios(log_ratio, mask, level=level)
            return correction.masked(ratios, low=low, high=high)
        case RejectedCorrection(low=low, high=high):
            ratios = correction.importance_ratios(log_ratio, mask, level="geometric")
            return correction.rejected(ratios, low=low, high=high)
        case SecondMomentCorrection(threshold=threshold):
            return correction.second_moment(log_ratio, mask, threshold=threshold)


def policy_loss(
    batch: PolicyBatch,
    logprobs: Tensor,
    entropy: Tensor,
    *,
    config: AlgorithmConfig,
) -> tuple[Tensor, Metrics]:
    """The loss of the rows of `batch`: their share of the loss of the whole optimizer step.

    logprobs, entropy: float32 [B, T], nats, of the policy being trained. Losses of micro-batches
    and ranks add up; so do the metrics (`policy/loss` counts this batch as its share of rollouts).
    """
    surrogate = _surrogate(batch, logprobs, config)
    per_token = surrogate.loss * batch.correction_weights
    divergence = _divergence(batch, logprobs, config) if config.needs_reference else None
    if divergence is not None and config.kl.placement == "loss":
        per_token = per_token + batch.kl_coef * divergence
    loss = _reduce(per_token, batch, config)
    if config.entropy_coef > 0:
        bonus = reductions.token_mean(
            entropy, batch.loss_mask, num_loss_tokens=batch.num_loss_tokens
        )
        loss = loss - config.entropy_coef * bonus
    metrics = measurements.of_loss(batch, loss, surrogate, logprobs, entropy, divergence)
    return loss, metrics


def critic_loss(
    batch: CriticBatch, values: Tensor, *, config: CriticConfig
) -> tuple[Tensor, Metrics]:
    """The critic's loss of the rows of `batch`: their share of the loss of the optimizer step.

    values: float32 [B, T], reward units, of the critic being trained. Mean over loss tokens.
    """
    mask = batch.loss_mask
    if config.value_clip is None:
        found = value_losses.squared_error(values, batch.returns, mask)
    else:
        found = value_losses.clipped_squared_error(
            values, batch.old_values, batch.returns, mask, clip=config.value_clip
        )
    loss = reductions.token_mean(found.loss, mask, num_loss_tokens=batch.num_loss_tokens)
    return loss, measurements.of_value_loss(found, mask)


def _surrogate(
    batch: PolicyBatch, logprobs: Tensor, config: AlgorithmConfig
) -> policy_losses.PolicyLoss:
    arguments = (logprobs, batch.old_logprobs, batch.advantages, batch.loss_mask)
    match config.policy_loss:
        case PPOClipLoss(clip_low=low, clip_high=high, dual_clip=dual_clip):
            return policy_losses.ppo_clip(
                *arguments, clip_low=low, clip_high=high, dual_clip=dual_clip
            )
        case GSPOLoss(level="token", clip_low=low, clip_high=high):
            return sequence_losses.gspo_token(*arguments, clip_low=low, clip_high=high)
        case GSPOLoss(clip_low=low, clip_high=high):
            return sequence_losses.gspo(*arguments, clip_low=low, clip_high=high)
        case CISPOLoss(cap=cap):
            return policy_losses.cispo(*arguments, cap=cap)
        case SAPOLoss(tau_positive=positive, tau_negative=negative):
            return policy_losses.sapo(*arguments, tau_positive=positive, tau_negative=negative)
        case GMPOLoss(log_clip=log_clip):
            return sequence_losses.gmpo(*arguments, log_clip=log_clip)
        case PolicyGradientLoss():
            return policy_losses.policy_gradient(*arguments)


def _divergence(batch: PolicyBatch, logprobs: Tensor, config: AlgorithmConfig) -> Tensor:
    reference, mask = batch.ref_logprobs, batch.loss_mask
    if config.kl.estimator == "k3_corrected":
        return kl.k3_corrected(logprobs, batch.old_logprobs, reference, mask)
    return kl.kl_per_token(logprobs, reference, mask, estimator=config.kl.estimator)


def next_kl_coef(
    kl_coef: float, metrics: Metrics, *, num_rollouts: int, config: AlgorithmConfig
) -> float:
    """The KL coefficient of the next step, from the KL to the reference in this step's metrics."""
    measured_kl = metrics.values().get("policy/ref_kl")
    if config.kl.target is None or measured_kl is None:
        return kl_coef
    return kl.adapted_coefficient(
        kl_coef,
        measured_kl=measured_kl,
        target=config.kl.target,
        num_rollouts=num_rollouts,
        horizon=config.kl.horizon,
    )


def _reduce(per_token: Tensor, batch: PolicyBatch, config: AlgorithmConfig) -> Tensor:
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
                length=length,
            )
