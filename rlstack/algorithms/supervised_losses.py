"""Losses against a target: demonstrations, or a teacher's distribution (distillation).

Per token; reduction is a separate step (`reductions`). The divergences take the entries [N, K] of N
loss tokens (a chunk of them, so that no [B, T, V] tensor exists): the K tokens that the teacher
holds most likely, with the logprobs that student and teacher give them, normalised over the whole
vocabulary. What is left of either distribution is lumped into one further entry, the tail. That
is exact when K is the whole vocabulary and a lower bound otherwise (lumping never raises a
divergence), and unlike leaving the tail out it stays a divergence: 0 only if the K entries agree,
and mass that the student puts outside them costs.
"""

import math

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


def with_tail(logprobs: Tensor) -> Tensor:
    """The entries and, last, the log of the mass outside them: [N, K] -> [N, K + 1].

    That mass is held at the dtype's rounding error or above, where it cannot be told from 0.
    """
    total = torch.logsumexp(logprobs, dim=-1, keepdim=True)
    inside = total.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return torch.cat((logprobs, (-torch.expm1(inside)).log()), dim=-1)


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of log-distributions over the last dimension."""
    return (first.exp() * (first - second)).sum(dim=-1)


def forward_kl(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(teacher || student) over the teacher's top K and the tail, float [N], nats.

    logprobs, teacher_logprobs: float [N, K], finite, nats.
    """
    return _divergence(with_tail(teacher_logprobs), with_tail(logprobs))


def reverse_kl(logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(student || teacher) over the teacher's top K and the tail, float [N], nats.

    logprobs, teacher_logprobs: float [N, K], finite, nats.
    """
    return _divergence(with_tail(logprobs), with_tail(teacher_logprobs))


def generalised_jsd(logprobs: Tensor, teacher_logprobs: Tensor, *, beta: float) -> Tensor:
    """beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 - beta) student.

    Source: GKD (arXiv 2306.13649); float [N], nats. 0.5 is the symmetric
    Jensen-Shannon divergence, at most log 2. By that formula 0 and 1 would give 0: divided by beta
    it tends to the forward KL at 0, and by 1 - beta to the reverse KL at 1. As TRL does, the ends
    are those two KLs, so the scale jumps there.

    logprobs, teacher_logprobs: float [N, K], finite, nats.

    Raises:
        ValueError: if beta is not within [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"generalised_jsd: beta={beta} must be within [0, 1]")
    if beta == 0.0:
        return forward_kl(logprobs, teacher_logprobs)
    if beta == 1.0:
        return reverse_kl(logprobs, teacher_logprobs)
    teacher, student = with_tail(teacher_logprobs), with_tail(logprobs)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _divergence(teacher, mixture) + (1 - beta) * _divergence(student, mixture)
