"""Per-token estimators of KL(policy || reference) from sampled tokens (Schulman 2020).

With x = log policy - log reference, k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x. All three have the
same expectation to second order, k1 and k3 exactly KL. Their gradients differ. Minimised as a loss
on samples of the policy: k1 has expected gradient 0 (useless), k2 the gradient of KL(policy ||
reference), k3 that of KL(reference || policy). Taken off the reward, only k1 gives the gradient of
KL(policy || reference).
"""

from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0

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
