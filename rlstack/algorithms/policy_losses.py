"""Policy-gradient losses per token; reduction is a separate step (`reductions`)."""

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyLoss:
    """Per-token losses and what the clip did, all [B, T], 0 or False where loss_mask is False.

    ratio is 1 where masked.
    """

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    dual_clipped: Tensor


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

    logprobs, old_logprobs: float [B, T], nats. advantages: float [B, T], reward units.
    The log-ratio is masked before it is exponentiated, so nothing that stands on padding, NaN or
    infinite, reaches the loss or its gradient; on real tokens it is limited to +-20.
    """
    log_ratio = torch.where(loss_mask, logprobs, 0.0) - torch.where(loss_mask, old_logprobs, 0.0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    advantages = torch.where(loss_mask, advantages, 0.0)
    plain = -ratio * advantages
    clipped = -ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    loss = torch.maximum(plain, clipped)
    dual_clipped = torch.zeros_like(loss_mask)
    if dual_clip is not None:
        bound = -dual_clip * advantages
        dual_clipped = (advantages < 0) & (loss > bound)
        loss = torch.where(dual_clipped, bound, loss)
    return PolicyLoss(
        loss=loss,
        ratio=ratio.detach(),
        clipped_low=(advantages < 0) & (ratio < 1.0 - clip_low),
        clipped_high=(advantages > 0) & (ratio > 1.0 + clip_high),
        dual_clipped=dual_clipped,
    )
