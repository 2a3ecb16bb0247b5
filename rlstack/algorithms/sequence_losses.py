"""Policy losses of whole sequences, spread over their tokens; see `policy_losses` for arguments.

Each paper's objective is a mean over sequences of one term L each. Here every loss token of a row
carries its row's L, so `reductions.sequence_mean`, the mean over a row's tokens and then over rows,
gives exactly the paper's objective; `token_mean` would weigh L by the row's length.

A row has one advantage: the mean of its tokens' advantages, which is their value where they are all
equal, as with every estimator that rewards whole responses. A correction weight of a token scales
its share of L, so weights that differ within a row act by their mean.
"""

import torch
from torch import Tensor

from rlstack.algorithms.kl import LOG_RATIO_LIMIT
from rlstack.algorithms.policy_losses import (
    PolicyLoss,
    clipped,
    log_ratios,
    unclipped,
)


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """-min(s A, clip(s) A), s = exp(mean log-ratio of the row) (GSPO, arXiv 2507.18071, eq. 5-7).

    Clipping takes or leaves whole rows. s is far closer to 1 than a token's ratio, and so must the
    bounds be: the paper's are 3e-4 and 4e-4.
    """
    ratio = _on_tokens(_sequence_ratio(logprobs, old_logprobs, loss_mask), loss_mask, padding=1.0)
    advantages = _on_tokens(_row_mean(advantages, loss_mask), loss_mask, padding=0.0)
    return clipped(ratio, advantages, clip_low=clip_low, clip_high=clip_high)


def gspo_token(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """GSPO for advantages that differ within a row (GSPO-token, arXiv 2507.18071, eq. 13-15).

    The ratio of token t is stop_gradient(s / policy_t) policy_t: its value is the row's s, and its
    gradient reaches token t alone. Equal advantages give `gspo`'s value and gradient.
    """
    sequence = _sequence_ratio(logprobs, old_logprobs, loss_mask).detach()
    chosen = torch.where(loss_mask, logprobs, 0.0)
    ratio = _on_tokens(sequence, loss_mask, padding=1.0) * (chosen - chosen.detach()).exp()
    return clipped(
        ratio, torch.where(loss_mask, advantages, 0.0), clip_low=clip_low, clip_high=clip_high
    )


def gmpo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    log_clip: float,
) -> PolicyLoss:
    """-A exp(mean of the row's clipped log-ratios) (GMPO, arXiv 2507.20673).

    A token's log-ratio is bounded, in nats, on the side that would gain: by log_clip above where
    A > 0 and by -log_clip below where A < 0. A bounded token keeps its place in the mean and gets
    no gradient.
    """
    log_ratio = log_ratios(logprobs, old_logprobs, loss_mask)
    advantages = _on_tokens(_row_mean(advantages, loss_mask), loss_mask, padding=0.0)
    bounded = torch.where(
        advantages >= 0, log_ratio.clamp(max=log_clip), log_ratio.clamp(min=-log_clip)
    )
    ratio = _on_tokens(_row_mean(bounded, loss_mask).exp(), loss_mask, padding=1.0)
    result = unclipped(-ratio * advantages, ratio)
    return PolicyLoss(
        loss=result.loss,
        ratio=result.ratio,
        clipped_low=(advantages < 0) & (log_ratio < -log_clip),
        clipped_high=(advantages > 0) & (log_ratio > log_clip),
        dual_clipped=None,
    )


def _sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """[B, 1], with gradient; 1 for a row without loss tokens."""
    return (
        _row_mean(logprobs - old_logprobs, loss_mask).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    )


def _row_mean(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Mean over each row's loss tokens, [B, 1]; 0 where there are none."""
    counts = loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(loss_mask, values, 0.0).sum(dim=1, keepdim=True) / counts


def _on_tokens(per_row: Tensor, loss_mask: Tensor, *, padding: float) -> Tensor:
    """[B, 1] -> [B, T]: every loss token gets its row's value."""
    return torch.where(loss_mask, per_row, padding)
