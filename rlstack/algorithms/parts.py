"""The parts that an algorithm is made of, by the names that configurations give them.

A part is added here, in one row: its function, whose docstring has formula and source, and how it
is applied. `rlstack algorithms` prints these tables.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from rlstack.algorithms import (
    advantages,
    correction,
    gae,
    kl,
    plugins,
    policy_losses,
    reductions,
    sequence_losses,
    supervised_losses,
)
from rlstack.algorithms.correction import Correction, Level
from rlstack.algorithms.policy_losses import PolicyLoss
from rlstack.batch import PolicyBatch, TokenBatch
from rlstack.config.algorithm import (
    ComposedCorrection,
    DistillationAdvantage,
    FixedLength,
    GAEAdvantage,
    MaskedCorrection,
    PluginPart,
    ReinforcePlusPlusAdvantage,
    RejectedCorrection,
    SecondMomentCorrection,
    TruncatedCorrection,
)
from rlstack.config.base import Frozen
from rlstack.errors import AlgorithmError

InputsP = ParamSpec("InputsP")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Part(Generic[InputsP, ResultT]):
    """A function of `rlstack.algorithms` and how the loop applies it.

    The last argument of `apply` is the part's configuration.
    """

    function: Callable[..., Any]
    apply: Callable[InputsP, ResultT]


# --- advantages


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """What advantages are estimated from.

    penalty: float32 [B, T], reward units, the KL that is taken off the reward; None: nothing is.
    old_logprobs, ref_logprobs: float32 [B, T], nats. values: float32 [B, T], reward units; None
    without a critic.
    """

    batch: TokenBatch
    penalty: Tensor | None
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor | None

    @property
    def rewards(self) -> Tensor:
        """Float32 [B], reward units, less the penalty of the whole rollout."""
        if self.penalty is None:
            return self.batch.rewards
        return self.batch.rewards - self.penalty.sum(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimated:
    """Advantages, float32 [B, T], and what the critic should have said, float32 [B, T], if any."""

    advantages: Tensor
    returns: Tensor | None = None


def _of_rollouts(
    function: Callable[..., Tensor], estimate: Callable[[Step], Tensor]
) -> Part[[Step, Any], Estimated]:
    """A part that estimates one advantage, float32 [B], for all tokens of a rollout."""

    def apply(step: Step, _: Any) -> Estimated:
        per_rollout = estimate(step)
        return Estimated(advantages=advantages.per_token(per_rollout, step.batch.loss_mask))

    return Part(function, apply)


def _of_groups(function: Callable[[Tensor, Tensor], Tensor]) -> Part[[Step, Any], Estimated]:
    """A part that compares the rewards of a group."""
    return _of_rollouts(function, lambda step: function(step.rewards, step.batch.group_ids))


def _optimal_baseline(step: Step) -> Tensor:
    batch = step.batch
    return advantages.opo(step.rewards, batch.group_ids, batch.loss_mask.sum(dim=1))


def _greedy_baseline(step: Step) -> Tensor:
    assert step.batch.baseline_rewards is not None
    return advantages.remax(step.rewards, step.batch.baseline_rewards)


def _reinforce_plus_plus(step: Step, config: ReinforcePlusPlusAdvantage) -> Estimated:
    batch = step.batch
    return Estimated(
        advantages=advantages.reinforce_plus_plus(
            batch.rewards,
            batch.group_ids,
            batch.loss_mask,
            kl_penalty=step.penalty,
            group_baseline=config.group_baseline,
            turn_rewards=batch.turn_rewards,
        )
    )


def _gae(step: Step, config: GAEAdvantage) -> Estimated:
    """A rollout that could not be judged teaches nothing."""
    assert step.values is not None
    batch = step.batch
    mask = batch.loss_mask & ~batch.rewards.isnan().unsqueeze(1)
    lam: float | Tensor = config.lam
    if config.length_adaptive is not None:
        lam = gae.length_adaptive_lambda(mask, alpha=config.length_adaptive)
    rewards = gae.token_rewards(
        batch.rewards, mask, kl_penalty=step.penalty, turn_rewards=batch.turn_rewards
    )
    estimated, returns = gae.decoupled_gae(
        rewards,
        step.values,
        mask,
        gamma=config.gamma,
        policy_lam=lam,
        critic_lam=config.critic_lam,
        last_values=_values_after(step, mask) if config.bootstrap_truncated else None,
    )
    if config.whiten:
        estimated = advantages.whiten(estimated, mask)
    return Estimated(advantages=estimated, returns=returns)


def _values_after(step: Step, mask: Tensor) -> Tensor | None:
    """Float32 [B], reward units: what the critic says of the states that rows were cut in; else 0.

    It is asked for the states before tokens: that before the last one stands in for that after it.
    """
    assert step.values is not None
    if step.batch.truncated is None:
        return None
    last = mask.shape[1] - 1 - mask.to(torch.uint8).flip(1).argmax(dim=1)
    values = step.values.gather(1, last.unsqueeze(1)).squeeze(1)
    return torch.where(step.batch.truncated & mask.any(dim=1), values, 0.0)


def _distillation(step: Step, config: DistillationAdvantage) -> Estimated:
    return Estimated(
        advantages=supervised_losses.distillation_advantages(
            step.old_logprobs, step.ref_logprobs, step.batch.loss_mask, weight=config.weight
        )
    )


def _plugin_advantage(step: Step, config: PluginPart) -> Estimated:
    batch = replace(step.batch, rewards=step.rewards)
    found = plugins.ADVANTAGES.bind(config.function, config.params)(batch)
    shape = tuple(batch.loss_mask.shape)
    if found.shape == shape[:1]:
        found = found.unsqueeze(1).expand(shape)
    if found.shape != shape:
        raise AlgorithmError(
            f"advantage {config.function!r} returned {list(found.shape)}; expected one for each "
            f"rollout, [{shape[0]}], or for each token, {list(shape)}"
        )
    found = torch.where(batch.loss_mask, found, 0.0)
    if not bool(found.isfinite().all()):
        row = int((~found.isfinite()).any(dim=1).nonzero()[0])
        raise AlgorithmError(
            f"advantage {config.function!r} is not finite in row {row}, whose reward is "
            f"{float(batch.rewards[row]):g}; a rollout that could not be judged (nan) must get 0"
        )
    return Estimated(advantages=found)


ADVANTAGES: dict[str, Part[[Step, Any], Estimated]] = {
    "grpo": _of_groups(advantages.grpo),
    "dr_grpo": _of_groups(advantages.dr_grpo),
    "rloo": _of_groups(advantages.rloo),
    "reinforce_plus_plus": Part(advantages.reinforce_plus_plus, _reinforce_plus_plus),
    "remax": _of_rollouts(advantages.remax, _greedy_baseline),
    "opo": _of_rollouts(advantages.opo, _optimal_baseline),
    "gpg": _of_groups(advantages.gpg),
    "maxrl": _of_groups(advantages.maxrl),
    "gae": Part(gae.decoupled_gae, _gae),
    "distillation": Part(supervised_losses.distillation_advantages, _distillation),
    "plugin": Part(plugins.register_advantage, _plugin_advantage),
}


# --- policy losses


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surrogate:
    """What a policy loss is made of, all [B, T]: logprobs in nats, advantages in reward units."""

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    loss_mask: Tensor


def _policy_loss(function: Callable[..., PolicyLoss]) -> Part[[Surrogate, Frozen], PolicyLoss]:
    """A part whose keys are the function's keyword parameters."""

    def apply(inputs: Surrogate, config: Frozen) -> PolicyLoss:
        return function(
            inputs.logprobs,
            inputs.old_logprobs,
            inputs.advantages,
            inputs.loss_mask,
            **config.model_dump(exclude={"name"}),
        )

    return Part(function, apply)


def _plugin_loss(inputs: Surrogate, config: PluginPart) -> PolicyLoss:
    mask = inputs.loss_mask
    function = plugins.POLICY_LOSSES.bind(config.function, config.params)
    loss = function(inputs.logprobs, inputs.old_logprobs, inputs.advantages, mask)
    if loss.shape != mask.shape:
        raise AlgorithmError(
            f"policy loss {config.function!r} returned {list(loss.shape)}; expected the loss of "
            f"each token, {list(mask.shape)}"
        )
    ratio = policy_losses.log_ratios(inputs.logprobs, inputs.old_logprobs, mask).exp()
    return policy_losses.unclipped(torch.where(mask, loss, 0.0), ratio)


POLICY_LOSSES: dict[str, Part[[Surrogate, Any], PolicyLoss]] = {
    "ppo_clip": _policy_loss(policy_losses.ppo_clip),
    "cispo": _policy_loss(policy_losses.cispo),
    "sapo": _policy_loss(policy_losses.sapo),
    "policy_gradient": _policy_loss(policy_losses.policy_gradient),
    "gspo": _policy_loss(sequence_losses.gspo),
    "gspo_token": _policy_loss(sequence_losses.gspo_token),
    "gmpo": _policy_loss(sequence_losses.gmpo),
    "plugin": Part(plugins.register_policy_loss, _plugin_loss),
}


# --- corrections of the mismatch between engine and trainer: of log ratios [B, T] and a mask


def _truncated(log_ratio: Tensor, mask: Tensor, config: TruncatedCorrection) -> Correction:
    return correction.truncated(_ratios(log_ratio, mask, config.level), cap=config.cap)


def _masked(log_ratio: Tensor, mask: Tensor, config: MaskedCorrection) -> Correction:
    ratios = _ratios(log_ratio, mask, config.level)
    return correction.masked(ratios, low=config.low, high=config.high)


def _rejected(log_ratio: Tensor, mask: Tensor, config: RejectedCorrection) -> Correction:
    ratios = _ratios(log_ratio, mask, config.level)
    return correction.rejected(ratios, low=config.low, high=config.high)


def _second_moment(log_ratio: Tensor, mask: Tensor, config: SecondMomentCorrection) -> Correction:
    return correction.second_moment(log_ratio, mask, threshold=config.threshold)


def _composed(log_ratio: Tensor, mask: Tensor, config: ComposedCorrection) -> Correction:
    return correction.composed(
        [CORRECTIONS[part.name].apply(log_ratio, mask, part) for part in config.parts]
    )


def _ratios(log_ratio: Tensor, mask: Tensor, level: Level) -> Tensor:
    return correction.importance_ratios(log_ratio, mask, level=level)


CORRECTIONS: dict[str, Part[[Tensor, Tensor, Any], Correction]] = {
    "none": Part(correction.uncorrected, lambda log_ratio, *_: correction.uncorrected(log_ratio)),
    "truncated": Part(correction.truncated, _truncated),
    "masked": Part(correction.masked, _masked),
    "rejected": Part(correction.rejected, _rejected),
    "second_moment": Part(correction.second_moment, _second_moment),
    "composed": Part(correction.composed, _composed),
}


# --- reductions of per-token losses [B, T]


def _token_mean(per_token: Tensor, batch: PolicyBatch, _: Any) -> Tensor:
    mask = batch.loss_mask
    return reductions.token_mean(per_token, mask, num_loss_tokens=batch.num_loss_tokens)


def _sequence_mean(per_token: Tensor, batch: PolicyBatch, _: Any) -> Tensor:
    mask = batch.loss_mask
    return reductions.sequence_mean(per_token, mask, num_rollouts=batch.num_rollouts)


def _fixed_length(per_token: Tensor, batch: PolicyBatch, config: FixedLength) -> Tensor:
    return reductions.fixed_length(
        per_token, batch.loss_mask, num_rollouts=batch.num_rollouts, length=config.length
    )


REDUCTIONS: dict[str, Part[[Tensor, PolicyBatch, Any], Tensor]] = {
    "token_mean": Part(reductions.token_mean, _token_mean),
    "sequence_mean": Part(reductions.sequence_mean, _sequence_mean),
    "fixed_length": Part(reductions.fixed_length, _fixed_length),
}


# --- estimators of the KL to the reference

KL_ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    **kl.ESTIMATORS,
    "k3_corrected": kl.k3_corrected,
}
