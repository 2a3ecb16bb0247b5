"""KL estimators against exact enumeration, and the adaptive coefficient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import kl

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(5, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
REFERENCE = torch.randn(5, generator=GENERATOR, dtype=torch.float64).log_softmax(0)
OLDER = torch.randn(5, generator=GENERATOR, dtype=torch.float64).log_softmax(0)
"""Of a policy that sampled earlier."""


def estimate_of(logprobs: Tensor, old: Tensor, estimator: str) -> Tensor:
    """The estimate for every word of the vocabulary."""
    match estimator:
        case "k1":
            return kl.k1(logprobs, REFERENCE)
        case "k2":
            return kl.k2(logprobs, REFERENCE)
        case "k3":
            return kl.k3(logprobs, REFERENCE)
        case _:
            return kl.k3_corrected(logprobs, old, REFERENCE, torch.ones(5, dtype=torch.bool))


def gradient(value: Tensor) -> Tensor:
    return torch.autograd.grad(value, LOGITS)[0]


def true_gradients() -> tuple[Tensor, Tensor]:
    """Of KL(policy || reference) and of KL(reference || policy)."""
    logprobs = LOGITS.log_softmax(0)
    forward = (logprobs.exp() * (logprobs - REFERENCE)).sum()
    other = (REFERENCE.exp() * (REFERENCE - LOGITS.log_softmax(0))).sum()
    return gradient(forward), gradient(other)


def same(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("old", ["policy", "older"])
@pytest.mark.parametrize("estimator", ["k1", "k3", "k3_corrected"])
def test_value_is_kl_in_expectation(estimator: str, old: str) -> None:
    """On samples of the policy; off-policy only with the correction."""
    logprobs = LOGITS.log_softmax(0).detach()
    sampled_from = logprobs if old == "policy" else OLDER
    expected = (logprobs.exp() * (logprobs - REFERENCE)).sum()
    found = (sampled_from.exp() * estimate_of(logprobs, sampled_from, estimator)).sum()
    assert same(found, expected) == (old == "policy" or estimator == "k3_corrected")


@pytest.mark.parametrize(
    ("estimator", "on_policy", "off_policy", "reward"),
    [
        ("k1", "nothing", "wrong", "kl"),
        ("k2", "kl", "wrong", "wrong"),
        ("k3", "other", "wrong", "wrong"),
        ("k3_corrected", "kl", "kl", None),
    ],
)
def test_gradients_are_those_that_are_documented(
    estimator: str, on_policy: str, off_policy: str, reward: str | None
) -> None:
    """The module's table, by enumeration over the vocabulary."""
    true, other = true_gradients()

    def verdict(found: Tensor) -> str:
        if same(found, true):
            return "kl"
        if same(found, other):
            return "other"
        return "nothing" if same(found, torch.zeros(5, dtype=torch.float64)) else "wrong"

    def as_loss(sampled_from: Tensor) -> Tensor:
        estimate = estimate_of(LOGITS.log_softmax(0), sampled_from, estimator)
        return gradient((sampled_from.exp() * estimate).sum())

    logprobs = LOGITS.log_softmax(0)
    assert verdict(as_loss(logprobs.detach())) == on_policy
    assert verdict(as_loss(OLDER)) == off_policy
    if reward is not None:
        penalty = estimate_of(logprobs, logprobs, estimator).detach()
        assert verdict(gradient((logprobs.detach().exp() * penalty * logprobs).sum())) == reward


def all_estimates(logprobs: Tensor, reference: Tensor, mask: Tensor) -> dict[str, Tensor]:
    old = torch.where(mask, logprobs.detach() - 0.2, torch.nan)
    plain = {
        name: kl.kl_per_token(logprobs, reference, mask, estimator=name)
        for name in ("k1", "k2", "k3")
    }
    return plain | {"k3_corrected": kl.k3_corrected(logprobs, old, reference, mask)}


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_corrected"])
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_padding_reaches_neither_a_kl_estimate_nor_its_gradient(
    estimator: str, rubbish: float
) -> None:
    logprobs = torch.tensor([[-1.0, rubbish]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    estimate = all_estimates(logprobs, torch.tensor([[-1.5, rubbish]]), mask)[estimator]
    estimate.sum().backward()
    assert estimate[0, 1] == 0
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[0, 1] == 0


@pytest.mark.parametrize("distance", [-1000.0, -25.0, -1.0, 1.0, 25.0, 1000.0])
@pytest.mark.parametrize("estimator", ["k3", "k3_corrected"])
def test_no_token_is_pushed_further_from_the_reference(distance: float, estimator: str) -> None:
    logprobs = torch.tensor([[distance]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    all_estimates(logprobs, torch.zeros(1, 1), mask)[estimator].sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad.item() * distance >= 0


@given(x=st.floats(-15, 15), log_ratio=st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_the_corrected_gradient_is_ratio_times_k1(x: float, log_ratio: float) -> None:
    logprobs = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
    old = logprobs.detach() - log_ratio
    estimate = kl.k3_corrected(
        logprobs, old, torch.zeros_like(old), torch.ones(1, 1, dtype=torch.bool)
    )
    (found,) = torch.autograd.grad(estimate.sum(), logprobs)
    assert found.item() == pytest.approx(math.exp(log_ratio) * x, rel=1e-6, abs=1e-9)


def test_corrected_k3_passes_a_gradient_check() -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    old, reference = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 4, generator=generator) > 0.3
    assert torch.autograd.gradcheck(lambda p: kl.k3_corrected(p, old, reference, mask), logprobs)


@pytest.mark.parametrize(
    ("measured_kl", "factor"),
    [(0.1, 1.0), (0.11, 1.0 + 0.1 * 0.5), (0.09, 1.0 - 0.1 * 0.5), (9.0, 1.1), (-1.0, 0.9)],
)
def test_coefficient_follows_the_measured_kl_within_a_fifth(
    measured_kl: float, factor: float
) -> None:
    found = kl.adapted_coefficient(
        0.4, measured_kl=measured_kl, target=0.1, num_rollouts=50, horizon=100
    )
    assert found == pytest.approx(0.4 * factor)


@pytest.mark.parametrize("measured_kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_leaves_the_coefficient(measured_kl: float) -> None:
    found = kl.adapted_coefficient(
        0.4, measured_kl=measured_kl, target=0.1, num_rollouts=50, horizon=100
    )
    assert found == 0.4
