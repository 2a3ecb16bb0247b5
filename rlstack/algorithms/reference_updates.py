"""Moving the reference after the policy: soft updates (TR-DPO) and hard resets.

Source: TR-DPO (arXiv 2404.09656): every tau steps ref <- alpha pi + (1 - alpha) ref, or ref <- pi;
TRL has alpha 0.6 and tau 512. An exponential average of the policy with a given decay is a soft
update at every step with alpha = 1 - decay.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import torch
from torch import Tensor

NamedTensors = Iterable[tuple[str, Tensor]]


def is_update_step(step: int, *, every: int) -> bool:
    """Whether the reference moves after optimizer step `step`, counted from 1.

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


def soft_update(
    reference: NamedTensors, policy: NamedTensors, *, alpha: float
) -> Iterator[tuple[str, Tensor]]:
    """The mixed tensors by name, one at a time, so that no second model is held in memory.

    Raises:
        ValueError: if names or shapes differ, naming the tensor.
    """
    for name, old, new in _paired(reference, policy):
        yield name, mix(old, new, alpha=alpha)


def hard_reset(reference: NamedTensors, policy: NamedTensors) -> Iterator[tuple[str, Tensor]]:
    """The policy's tensors by name, copied, in the reference's dtype.

    Raises:
        ValueError: if names or shapes differ, naming the tensor.
    """
    for name, old, new in _paired(reference, policy):
        yield name, new.to(old.dtype, copy=True)


def _paired(reference: NamedTensors, policy: NamedTensors) -> Iterator[tuple[str, Tensor, Tensor]]:
    for old, new in zip_longest(reference, policy):
        if old is None or new is None or old[0] != new[0]:
            raise ValueError(
                f"reference update: the reference has tensor {old[0] if old else None!r} where the "
                f"policy has {new[0] if new else None!r}; give both in the same order"
            )
        if old[1].shape != new[1].shape:
            raise ValueError(
                f"reference update: {old[0]} is {list(old[1].shape)} in the reference and "
                f"{list(new[1].shape)} in the policy"
            )
        yield old[0], old[1], new[1]
