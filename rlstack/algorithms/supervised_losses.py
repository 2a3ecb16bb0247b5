"""Losses against a target, per token: demonstrations, or a teacher's judgement (distillation).

Reduction is a separate step (`reductions`).
"""

import torch
from torch import Tensor


def negative_log_likelihood(logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """-log p of every demonstrated token, float [B, T], nats; 0 where masked (supervised training).

    logprobs: float [B, T], nats. loss_mask: bool [B, T], True on the tokens to be learned.
    """
    return -torch.where(loss_mask, logprobs, 0.0)


def distillation_advantages(
    logprobs: Tensor, teacher_logprobs: Tensor, loss_mask: Tensor, *, weight: float
) -> Tensor:
    """-weight (log student - log teacher) of sampled tokens, float [B, T], without gradient.

    On-policy distillation (arXiv 2306.13649; Thinking Machines 2025): with a policy loss, the
    expected gradient is that of weight * KL(student || teacher) per token. Add them to the
    advantages of a reward, or use them alone.

    logprobs, teacher_logprobs: float [B, T], nats, of tokens that the student sampled.
    """
    return -weight * _log_ratio(logprobs, teacher_logprobs, loss_mask).detach()


def _log_ratio(logprobs: Tensor, teacher_logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    return torch.where(loss_mask, logprobs, 0.0) - torch.where(loss_mask, teacher_logprobs, 0.0)
