"""Policy-gradient losses per token; reduction is a separate step (`reductions`).

Every loss takes logprobs and old_logprobs, float [B, T], nats; advantages, float [B, T], reward
units; loss_mask, bool [B, T]. Its ratio is policy over old policy. Log-ratios are masked before
they are exponentiated, so nothing that stands on padding, NaN or infinite, reaches a loss or its
gradient; on real tokens they are limited to +-20, beyond which there is no gradient.

Losses of whole sequences are in `sequence_losses`. AReaL's decoupled PPO (arXiv 2505.24298, eq. 5),
-w min(u A, clip(u) A) with u = policy / proximal and w = proximal / behaviour without gradient, is
`ppo_clip` with the proximal policy's logprobs as old_logprobs, times the weights of `correction`:
the trainer recomputes old_logprobs when a step starts, and the engine's logprobs are the behaviour.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlstack.algorithms.kl import LOG_RATIO_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyLoss:
    """Per-token losses and what the clip did, all [B, T], 0 or False where loss_mask is False.

    ratio, without gradient: of the token, or of its sequence where the loss uses that; 1 where
    masked. clipped_low, clipped_high: tokens whose gradient a bound cuts, or limits (CISPO).
    dual_clipped: None for a loss without that bound.
    """

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    dual_clipped: Tensor | None


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv 1707.06347, eq. 7).

    Separate bounds are DAPO's clip-higher (arXiv 2503.14476, eq. 10). `dual_clip` c > 1 bounds the
    loss of tokens with A < 0 by -c A (arXiv 1912.09729, eq. 5).
    """
    ratio = log_ratios(logprobs, old_logprobs, loss_mask).exp()
    advantages = torch.where(loss_mask, advantages, 0.0)
    result = clipped(ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    if dual_clip is None:
        return result
    bound = -dual_clip * advantages
    dual_clipped = (advantages < 0) & (result.loss > bound)
    return PolicyLoss(
        loss=torch.where(dual_clipped, bound, result.loss),
        ratio=result.ratio,
        clipped_low=result.clipped_low,
        clipped_high=result.clipped_high,
        dual_clipped=dual_clipped,
    )


def cispo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, *, cap: float
) -> PolicyLoss:
    """-stop_gradient(min(r, cap)) A log policy (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5).

    No token loses its gradient: the ratio is a weight, bounded above as in the paper's experiments.
    The value is no surrogate of the reward; only the gradient means something.
    """
    ratio = log_ratios(logprobs, old_logprobs, loss_mask).exp().detach()
    advantages = torch.where(loss_mask, advantages, 0.0)
    loss = -ratio.clamp(max=cap) * advantages * torch.where(loss_mask, logprobs, 0.0)
    limited = (ratio > cap) & (advantages != 0)
    nowhere = torch.zeros_like(loss_mask)
    return PolicyLoss(
        loss=loss, ratio=ratio, clipped_low=nowhere, clipped_high=limited, dual_clipped=None
    )


def sapo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    tau_positive: float,
    tau_negative: float,
) -> PolicyLoss:
    """-f(r) A with f(r) = 4 / tau sigmoid(tau (r - 1)) (SAPO, arXiv 2511.20347).

    A soft gate in place of a clip: f has slope 1 at r = 1 and flattens on both sides, faster for
    a larger tau. tau_positive is that of tokens with A > 0, tau_negative that of the others.
    """
    ratio = log_ratios(logprobs, old_logprobs, loss_mask).exp()
    advantages = torch.where(loss_mask, advantages, 0.0)
    tau = torch.full_like(ratio, tau_negative).masked_fill(advantages > 0, tau_positive)
    return unclipped(-4.0 / tau * torch.sigmoid(tau * (ratio - 1.0)) * advantages, ratio)


def policy_gradient(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
) -> PolicyLoss:
    """-A log policy (REINFORCE, Williams 1992; GPG, arXiv 2504.02546).

    No ratio enters the loss, so it is exact for the first update on a batch only; old_logprobs
    serve to measure how far later ones have gone.
    """
    ratio = log_ratios(logprobs, old_logprobs, loss_mask).exp()
    chosen = torch.where(loss_mask, logprobs, 0.0)
    return unclipped(-torch.where(loss_mask, advantages, 0.0) * chosen, ratio)


def log_ratios(logprobs: Tensor, old_logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """log policy - log old policy per token, [B, T], nats, within +-20; 0 where masked."""
    difference = torch.where(loss_mask, logprobs, 0.0) - torch.where(loss_mask, old_logprobs, 0.0)
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def clipped(ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> PolicyLoss:
    """-min(r A, clip(r) A), ratio and advantages masked already."""
    plain = -ratio * advantages
    bounded = -ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    return PolicyLoss(
        loss=torch.maximum(plain, bounded),
        ratio=ratio.detach(),
        clipped_low=(advantages < 0) & (ratio < 1.0 - clip_low),
        clipped_high=(advantages > 0) & (ratio > 1.0 + clip_high),
        dual_clipped=None,
    )


def unclipped(loss: Tensor, ratio: Tensor) -> PolicyLoss:
    """A loss that has no bound to report."""
    nowhere = torch.zeros_like(loss, dtype=torch.bool)
    return PolicyLoss(
        loss=loss,
        ratio=ratio.detach(),
        clipped_low=nowhere,
        clipped_high=nowhere,
        dual_clipped=None,
    )
