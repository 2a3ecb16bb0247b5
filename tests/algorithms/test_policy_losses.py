"""Policy losses: tables, plain loops, gradients, and what every one of them must withstand."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import policy_losses, reductions, sequence_losses
from rlstack.algorithms.policy_losses import PolicyLoss, ppo_clip

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], PolicyLoss]
LOSSES: dict[str, Loss] = {
    "ppo_clip": lambda *a: ppo_clip(*a, clip_low=0.2, clip_high=0.3, dual_clip=None),
    "dual_clip": lambda *a: ppo_clip(*a, clip_low=0.2, clip_high=0.3, dual_clip=1.5),
    "gspo": lambda *a: sequence_losses.gspo(*a, clip_low=0.1, clip_high=0.2),
    "gspo_token": lambda *a: sequence_losses.gspo_token(*a, clip_low=0.1, clip_high=0.2),
    "cispo": lambda *a: policy_losses.cispo(*a, cap=1.3),
    "sapo": lambda *a: policy_losses.sapo(*a, tau_positive=1.0, tau_negative=1.05),
    "gmpo": lambda *a: sequence_losses.gmpo(*a, log_clip=0.4),
    "policy_gradient": policy_losses.policy_gradient,
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def random_case(seed: int, *, equal_advantages: bool = False) -> tuple[Tensor, ...]:
    """logprobs with gradient, old logprobs, advantages, mask; float64, the first row empty."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 5, generator=generator) > 0.3
    mask[0] = False
    old = -torch.rand(6, 5, generator=generator, dtype=torch.float64)
    logprobs = old + 0.5 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    advantages = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    if equal_advantages:
        advantages = advantages[:, :1].expand(6, 5)
    return logprobs.requires_grad_(), old, advantages, mask


def gradient_of(loss: Tensor, logprobs: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logprobs, retain_graph=True)[0]


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def token_loop(name: str, logprob: float, old: float, advantage: float) -> float:
    """Loss of one token, from the paper's formula."""
    ratio = math.exp(logprob - old)
    match name:
        case "ppo_clip" | "dual_clip":
            loss = -min(ratio * advantage, clip(ratio, 0.8, 1.3) * advantage)
            return min(loss, -1.5 * advantage) if name == "dual_clip" and advantage < 0 else loss
        case "cispo":
            return -min(ratio, 1.3) * advantage * logprob
        case "sapo":
            tau = 1.0 if advantage > 0 else 1.05
            return -4 / tau / (1 + math.exp(-tau * (ratio - 1))) * advantage
        case _:
            return -advantage * logprob


@pytest.mark.parametrize("name", ["ppo_clip", "dual_clip", "cispo", "sapo", "policy_gradient"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_token_losses_equal_a_plain_loop(name: str, seed: int) -> None:
    logprobs, old, advantages, mask = random_case(seed)
    found = LOSSES[name](logprobs, old, advantages, mask)
    expected = [
        [token_loop(name, *values) if used else 0.0 for *values, used in zip(*rows, strict=True)]
        for rows in zip(
            logprobs.tolist(), old.tolist(), advantages.tolist(), mask.tolist(), strict=True
        )
    ]
    torch.testing.assert_close(found.loss, torch.tensor(expected, dtype=torch.float64))


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


@every_loss
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-0.05, 0.0, 0.05])
def test_inside_every_bound_a_token_moves_the_way_of_its_advantage(
    name: str, advantage: float, log_ratio: float
) -> None:
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = LOSSES[name](logprobs, torch.zeros(1, 1), torch.full((1, 1), advantage), mask)
    gradient = gradient_of(result.loss.sum(), logprobs)
    assert gradient.item() * advantage < 0
    assert gradient.item() == pytest.approx(-advantage * math.exp(log_ratio), rel=0.06)
    assert not result.clipped_low.any()
    assert not result.clipped_high.any()


@pytest.mark.parametrize(
    ("name", "ratio", "advantage", "gradient", "clipped"),
    [
        ("gspo", 1.5, 1.0, 0.0, "high"),
        ("gspo", 1.5, -1.0, 1.5, ""),
        ("gspo", 0.5, 1.0, -0.5, ""),
        ("gspo", 0.5, -1.0, 0.0, "low"),
        ("gspo_token", 1.5, 1.0, 0.0, "high"),
        ("gspo_token", 1.5, -1.0, 1.5, ""),
        ("gspo_token", 0.5, 1.0, -0.5, ""),
        ("gspo_token", 0.5, -1.0, 0.0, "low"),
        ("cispo", 1.5, 1.0, -1.3, "high"),  # limited, not cut
        ("cispo", 1.5, -1.0, 1.3, "high"),
        ("cispo", 0.5, 1.0, -0.5, ""),
        ("cispo", 0.5, -1.0, 0.5, ""),
        ("gmpo", 1.6, 1.0, 0.0, "high"),
        ("gmpo", 1.6, -1.0, 1.6, ""),
        ("gmpo", 0.5, 1.0, -0.5, ""),
        ("gmpo", 0.5, -1.0, 0.0, "low"),
        ("policy_gradient", 1.5, 1.0, -1.0, ""),
        ("policy_gradient", 0.5, -1.0, 1.0, ""),
    ],
)
def test_gradient_of_every_case_of_bound_and_advantage(
    name: str, ratio: float, advantage: float, gradient: float, clipped: str
) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    old = torch.zeros_like(logprobs)
    result = LOSSES[name](logprobs, old, torch.full_like(old, advantage), mask)
    assert gradient_of(result.loss.sum(), logprobs).item() == pytest.approx(gradient)
    assert bool(result.clipped_low) == (clipped == "low")
    assert bool(result.clipped_high) == (clipped == "high")
    bound = math.exp(0.4 * advantage) if name == "gmpo" and clipped else ratio
    assert result.ratio.item() == pytest.approx(bound)


def test_sapo_flattens_on_both_sides_and_faster_for_a_larger_tau() -> None:
    def slope(ratio: float, advantage: float) -> float:
        logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
        old, mask = torch.zeros_like(logprobs), torch.ones(1, 1, dtype=torch.bool)
        loss = policy_losses.sapo(
            logprobs, old, torch.full_like(old, advantage), mask, tau_positive=1.0, tau_negative=3.0
        ).loss
        return gradient_of(loss.sum(), logprobs).item() / ratio  # with respect to the ratio

    assert slope(1.0, 1.0) == pytest.approx(-1.0)
    assert slope(1.0, -1.0) == pytest.approx(1.0)
    assert abs(slope(3.0, 1.0)) < abs(slope(2.0, 1.0)) < 1
    assert abs(slope(0.2, 1.0)) < abs(slope(0.5, 1.0)) < 1
    assert abs(slope(2.0, -1.0)) < abs(slope(2.0, 1.0))


@every_loss
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_what_stands_on_padding_reaches_nothing(name: str, rubbish: float) -> None:
    logprobs, old, advantages, mask = random_case(0)
    expected = LOSSES[name](logprobs, old, advantages, mask)
    expected_gradient = gradient_of(expected.loss.sum(), logprobs)
    dirty = torch.where(mask, logprobs.detach(), rubbish).requires_grad_()
    found = LOSSES[name](
        dirty,
        torch.where(mask, old, rubbish),
        torch.where(mask, advantages, rubbish),
        mask,
    )
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.ratio, expected.ratio)
    assert (found.ratio[~mask] == 1).all()
    assert not (found.clipped_low | found.clipped_high)[~mask].any()
    assert torch.equal(gradient_of(found.loss.sum(), dirty), expected_gradient)


@every_loss
@pytest.mark.parametrize("difference", [1000.0, -1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_ratios_stay_finite(name: str, difference: float, advantage: float) -> None:
    logprobs = torch.tensor([[difference, 0.0]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    result = LOSSES[name](logprobs, torch.zeros(1, 2), torch.full((1, 2), advantage), mask)
    gradient = gradient_of(result.loss.sum(), logprobs)
    assert result.loss.isfinite().all()
    assert result.loss.dtype == torch.float32
    assert gradient.isfinite().all()


@every_loss
@given(seed=st.integers(0, 1000), parts=st.sampled_from([1, 2, 4]), padding=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_splitting_padding_and_the_order_of_rows_change_nothing(
    name: str, seed: int, parts: int, padding: int
) -> None:
    logprobs, old, advantages, mask = random_case(seed)
    num_rollouts = int(mask.any(dim=1).sum())

    def total(*arguments: Tensor) -> Tensor:
        loss = LOSSES[name](*arguments).loss
        return reductions.sequence_mean(loss, arguments[3], num_rollouts=num_rollouts)

    whole = total(logprobs, old, advantages, mask)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    padded = [
        torch.nn.functional.pad(values, (0, padding))[order]
        for values in (logprobs, old, advantages, mask)
    ]
    split = torch.stack([total(*(v[part::parts] for v in padded)) for part in range(parts)]).sum()
    torch.testing.assert_close(split, whole, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(
        gradient_of(split, logprobs), gradient_of(whole, logprobs), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"gspo_token", "cispo"}))
def test_the_gradient_passes_a_check_by_finite_differences(name: str) -> None:
    """The other two hold their ratio constant: the hand-made cases check them."""
    logprobs, old, advantages, mask = random_case(3)
    assert torch.autograd.gradcheck(lambda p: LOSSES[name](p, old, advantages, mask).loss, logprobs)


@every_loss
def test_no_loss_tokens_give_zero_with_a_gradient_path(name: str) -> None:
    logprobs, old, advantages, _ = random_case(0)
    result = LOSSES[name](logprobs, old, advantages, torch.zeros(6, 5, dtype=torch.bool))
    assert not result.loss.any()
    assert not gradient_of(result.loss.sum(), logprobs).any()


def test_cispo_below_its_cap_is_the_importance_weighted_policy_gradient() -> None:
    logprobs, old, advantages, mask = random_case(0)
    plain = policy_losses.policy_gradient(logprobs, old, advantages, mask)
    found = policy_losses.cispo(logprobs, old, advantages, mask, cap=math.inf)
    ratio = torch.where(mask, (logprobs - old).detach().exp(), 0.0)
    torch.testing.assert_close(
        gradient_of(found.loss.sum(), logprobs), gradient_of((ratio * plain.loss).sum(), logprobs)
    )
    here = logprobs.detach()  # the policy that sampled: REINFORCE
    on_policy = policy_losses.cispo(logprobs, here, advantages, mask, cap=1.0)
    torch.testing.assert_close(
        gradient_of(on_policy.loss.sum(), logprobs), gradient_of(plain.loss.sum(), logprobs)
    )


def test_ppo_without_bounds_has_the_same_gradient_as_cispo_without_a_cap() -> None:
    logprobs, old, advantages, mask = random_case(1)
    ppo = ppo_clip(logprobs, old, advantages, mask, clip_low=1.0, clip_high=1e9, dual_clip=None)
    cispo = policy_losses.cispo(logprobs, old, advantages, mask, cap=math.inf)
    torch.testing.assert_close(
        gradient_of(ppo.loss.sum(), logprobs), gradient_of(cispo.loss.sum(), logprobs)
    )
