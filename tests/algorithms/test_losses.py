"""Clip, reductions, KL and correction: signs, extremes, exact expectations, splitting."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import correction, kl, reductions
from rlstack.algorithms.policy_losses import PolicyLoss, ppo_clip


def loss_of(
    ratio: float, advantage: float, *, dual_clip: float | None = None
) -> tuple[PolicyLoss, Tensor]:
    """The loss of one token and its gradient with respect to the token's logprob."""
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    result = ppo_clip(
        logprobs,
        torch.zeros_like(logprobs),
        torch.full_like(logprobs, advantage),
        torch.ones_like(logprobs, dtype=torch.bool),
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=dual_clip,
    )
    (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
    return result, gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        (1.5, 1.0, -1.28, 0.0),  # above the upper bound: no more to gain
        (1.5, -1.0, 1.5, 1.5),  # and still to lose
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),  # below the lower bound
    ],
)
def test_value_and_gradient_of_every_case(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    result, found = loss_of(ratio, advantage)
    assert result.loss.item() == pytest.approx(loss)
    assert found.item() == pytest.approx(gradient)
    assert bool(result.clipped_high) == (ratio > 1.28 and advantage > 0)
    assert bool(result.clipped_low) == (ratio < 0.8 and advantage < 0)


def test_dual_clip_bounds_a_runaway_token() -> None:
    result, gradient = loss_of(10.0, -1.0, dual_clip=3.0)
    assert result.loss.item() == pytest.approx(3.0)
    assert gradient.item() == 0
    assert bool(result.dual_clipped)


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf")])
def test_what_stands_on_padding_reaches_nothing(rubbish: float) -> None:
    logprobs = torch.tensor([[-1.0, rubbish]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    old = torch.tensor([[-1.1, rubbish]])
    result = ppo_clip(
        logprobs, old, torch.ones(1, 2), mask, clip_low=0.2, clip_high=0.2, dual_clip=None
    )
    reductions.token_mean(result.loss, mask, num_loss_tokens=1).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[0, 1] == 0


@pytest.mark.parametrize("difference", [1000.0, -1000.0])
def test_extreme_ratios_stay_finite(difference: float) -> None:
    logprobs = torch.tensor([[difference]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = ppo_clip(
        logprobs,
        torch.zeros(1, 1),
        -torch.ones(1, 1),
        mask,
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
    )
    result.loss.sum().backward()
    assert result.loss.isfinite().all()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


@given(seed=st.integers(0, 1000), parts=st.sampled_from([1, 2, 4]), padding=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_split_and_padded_batch_gives_the_same_loss_and_gradient(
    seed: int, parts: int, padding: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(8, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(8, 5, generator=generator) > 0.4
    num_tokens, num_rollouts = int(mask.sum()), int(mask.any(dim=1).sum())

    def total(values: Tensor, chosen: Tensor, kind: str) -> Tensor:
        match kind:
            case "token":
                return reductions.token_mean(values, chosen, num_loss_tokens=num_tokens)
            case "sequence":
                return reductions.sequence_mean(values, chosen, num_rollouts=num_rollouts)
            case _:
                return reductions.fixed_length(values, chosen, num_rollouts=num_rollouts, length=7)

    for kind in ("token", "sequence", "fixed"):
        whole = total(losses, mask, kind)
        (expected,) = torch.autograd.grad(whole, losses)
        padded = torch.nn.functional.pad(losses, (0, padding), value=3.0)
        padded_mask = torch.nn.functional.pad(mask, (0, padding))
        pieces = [
            total(padded[part::parts], padded_mask[part::parts], kind) for part in range(parts)
        ]
        split = torch.stack(pieces).sum()
        (found,) = torch.autograd.grad(split, losses)
        torch.testing.assert_close(split, whole, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_no_loss_tokens_give_zero_with_a_gradient_path() -> None:
    losses = torch.ones(2, 3, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for value in (
        reductions.token_mean(losses, mask, num_loss_tokens=0),
        reductions.sequence_mean(losses, mask, num_rollouts=0),
    ):
        assert value.item() == 0
        value.backward()


def test_sequence_mean_weighs_rollouts_and_not_tokens() -> None:
    losses = torch.tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert reductions.sequence_mean(losses, mask, num_rollouts=2).item() == pytest.approx(2.5)
    assert reductions.token_mean(losses, mask, num_loss_tokens=4).item() == pytest.approx(7 / 4)


def test_kl_estimators_have_the_expectation_and_gradients_that_are_documented() -> None:
    """By enumeration over a vocabulary of 5, against KL and its gradient computed directly."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    probabilities = logprobs.detach().exp()
    true_kl = (logprobs.exp() * (logprobs - reference)).sum()
    reverse_kl = (reference.exp() * (reference - logprobs)).sum()
    (gradient,) = torch.autograd.grad(true_kl, logits, retain_graph=True)
    (reverse_gradient,) = torch.autograd.grad(reverse_kl, logits, retain_graph=True)

    def expected(estimate: Tensor) -> Tensor:
        return (probabilities * estimate).sum()

    for estimator in (kl.k1, kl.k3):
        torch.testing.assert_close(expected(estimator(logprobs, reference)), true_kl)

    def loss_gradient(estimate: Tensor) -> Tensor:
        return torch.autograd.grad(expected(estimate), logits, retain_graph=True)[0]

    assert loss_gradient(kl.k1(logprobs, reference)).abs().max() < 1e-12
    torch.testing.assert_close(loss_gradient(kl.k2(logprobs, reference)), gradient)
    torch.testing.assert_close(loss_gradient(kl.k3(logprobs, reference)), reverse_gradient)
    in_reward = kl.k1(logprobs, reference).detach() * logprobs
    torch.testing.assert_close(loss_gradient(in_reward), gradient)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_padding_reaches_neither_a_kl_estimate_nor_its_gradient(
    estimator: kl.Estimator, rubbish: float
) -> None:
    logprobs = torch.tensor([[-1.0, rubbish]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    estimate = kl.kl_per_token(logprobs, torch.tensor([[-1.5, rubbish]]), mask, estimator=estimator)
    estimate.sum().backward()
    assert estimate[0, 1] == 0
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[0, 1] == 0


@pytest.mark.parametrize("distance", [-1000.0, -25.0, -1.0, 1.0, 25.0, 1000.0])
def test_k3_never_pushes_a_token_further_from_the_reference(distance: float) -> None:
    logprobs = torch.tensor([[distance]], requires_grad=True)
    kl.k3(logprobs, torch.zeros(1, 1)).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad.item() * distance >= 0


def test_truncated_weights() -> None:
    log_ratio = torch.tensor([[math.log(0.5), math.log(1.5), math.log(8.0)]])
    by_token = correction.truncated_token_weights(log_ratio, cap=2.0)
    torch.testing.assert_close(by_token.weights, torch.tensor([[0.5, 1.5, 2.0]]))
    assert by_token.touched.tolist() == [[False, False, True]]
    by_sequence = correction.truncated_sequence_weights(log_ratio, cap=100.0)
    torch.testing.assert_close(by_sequence.weights, torch.full((1, 3), 6.0))
    assert not by_sequence.touched.any()


def test_a_ratio_at_the_cap_is_not_truncated() -> None:
    assert not correction.truncated_token_weights(torch.zeros(1, 3), cap=1.0).touched.any()
    assert not correction.truncated_sequence_weights(torch.zeros(1, 3), cap=1.0).touched.any()


def test_an_infinite_cap_gives_exact_importance_weights() -> None:
    log_ratio = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    found = correction.truncated_token_weights(log_ratio, cap=math.inf)
    torch.testing.assert_close(found.weights, log_ratio.exp())
