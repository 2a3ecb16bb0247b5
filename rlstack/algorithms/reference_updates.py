"""Moving the reference after the policy: soft updates (TR-DPO) and hard resets.

Source: TR-DPO (arXiv 2404.09656): every tau steps ref <- alpha pi + (1 - alpha) ref, or ref <- pi,
which is alpha = 1 and what ProRL (arXiv 2505.24864) does to the reference of its KL term. TRL has
alpha 0.6 and tau 512. An exponential average of the policy with a given decay is a soft update at
every step with alpha = 1 - decay.
"""

import torch
from torch import Tensor


def is_update_step(step: int, *, every: int) -> bool:
    """Whether the reference moves after `step`, counted from 1.

    Raises:
        ValueError: if every is not above 0.
    """
    if every <= 0:
        raise ValueError(f"is_update_step: every={every} must be above 0")
    return step > 0 and step % every == 0


def mix(reference: Tensor, policy: Tensor, *, alpha: float) -> Tensor:
    """alpha * policy + (1 - alpha) * reference, a new tensor of the reference's dtype.

    Computed in float32 at least. A reference kept in bfloat16 loses steps of less than about 0.4%
    of a weight: with a small alpha keep it in float32.

    Raises:
        ValueError: if alpha is not within [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"mix: alpha={alpha} must be within [0, 1]")
    exact = torch.promote_types(reference.dtype, torch.float32)
    return torch.lerp(reference.to(exact), policy.to(exact), alpha).to(reference.dtype)
