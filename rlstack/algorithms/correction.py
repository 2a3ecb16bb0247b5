"""The mismatch between the engine's distribution and the trainer's, measured and corrected.

Engine and trainer hold the same weights but compute with different kernels, so a sampled token's
probability differs a little. Truncated importance sampling weighs each token's loss by
min(trainer / engine, cap) (Yao et al. 2025, "off-policy RL"; Ionides 2008).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


def log_mismatch(old_logprobs: Tensor, rollout_logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """log trainer - log engine per token, float [B, T], nats; 0 where masked."""
    return torch.where(loss_mask, old_logprobs, 0.0) - torch.where(loss_mask, rollout_logprobs, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """weights: float [B, T], without gradient. touched: bool [B, T], tokens the method altered."""

    weights: Tensor
    touched: Tensor


def truncated_token_weights(log_ratio: Tensor, *, cap: float) -> Correction:
    """min(ratio, cap) per token."""
    ratio = log_ratio.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return Correction(ratio.clamp(max=cap), ratio > cap)


def truncated_sequence_weights(log_ratio: Tensor, *, cap: float) -> Correction:
    """min(product of a rollout's ratios, cap), the same for all its tokens."""
    total = log_ratio.detach().sum(dim=1, keepdim=True)
    ratio = total.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().expand(log_ratio.shape)
    return Correction(ratio.clamp(max=cap), ratio > cap)
