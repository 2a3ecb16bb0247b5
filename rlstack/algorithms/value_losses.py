"""Losses of a critic per token; reduction is a separate step (`reductions`).

`values` and `returns` float [B, T], reward units; `loss_mask` bool [B, T]. Everything is masked
before it is computed: what stands on padding, NaN or infinite, reaches neither loss nor gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValueLoss:
    """Both [B, T], 0 or False where masked: the loss, and where the clip left no gradient."""

    loss: Tensor
    clipped: Tensor


def squared_error(values: Tensor, returns: Tensor, loss_mask: Tensor) -> ValueLoss:
    """(V - R)^2 / 2 (PPO, arXiv 1707.06347, eq. 9, with the half that makes its gradient V - R)."""
    loss = 0.5 * (_masked(values, loss_mask) - _masked(returns, loss_mask).detach()).square()
    return ValueLoss(loss=loss, clipped=torch.zeros_like(loss_mask))


def clipped_squared_error(
    values: Tensor, old_values: Tensor, returns: Tensor, loss_mask: Tensor, *, clip: float
) -> ValueLoss:
    """max((V - R)^2, (V' - R)^2) / 2, V' being V within `clip` of its old value.

    As in OpenAI Baselines' PPO2. A token stops training once it has moved `clip` toward its return.

    old_values: float [B, T], reward units, of the critic that the returns were estimated with.
    clip: reward units.
    """
    values, returns = _masked(values, loss_mask), _masked(returns, loss_mask).detach()
    old_values = _masked(old_values, loss_mask).detach()
    plain = (values - returns).square()
    # Larger only where the value was moved, and then a constant: it needs no gradient.
    near = values.detach().clamp(old_values - clip, old_values + clip)
    bounded = (near - returns).square()
    clipped = bounded > plain
    return ValueLoss(loss=0.5 * torch.where(clipped, bounded, plain), clipped=clipped)


def explained_variance(values: Tensor, returns: Tensor, loss_mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the loss tokens: 1 perfect, 0 no better than a constant.

    A scalar; NaN where it is not defined: fewer than two loss tokens, or returns all equal.
    """
    chosen = returns.masked_select(loss_mask)
    errors = (returns - values).masked_select(loss_mask)
    if chosen.numel() < 2:
        return returns.new_tensor(torch.nan)
    # From one of the returns on, so that equal ones leave no rounding error.
    variance = (chosen - chosen[0]).var()
    return torch.where(variance > 0, 1.0 - errors.var() / variance, torch.nan)


def _masked(tensor: Tensor, loss_mask: Tensor) -> Tensor:
    return torch.where(loss_mask, tensor, 0.0)
