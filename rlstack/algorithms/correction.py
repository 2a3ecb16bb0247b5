"""The mismatch between the policy that sampled and the trainer's, measured and corrected.

Engine and trainer hold the same weights but compute with different kernels, and an engine may run
behind: a sampled token's probability differs. Every method turns the ratios trainer / engine into
one weight per token, a factor on its policy loss. A token with weight 0 is dropped from the loss
but stays in its denominators: dropping some does not enlarge the gradient of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlstack.algorithms.kl import LOG_RATIO_LIMIT

Level = Literal["token", "sequence", "geometric"]


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """weights: float [B, T], without gradient. touched: bool [B, T], tokens the method altered."""

    weights: Tensor
    touched: Tensor


def log_mismatch(old_logprobs: Tensor, rollout_logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """log trainer - log engine per token, float [B, T], nats; 0 where masked."""
    return torch.where(loss_mask, old_logprobs, 0.0) - torch.where(loss_mask, rollout_logprobs, 0.0)


def importance_ratios(log_ratio: Tensor, loss_mask: Tensor, *, level: Level) -> Tensor:
    """trainer / engine without gradient, float [B, T]; 1 where masked.

    token: each token's own. sequence: the product over its row, the exact weight of a response and
    of huge variance for long ones. geometric: the row's geometric mean. log_ratio: `log_mismatch`.
    """
    log_ratio = torch.where(loss_mask, log_ratio.detach(), 0.0)
    if level != "token":
        log_ratio = log_ratio.sum(dim=1, keepdim=True)
    if level == "geometric":
        log_ratio = log_ratio / loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
    ratios = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return torch.where(loss_mask, ratios, 1.0)


def uncorrected(log_ratio: Tensor) -> Correction:
    """1: the engine's distribution is taken to be the trainer's."""
    return Correction(torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool))


def truncated(ratios: Tensor, *, cap: float) -> Correction:
    """min(ratio, cap) (truncated importance sampling, Ionides 2008; for LLMs Yao et al. 2025)."""
    return Correction(ratios.clamp(max=cap), ratios > cap)


def masked(ratios: Tensor, *, low: float, high: float) -> Correction:
    """The ratio where it is within [low, high], else 0.

    Of tokens, with [0.5, 5], this is IcePop (Ring-1T, arXiv 2510.18855, eq. 1-3).
    """
    outside = (ratios < low) | (ratios > high)
    return Correction(ratios.masked_fill(outside, 0.0), outside)


def rejected(ratios: Tensor, *, low: float, high: float) -> Correction:
    """1 where the ratio is within [low, high], else 0: kept as it is, or not used at all.

    Of rollouts, meant for geometric ratios, so that a long one is not rejected for its length.
    """
    outside = (ratios < low) | (ratios > high)
    return Correction(torch.ones_like(ratios).masked_fill(outside, 0.0), outside)


def composed(parts: Sequence[Correction]) -> Correction:
    """The product of the weights; touched is what any of the parts touched.

    Every part was made of all ratios, whatever another dropped, so that the order does not matter.
    """
    return Correction(
        torch.stack([part.weights for part in parts]).prod(dim=0),
        torch.stack([part.touched for part in parts]).any(dim=0),
    )


def second_moment(log_ratio: Tensor, loss_mask: Tensor, *, threshold: float) -> Correction:
    """Weight 0 for the largest squared log-ratios, until the mean of the rest is <= threshold.

    (M2PO, arXiv 2510.01161.) The others keep their token ratio. A statistic of the whole batch:
    give it all rows of a step. Equal log-ratios are dropped or kept together, so the order of rows
    does not matter. threshold: nats squared.
    """
    squares = torch.where(loss_mask, log_ratio.detach(), 0.0).square()
    ascending = squares[loss_mask].double().sort().values
    counts = torch.arange(1, len(ascending) + 1, device=ascending.device)
    too_many = ascending.cumsum(0) / counts > threshold  # ascending, so the mean only grows
    dropped = torch.isin(squares.double(), ascending[too_many])  # never the 0 of padding
    ratios = importance_ratios(log_ratio, loss_mask, level="token")
    return Correction(ratios.masked_fill(dropped, 0.0), dropped)


def staleness_weights(ages: Tensor, *, exponent: float) -> Correction:
    """(1 + age)^-exponent: 1 for fresh tokens (FedAsync, arXiv 1903.03934).

    ages: int [B, T], policy updates between sampling and training. The polynomial form that
    asynchronous optimisation weighs late updates with; the paper's exponent is 0.5.
    """
    return Correction((1.0 + ages.float()).pow(-exponent), ages > 0)
