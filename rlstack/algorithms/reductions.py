"""From per-token losses to one number, with denominators over the whole optimizer step.

Each function sums over the rows it is given and divides by a *global* count, so the sum of its
results over micro-batches and ranks is the loss of the whole batch, however it is split.
`losses` float [B, T]; `loss_mask` bool [B, T]. No loss tokens: exactly 0, with a gradient path.
"""

import torch
from torch import Tensor


def token_mean(losses: Tensor, loss_mask: Tensor, *, num_loss_tokens: int) -> Tensor:
    """Every token weighs the same (DAPO, arXiv 2503.14476, eq. 12)."""
    return torch.where(loss_mask, losses, 0.0).sum() / max(num_loss_tokens, 1)


def sequence_mean(losses: Tensor, loss_mask: Tensor, *, num_rollouts: int) -> Tensor:
    """Every rollout weighs the same (GRPO, arXiv 2402.03300, eq. 3).

    num_rollouts counts rollouts with at least one loss token; empty ones are left out.
    """
    lengths = loss_mask.sum(dim=1).clamp(min=1)
    per_rollout = torch.where(loss_mask, losses, 0.0).sum(dim=1) / lengths
    return per_rollout.sum() / max(num_rollouts, 1)


def fixed_length(losses: Tensor, loss_mask: Tensor, *, num_rollouts: int, length: int) -> Tensor:
    """Token sums over a constant length: no bias for short or long (Dr.GRPO, arXiv 2503.20783)."""
    return torch.where(loss_mask, losses, 0.0).sum() / (max(num_rollouts, 1) * length)
