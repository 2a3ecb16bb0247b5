"""Value losses: tables, a plain loop, gradients of every case of the clip, and masking."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms.reductions import token_mean
from rlstack.algorithms.value_losses import (
    ValueLoss,
    clipped_squared_error,
    explained_variance,
    squared_error,
)


def one(
    value: float, old_value: float, target: float, clip: float | None
) -> tuple[ValueLoss, float]:
    """The loss of one token and its gradient."""
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    targets, mask = torch.full_like(values, target), torch.ones(1, 1, dtype=torch.bool)
    if clip is None:
        result = squared_error(values, targets, mask)
    else:
        old_values = torch.full_like(values, old_value)
        result = clipped_squared_error(values, old_values, targets, mask, clip=clip)
    result.loss.sum().backward()
    assert values.grad is not None
    return result, values.grad.item()


@pytest.mark.parametrize(
    ("value", "old_value", "clip", "loss", "gradient"),
    [
        (0.4, 0.0, None, 0.18, -0.6),
        (0.4, 0.3, 0.5, 0.18, -0.6),  # within the clip: as without
        (0.4, 0.0, 0.2, 0.32, 0.0),  # moved far enough toward the return
        (-0.4, 0.0, 0.2, 0.98, -1.4),  # moved away: full gradient back
        (1.9, 2.5, 0.2, 0.845, 0.0),  # from above, far enough
        (2.9, 2.5, 0.2, 1.805, 1.9),  # from above, away
    ],
)
def test_value_and_gradient_of_every_case(
    value: float, old_value: float, clip: float | None, loss: float, gradient: float
) -> None:
    """The return is 1."""
    result, found = one(value, old_value, 1.0, clip)
    assert result.loss.item() == pytest.approx(loss)
    assert found == pytest.approx(gradient)
    assert result.clipped.item() == (clip is not None and gradient == 0)


def random_rows(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """values, old_values, returns, loss_mask."""
    generator = torch.Generator().manual_seed(seed)
    values, old_values, returns = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    return values, old_values, returns, torch.rand(4, 6, generator=generator) > 0.3


@given(seed=st.integers(0, 1000), clip=st.floats(0.01, 2.0))
@settings(max_examples=30, deadline=None)
def test_equal_to_a_plain_loop(seed: int, clip: float) -> None:
    values, old_values, returns, mask = random_rows(seed)
    result = clipped_squared_error(values, old_values, returns, mask, clip=clip)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value, old, target = (
                float(tensor[row, column]) for tensor in (values, old_values, returns)
            )
            near = min(max(value, old - clip), old + clip)
            expected = 0.5 * max((value - target) ** 2, (near - target) ** 2)
            found = float(result.loss[row, column])
            assert found == pytest.approx(expected if mask[row, column] else 0.0)


def test_gradients_are_those_of_finite_differences() -> None:
    values, old_values, returns, mask = random_rows(0)
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: squared_error(v, returns, mask).loss, values)
    assert torch.autograd.gradcheck(
        lambda v: clipped_squared_error(v, old_values, returns, mask, clip=0.3).loss, values
    )


def test_an_infinite_clip_clips_nothing() -> None:
    values, old_values, returns, mask = random_rows(1)
    clipped = clipped_squared_error(values, old_values, returns, mask, clip=math.inf)
    torch.testing.assert_close(clipped.loss, squared_error(values, returns, mask).loss)
    assert not clipped.clipped.any()


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_parts_add_up_to_the_whole(num_parts: int) -> None:
    values, old_values, returns, mask = random_rows(2)
    values.requires_grad_()
    count = int(mask.sum())

    def loss(rows: slice) -> Tensor:
        result = clipped_squared_error(
            values[rows], old_values[rows], returns[rows], mask[rows], clip=0.2
        )
        return token_mean(result.loss, mask[rows], num_loss_tokens=count)

    whole = loss(slice(None))
    (expected,) = torch.autograd.grad(whole, values, retain_graph=True)
    parts = torch.stack([loss(slice(part, None, num_parts)) for part in range(num_parts)]).sum()
    (found,) = torch.autograd.grad(parts, values)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_padding_reaches_neither_loss_nor_gradient(rubbish: float) -> None:
    values = torch.tensor([[0.5, rubbish]], requires_grad=True)
    other = torch.tensor([[0.1, rubbish]])
    mask = torch.tensor([[True, False]])
    for result in (
        squared_error(values, other, mask),
        clipped_squared_error(values, other, other, mask, clip=0.1),
    ):
        assert result.loss[0, 1] == 0
        assert not result.clipped[0, 1]
        (gradient,) = torch.autograd.grad(result.loss.sum(), values)
        assert gradient.isfinite().all()
        assert gradient[0, 0] != 0
        assert gradient[0, 1] == 0


def test_explained_variance() -> None:
    values, _, returns, mask = random_rows(3)
    assert float(explained_variance(returns, returns, mask)) == 1
    # A constant off is no error of a variance; a constant explains none.
    torch.testing.assert_close(
        explained_variance(returns + 7, returns, mask), torch.ones((), dtype=torch.float64)
    )
    constant = torch.full_like(returns, 0.3)
    assert float(explained_variance(constant, returns, mask)) == pytest.approx(0)
    errors, chosen = (returns - values)[mask].tolist(), returns[mask].tolist()

    def variance(numbers: list[float]) -> float:
        mean = sum(numbers) / len(numbers)
        return sum((number - mean) ** 2 for number in numbers)

    expected = 1 - variance(errors) / variance(chosen)
    assert float(explained_variance(values, returns, mask)) == pytest.approx(expected)
    rubbish = torch.where(mask, values, math.nan)
    assert float(explained_variance(rubbish, returns, mask)) == pytest.approx(expected)


def test_explained_variance_is_undefined_without_variance() -> None:
    values, _, _, mask = random_rows(4)
    assert explained_variance(values, torch.full_like(values, 0.1), mask).isnan()
    assert explained_variance(values, values, torch.zeros_like(mask)).isnan()
