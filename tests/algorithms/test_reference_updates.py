"""Reference updates: the recursion by hand, and its ends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import reference_updates as updates


def test_by_hand() -> None:
    reference, policy = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 2.0])
    found = updates.mix(reference, policy, alpha=0.75)
    torch.testing.assert_close(found, torch.tensor([2.5, 1.0]))
    assert reference.tolist() == [1.0, -2.0]


@given(alpha=st.floats(0, 1), steps=st.integers(1, 8), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_repeated_updates_are_the_geometric_sum(alpha: float, steps: int, seed: int) -> None:
    """ref_n = (1 - a)^n ref_0 + sum_i a (1 - a)^(n - i) pi_i."""
    generator = torch.Generator().manual_seed(seed)
    start, *policies = torch.randn(steps + 1, 3, generator=generator, dtype=torch.float64)
    reference = start
    for policy in policies:
        reference = updates.mix(reference, policy, alpha=alpha)
    expected = (1 - alpha) ** steps * start
    for i, policy in enumerate(policies, start=1):
        expected = expected + alpha * (1 - alpha) ** (steps - i) * policy
    torch.testing.assert_close(reference, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_with_alpha_one_is_a_reset_and_with_zero_nothing(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(1000, generator=generator).to(dtype)
    policy = torch.randn(1000, generator=generator)
    assert torch.equal(updates.mix(reference, policy, alpha=1.0), policy.to(dtype))
    assert torch.equal(updates.mix(reference, policy, alpha=0.0), reference)


def test_half_precision_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, policy = torch.randn(2, 1000, generator=generator).bfloat16()
    exact = updates.mix(reference.double(), policy.double(), alpha=0.6)

    def error(found: Tensor) -> float:
        assert found.dtype == torch.bfloat16
        return float(((found.double() - exact) / exact).abs().max())

    half_a_step = 1.001 * 2**-8
    assert error(updates.mix(reference, policy, alpha=0.6)) <= half_a_step
    assert error(0.6 * policy + 0.4 * reference) > half_a_step


def test_when() -> None:
    assert [step for step in range(13) if updates.is_update_step(step, every=4)] == [4, 8, 12]
    with pytest.raises(ValueError, match="every=0 must be above 0"):
        updates.is_update_step(4, every=0)


def test_a_share_outside_its_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"alpha=1.5 must be within \[0, 1\]"):
        updates.mix(torch.zeros(1), torch.zeros(1), alpha=1.5)
