"""From configuration to numbers: the estimates, losses and coefficients of a configured algorithm.

Which function a name stands for is in the tables of `parts`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlstack.algorithms import (
    correction,
    kl,
    measurements,
    reductions,
    shaping,
    value_losses,
)
from rlstack.algorithms.parts import (
    ADVANTAGES,
    CORRECTIONS,
    POLICY_LOSSES,
    REDUCTIONS,
    Step,
    Surrogate,
)
from rlstack.algorithms.plugins import load_plugins
from rlstack.batch import CriticBatch, PolicyBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
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
    load_plugins(config.plugins)
    mask = batch.loss_mask
    batch = _shaped(batch, config)
    penalty = None
    if config.kl.placement == "reward" and config.needs_reference:
        assert config.kl.estimator != "k3_corrected", "RLConfig.problems rules it out"
        penalty = kl_coef * kl.kl_per_token(
            old_logprobs, ref_logprobs, mask, estimator=config.kl.estimator
        )
    found = ADVANTAGES[config.advantage.name].apply(
        Step(
            batch=batch,
            penalty=penalty,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            values=values,
        ),
        config.advantage,
    )
    log_ratio = correction.log_mismatch(old_logprobs, batch.rollout_logprobs, mask)
    corrected = CORRECTIONS[config.correction.name].apply(log_ratio, mask, config.correction)
    metrics = measurements.of_mismatch(log_ratio, corrected.touched, mask)
    metrics += measurements.of_advantages(found.advantages, mask)
    if found.returns is not None and values is not None:
        metrics += measurements.of_values(values, found.returns, mask)
    return AdvantageEstimate(
        advantages=found.advantages,
        correction_weights=corrected.weights,
        returns=found.returns,
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
    load_plugins(config.plugins)
    surrogate = POLICY_LOSSES[config.policy_loss.name].apply(
        Surrogate(
            logprobs=logprobs,
            old_logprobs=batch.old_logprobs,
            advantages=batch.advantages,
            loss_mask=batch.loss_mask,
        ),
        config.policy_loss,
    )
    per_token = surrogate.loss * batch.correction_weights
    divergence = _divergence(batch, logprobs, config) if config.needs_reference else None
    if divergence is not None and config.kl.placement == "loss":
        per_token = per_token + batch.kl_coef * divergence
    loss = REDUCTIONS[config.reduction.name].apply(per_token, batch, config.reduction)
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
