"""Merging models of one architecture, one tensor at a time, so that none need fit in memory.

Each method takes the same tensor of several models and returns the merged one in their dtype,
computed in float32 at least. Methods on task vectors (model minus base) take the base as well.
`merged` runs a method over a stream of named tensors; `rlstack.commands.merge_files` does so on
disk.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

Method = Callable[[str, Sequence[Tensor]], Tensor]
"""A tensor's name, and the tensor in every model in order -> the merged tensor."""

PARALLEL_COSINE = 0.9995
"""Beyond it the sine that SLERP divides by has lost its digits."""


def merged(
    tensors: Iterable[tuple[str, Sequence[Tensor]]], *, method: Method
) -> Iterator[tuple[str, Tensor]]:
    """The merged tensors by name, one at a time.

    Tensors that are not floating point (buffers) must be equal in all models and stay as they are.

    Raises:
        ValueError: if shapes or dtypes differ between models, or buffers do, naming the tensor.
    """
    for name, candidates in tensors:
        first = candidates[0]
        for index, tensor in enumerate(candidates):
            if tensor.shape != first.shape or tensor.dtype != first.dtype:
                raise ValueError(
                    f"merge: {name} is {first.dtype} {list(first.shape)} in model 0 and "
                    f"{tensor.dtype} {list(tensor.shape)} in model {index}"
                )
        if first.is_floating_point():
            yield name, method(name, candidates)
        elif all(torch.equal(first, tensor) for tensor in candidates):
            yield name, first
        else:
            raise ValueError(f"merge: {name} is {first.dtype} and differs between models")


def linear(models: Sequence[Tensor], *, weights: Sequence[float]) -> Tensor:
    """Weighted mean, the weights normalised to sum 1 (model soups, arXiv 2203.05482).

    Raises:
        ValueError: if weights sum to 0 or do not match the models.
    """
    _check_weights(models, weights)
    total = sum(weights)
    if total == 0:
        raise ValueError(f"linear: weights {list(weights)} sum to 0")
    first = _exact(models[0])
    # From the first model on, so that equal models give exactly that model.
    result = first.clone()
    for model, weight in zip(models[1:], weights[1:], strict=True):
        result += (_exact(model) - first) * (weight / total)
    return result.to(models[0].dtype)


def slerp(first: Tensor, second: Tensor, *, fraction: float) -> Tensor:
    """Along the arc from `first` (fraction 0) to `second` (1), each tensor as one vector.

    Source: Shoemake (1985). Linear where the two point the same way, opposite ways, or one is zero:
    the arc is a line, or not determined.
    """
    a, b = _exact(first), _exact(second)
    lengths = a.norm() * b.norm()
    cosine = (a * b).sum() / lengths if lengths > 0 else lengths.new_ones(())
    if cosine.abs() > PARALLEL_COSINE:
        return torch.lerp(a, b, fraction).to(first.dtype)
    angle = cosine.acos()
    start, end = ((1 - fraction) * angle).sin(), (fraction * angle).sin()
    return ((start * a + end * b) / angle.sin()).to(first.dtype)


def task_arithmetic(base: Tensor, experts: Sequence[Tensor], *, weights: Sequence[float]) -> Tensor:
    """base + sum of weight * (expert - base) (arXiv 2212.04089); weights are not normalised.

    Raises:
        ValueError: if weights do not match the experts.
    """
    _check_weights(experts, weights)
    origin = _exact(base)
    result = origin.clone()
    for expert, weight in zip(experts, weights, strict=True):
        result += (_exact(expert) - origin) * weight
    return result.to(base.dtype)


def ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weights: Sequence[float],
    density: float,
    scale: float,
) -> Tensor:
    """Trim, elect sign, disjoint mean (TIES, arXiv 2306.01708, algorithm 1).

    Of each task vector the share `density` of largest magnitude is kept (ties at the threshold all
    stay); each entry's sign is that of the weighted sum; the weighted mean is taken over experts
    whose kept entry has that sign; `scale` (lambda in the paper) times it is added to the base.
    Trimmed by tensor and not over the whole model, which would need all of it at once.

    Raises:
        ValueError: if density is not within (0, 1], weights are negative or do not match.
    """
    _check_weights(experts, weights)
    if not 0.0 < density <= 1.0:
        raise ValueError(f"ties: density={density} must be within (0, 1]")
    if min(weights) < 0:
        raise ValueError(f"ties: weights {list(weights)} must not be negative")
    origin = _exact(base)
    # Twice over the experts, so that one task vector at a time is in memory.
    votes = torch.zeros_like(origin)
    for expert, weight in zip(experts, weights, strict=True):
        votes += weight * _trimmed(_exact(expert) - origin, density)
    sign = votes.sign()
    totals, shares = torch.zeros_like(origin), torch.zeros_like(origin)
    for expert, weight in zip(experts, weights, strict=True):
        vector = _trimmed(_exact(expert) - origin, density)
        agrees = vector.sign() == sign
        totals += weight * torch.where(agrees, vector, 0.0)
        shares += weight * agrees
    mean = torch.where(shares > 0, totals / torch.where(shares > 0, shares, 1.0), 0.0)
    return (origin + scale * mean).to(base.dtype)


def dare(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weights: Sequence[float],
    drop_probability: float,
    seed: int,
    name: str,
) -> Tensor:
    """Task arithmetic on task vectors with entries dropped and the rest rescaled by 1 / (1 - p).

    Source: DARE (arXiv 2311.03099). The expectation is that of task arithmetic. What is
    dropped depends on seed, tensor name and the expert's place alone, not on the order of tensors.

    Raises:
        ValueError: if drop_probability is not within [0, 1), or weights do not match.
    """
    _check_weights(experts, weights)
    if not 0.0 <= drop_probability < 1.0:
        raise ValueError(f"dare: drop_probability={drop_probability} must be within [0, 1)")
    origin = _exact(base)
    result = origin.clone()
    for index, (expert, weight) in enumerate(zip(experts, weights, strict=True)):
        digest = hashlib.sha256(f"{seed}/{index}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        kept = torch.rand(origin.shape, generator=generator) >= drop_probability
        vector = (_exact(expert) - origin) * (weight / (1 - drop_probability))
        result += torch.where(kept.to(vector.device), vector, 0.0)
    return result.to(base.dtype)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _trimmed(vector: Tensor, density: float) -> Tensor:
    sizes = vector.abs().flatten()
    num_kept = max(round(sizes.numel() * density), 1)
    if num_kept >= sizes.numel():
        return vector
    threshold = sizes.kthvalue(sizes.numel() - num_kept + 1).values
    return torch.where(vector.abs() >= threshold, vector, 0.0)


def _check_weights(models: Sequence[Tensor], weights: Sequence[float]) -> None:
    if not models or len(models) != len(weights):
        raise ValueError(f"merge: {len(weights)} weights for {len(models)} models; give one each")
