"""Per-token estimators of KL(policy || reference) from sampled tokens (Schulman 2020).

With x = log policy - log reference, k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x. All three have the
same expectation to second order, k1 and k3 exactly KL, on samples of the policy. Gradients differ:

    used as                                   k1      k2      k3      k3_corrected
    loss, tokens sampled from the policy      0       KL      other   KL
    loss, tokens sampled from an older one    wrong   wrong   wrong   KL
    taken off the reward                      KL      wrong   wrong   (a loss only)

KL: in expectation the gradient of KL(policy || reference). other: that of KL(reference || policy).
0: no gradient at all. k3_corrected is k3 times the ratio policy / old policy (`k3_corrected`).
"""

from math import isfinite
from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Nats: log ratios are held within +- this before exp, here and in losses and corrections."""
LARGEST_ERROR = 0.2

Estimator = Literal["k1", "k2", "k3"]


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased, may be negative; nats."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Biased, never negative; nats."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased, never negative; nats. Constant, with gradient 0, beyond a log-ratio of +-20."""
    difference = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return difference.expm1() - difference  # expm1 keeps small differences exact


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def kl_per_token(
    logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor, *, estimator: Estimator
) -> Tensor:
    """The chosen estimate for every token, float [B, T], nats; 0 where masked.

    Masked before anything is computed: what stands on padding, NaN or infinite, reaches neither the
    estimate nor its gradient.
    """
    return ESTIMATORS[estimator](
        torch.where(loss_mask, logprobs, 0.0), torch.where(loss_mask, ref_logprobs, 0.0)
    )


def k3_corrected(
    logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor
) -> Tensor:
    """ratio x k3, ratio = policy / old with its gradient (DeepSeek-V3.2, arXiv 2512.02556).

    For tokens sampled from the old policy: unbiased in value and gradient for KL(policy ||
    reference). The gradient with respect to a token's logprob is ratio x k1, so it pulls towards
    the reference on both sides. All float [B, T], nats; 0 where masked.
    """
    chosen = torch.where(loss_mask, logprobs, 0.0)
    reference = torch.where(loss_mask, ref_logprobs, 0.0)
    log_ratio = chosen - torch.where(loss_mask, old_logprobs, 0.0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    # Where k3 is held constant, the ratio's gradient alone would push away from the reference.
    within = (chosen - reference).abs() <= LOG_RATIO_LIMIT
    return torch.where(within, ratio, ratio.detach()) * k3(chosen, reference)


def adapted_coefficient(
    coefficient: float, *, measured_kl: float, target: float, num_rollouts: int, horizon: int
) -> float:
    """The KL coefficient of the next step (Ziegler et al. 2019, arXiv 1909.08593).

    coefficient x (1 + clip(measured_kl / target - 1, -0.2, 0.2) x num_rollouts / horizon), with
    both KLs in nats per token. horizon, in rollouts, is at least num_rollouts, so that a step
    changes the coefficient by a fifth at most. A KL that is not finite tells nothing: the
    coefficient stays, where `min` and `max` would make it NaN for the rest of the run.
    """
    if not isfinite(measured_kl):
        return coefficient
    error = min(max(measured_kl / target - 1.0, -LARGEST_ERROR), LARGEST_ERROR)
    return coefficient * (1.0 + error * num_rollouts / horizon)
