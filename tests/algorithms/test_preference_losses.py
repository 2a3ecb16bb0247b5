"""Preference losses: by hand, against plain formulas, equivalences, gradients and their signs."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import preference_losses as losses

seeds = st.integers(0, 1000)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gradient_of(loss: Callable[[Tensor], Tensor], value: float) -> float:
    """Slope of a loss at one number."""
    at = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(at).sum(), at)
    return gradient.item()


def test_sequence_logprobs_by_hand_and_whatever_stands_on_padding() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, math.nan], [-math.inf, math.inf, 9.0]])
    logprobs.requires_grad_()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    for average, expected in ((False, [-3.0, 0.0]), (True, [-1.5, 0.0])):
        found = losses.sequence_logprobs(logprobs, mask, average=average)
        assert found.tolist() == expected
        (gradient,) = torch.autograd.grad(found.sum(), logprobs)
        scale = 0.5 if average else 1.0
        assert gradient.tolist() == [[scale, scale, 0], [0, 0, 0]]


@given(seed=seeds, smoothing=st.floats(0, 0.5), margin=st.floats(0, 3), eta=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_bradley_terry_is_its_formula(
    seed: int, smoothing: float, margin: float, eta: float
) -> None:
    chosen, rejected = normal(seed, 2, 4)
    found = losses.bradley_terry(
        chosen,
        rejected,
        margins=torch.full((4,), margin, dtype=torch.float64),
        centering=eta,
        label_smoothing=smoothing,
    )
    for c, r, loss in zip(chosen.tolist(), rejected.tolist(), found.tolist(), strict=True):
        d = c - r - margin
        right, wrong = -math.log(sigmoid(d)), -math.log(sigmoid(-d))
        assert loss == pytest.approx(
            (1 - smoothing) * right + smoothing * wrong + eta * (c + r) ** 2
        )


def test_bradley_terry_without_a_margin_has_margin_zero() -> None:
    chosen, rejected = normal(0, 2, 4)
    found = [
        losses.bradley_terry(chosen, rejected, margins=margins, centering=0.0, label_smoothing=0.0)
        for margins in (None, torch.zeros(4))
    ]
    assert torch.equal(*found)


def test_dpo_gradient_by_hand() -> None:
    """d loss / d chosen = -beta sigmoid(-h), the opposite for rejected (equation 7's gradient)."""
    chosen, rejected = torch.tensor([-3.0, -1.0]), torch.tensor([-4.0, -1.0])
    chosen.requires_grad_(), rejected.requires_grad_()
    ref_chosen, ref_rejected = torch.tensor([-3.5, -1.0]), torch.tensor([-3.0, -1.0])
    result = losses.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.5, label_smoothing=0.0)
    h = 0.5 * (0.5 + 1.0)
    expected = torch.tensor([-math.log(sigmoid(h)), math.log(2)])
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.chosen_rewards, torch.tensor([0.25, 0.0]))
    torch.testing.assert_close(result.rejected_rewards, torch.tensor([-0.5, 0.0]))
    assert not result.chosen_rewards.requires_grad
    result.loss.sum().backward()
    slope = torch.tensor([-0.5 * sigmoid(-h), -0.25])
    torch.testing.assert_close(chosen.grad, slope)
    torch.testing.assert_close(rejected.grad, -slope)


@given(seed=seeds, beta=st.floats(0.01, 5), smoothing=st.floats(0, 0.49))
@settings(max_examples=40, deadline=None)
def test_smoothed_and_robust_dpo_are_their_formulas(
    seed: int, beta: float, smoothing: float
) -> None:
    inputs = normal(seed, 4, 5)
    smoothed = losses.dpo(*inputs, beta=beta, label_smoothing=smoothing).loss
    robust = losses.robust_dpo(*inputs, beta=beta, label_smoothing=smoothing).loss
    for i, (c, r, ref_c, ref_r) in enumerate(inputs.T.tolist()):
        h = beta * ((c - ref_c) - (r - ref_r))
        right, wrong = math.log1p(math.exp(-h)), math.log1p(math.exp(h))
        e = smoothing
        assert smoothed[i].item() == pytest.approx((1 - e) * right + e * wrong)
        assert robust[i].item() == pytest.approx(((1 - e) * right - e * wrong) / (1 - 2 * e))


def test_without_smoothing_robust_dpo_is_dpo() -> None:
    inputs = normal(1, 4, 6)
    one = losses.dpo(*inputs, beta=0.3, label_smoothing=0.0)
    other = losses.robust_dpo(*inputs, beta=0.3, label_smoothing=0.0)
    torch.testing.assert_close(one.loss, other.loss, atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"label_smoothing=0.5 must be within \[0, 0.5\)"):
        losses.robust_dpo(*inputs, beta=0.3, label_smoothing=0.5)


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    chosen, rejected, ref_chosen, ref_rejected = normal(2, 4, 6)
    robust = partial(losses.robust_dpo, beta=0.7, label_smoothing=0.2)
    right = robust(chosen, rejected, ref_chosen, ref_rejected).loss
    flipped = robust(rejected, chosen, ref_rejected, ref_chosen).loss
    clean = losses.dpo(
        chosen, rejected, ref_chosen, ref_rejected, beta=0.7, label_smoothing=0.0
    ).loss
    torch.testing.assert_close(0.8 * right + 0.2 * flipped, clean)


@pytest.mark.parametrize("length_normalised", [True, False])
def test_ipo_has_its_optimum_at_the_target_margin(length_normalised: bool) -> None:
    """Lengths 4 and 2, beta 0.1: the margin 1 / (2 beta) is 5, in nats per token or in all."""
    zero = torch.zeros(1, dtype=torch.float64)

    def loss(chosen: Tensor) -> Tensor:
        return losses.ipo(
            chosen,
            zero - 2.0,
            zero,
            zero,
            torch.tensor([4]),
            torch.tensor([2]),
            beta=0.1,
            length_normalised=length_normalised,
        ).loss

    best = 4 * (5.0 - 1.0) if length_normalised else 5.0 - 2.0
    assert loss(zero + best).item() == pytest.approx(0)
    assert gradient_of(loss, best) == pytest.approx(0)
    assert gradient_of(loss, best - 1) < 0 < gradient_of(loss, best + 1)
    divisor = 4 if length_normalised else 1
    assert loss(zero + best + 1).item() == pytest.approx(1 / divisor**2)


def test_ipo_of_single_tokens_is_its_sum_form() -> None:
    inputs, ones = normal(3, 4, 5), torch.ones(5, dtype=torch.int64)
    normalised = losses.ipo(*inputs, ones, ones, beta=0.2)
    plain = losses.ipo(*inputs, 7 * ones, 9 * ones, beta=0.2, length_normalised=False)
    torch.testing.assert_close(normalised.loss, plain.loss)


def test_kto_by_hand() -> None:
    """Reward 0.5 * 2 = 1 over a reference point of 0.5 * 1, in either judgement."""
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    loss, rewards = losses.kto(
        logprobs,
        torch.tensor([-3.0, -3.0]),
        torch.tensor([True, False]),
        reference_point=torch.tensor(1.0),
        beta=0.5,
        desirable_weight=2.0,
        undesirable_weight=3.0,
    )
    expected = [2 * (1 - sigmoid(0.5)), 3 * (1 - sigmoid(-0.5))]
    torch.testing.assert_close(loss, torch.tensor(expected))
    assert rewards.tolist() == [1.0, 1.0]
    loss.sum().backward()
    slope = sigmoid(0.5) * sigmoid(-0.5) * 0.5
    torch.testing.assert_close(logprobs.grad, torch.tensor([-2 * slope, 3 * slope]))


def test_kto_reference_point_is_never_negative_and_passes_no_gradient() -> None:
    mismatched = torch.tensor([-1.0, -2.0], requires_grad=True)
    above = losses.kto_reference_point(mismatched, torch.tensor([-3.0, -2.0]))
    assert above.item() == 1.0
    assert not above.requires_grad
    assert losses.kto_reference_point(mismatched, torch.zeros(2)).item() == 0.0
    point = torch.tensor(0.3, requires_grad=True)
    loss, _ = losses.kto(
        mismatched,
        torch.zeros(2),
        torch.tensor([True, False]),
        reference_point=point,
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    )
    assert torch.autograd.grad(loss.sum(), point, allow_unused=True) == (None,)


def test_orpo_by_hand() -> None:
    """Probabilities 3/4 and 1/2: odds 3 and 1, odds ratio 3, sigmoid(log 3) = 3/4."""
    result = losses.orpo(torch.tensor([math.log(0.75)]), torch.tensor([math.log(0.5)]), weight=0.1)
    assert result.loss.item() == pytest.approx(-math.log(0.75) - 0.1 * math.log(0.75))
    assert result.chosen_rewards.item() == pytest.approx(0.1 * math.log(0.75))


@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1e-3, -1.0, -50.0, -1000.0])
@pytest.mark.parametrize("rejected", [0.0, -1e-9, -1e-3, -1.0, -50.0, -1000.0])
def test_orpo_is_finite_at_every_probability(chosen: float, rejected: float) -> None:
    pair = torch.tensor([[chosen], [rejected]], requires_grad=True)
    result = losses.orpo(pair[0], pair[1], weight=0.1)
    result.loss.sum().backward()
    assert result.loss.isfinite().all()
    assert pair.grad is not None
    assert pair.grad.isfinite().all()
    assert pair.grad[0] < 0
    assert pair.grad[1] >= 0


def test_simpo_by_hand() -> None:
    result = losses.simpo(torch.tensor([-0.5]), torch.tensor([-1.0]), beta=2.0, gamma=1.0)
    assert result.loss.item() == pytest.approx(math.log(2))  # the margin is met: logit 0
    assert result.chosen_rewards.item() == -1.0


def test_simpo_without_margin_on_single_tokens_is_dpo_without_a_reference() -> None:
    logprobs, mask = -normal(4, 2, 6, 1).abs(), torch.ones(6, 1, dtype=torch.bool)
    means = [losses.sequence_logprobs(row, mask, average=True) for row in logprobs]
    sums = [losses.sequence_logprobs(row, mask, average=False) for row in logprobs]
    zeros = torch.zeros(6, dtype=torch.float64)
    simpo = losses.simpo(*means, beta=1.7, gamma=0.0)
    dpo = losses.dpo(*sums, zeros, zeros, beta=1.7, label_smoothing=0.0)
    torch.testing.assert_close(simpo.loss, dpo.loss)
    torch.testing.assert_close(simpo.rejected_rewards, dpo.rejected_rewards)


LENGTHS = torch.tensor([2, 3, 1])
ZERO = torch.zeros(3, dtype=torch.float64)
PAIR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bradley_terry": partial(
        losses.bradley_terry, margins=None, centering=0.0, label_smoothing=0.0
    ),
    "dpo": lambda c, r: losses.dpo(c, r, ZERO, ZERO, beta=0.3, label_smoothing=0.1).loss,
    "robust_dpo": lambda c, r: (
        losses.robust_dpo(c, r, ZERO, ZERO, beta=0.3, label_smoothing=0.1).loss
    ),
    "ipo": lambda c, r: losses.ipo(c, r, ZERO, ZERO, LENGTHS, LENGTHS, beta=0.1).loss,
    "orpo": lambda c, r: losses.orpo(c, r, weight=0.2).loss,
    "simpo": lambda c, r: losses.simpo(c, r, beta=2.0, gamma=0.6).loss,
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradients_are_right_and_raise_chosen_over_rejected(name: str) -> None:
    chosen, rejected = (-normal(seed, 3).abs() - 0.1 for seed in (5, 6))
    chosen.requires_grad_(), rejected.requires_grad_()
    assert torch.autograd.gradcheck(PAIR_LOSSES[name], (chosen, rejected))
    total = PAIR_LOSSES[name](chosen, rejected).sum()
    raised, lowered = torch.autograd.grad(total, (chosen, rejected))
    assert (raised < 0).all()
    assert (lowered > 0).all()


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("distance", [-1e4, -300.0, 300.0, 1e4])
def test_extreme_pairs_stay_finite(name: str, distance: float) -> None:
    chosen = torch.full((3,), min(distance, 0.0), requires_grad=True)
    rejected = torch.full((3,), min(-distance, 0.0), requires_grad=True)
    loss = PAIR_LOSSES[name](chosen, rejected)
    assert loss.isfinite().all()
    for gradient in torch.autograd.grad(loss.sum(), (chosen, rejected)):
        assert gradient.isfinite().all()


def test_kto_gradcheck() -> None:
    logprobs = normal(7, 4).requires_grad_()
    desirable, reference = torch.tensor([True, False, True, False]), normal(8, 4)

    def loss(values: Tensor) -> Tensor:
        return losses.kto(
            values,
            reference,
            desirable,
            reference_point=torch.tensor(0.4),
            beta=0.5,
            desirable_weight=1.3,
            undesirable_weight=0.7,
        )[0]

    assert torch.autograd.gradcheck(loss, logprobs)


@given(seed=seeds, parts=st.sampled_from([1, 2, 4]), padding=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_split_and_padded_batch_gives_the_same_loss_and_gradient(
    seed: int, parts: int, padding: int
) -> None:
    logprobs = normal(seed, 16, 5).requires_grad_()
    mask = normal(seed + 1, 16, 5) > -0.5
    reference = normal(seed + 2, 16)

    def total(values: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
        sums = losses.sequence_logprobs(values, mask, average=False)
        result = losses.dpo(
            sums[0::2],
            sums[1::2],
            reference[0::2],
            reference[1::2],
            beta=0.3,
            label_smoothing=0.1,
        )
        return losses.row_mean(result.loss, num_rows=8)

    whole = total(logprobs, mask, reference)
    padded = torch.nn.functional.pad(logprobs, (0, padding), value=math.nan)
    padded_mask = torch.nn.functional.pad(mask, (0, padding))
    size = 16 // parts
    pieces = [
        total(*(rows[start : start + size] for rows in (padded, padded_mask, reference)))
        for start in range(0, 16, size)
    ]
    split = torch.stack(pieces).sum()
    torch.testing.assert_close(split, whole)
    for found, expected in zip(
        torch.autograd.grad(split, logprobs), torch.autograd.grad(whole, logprobs), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_no_rows_give_zero_with_a_gradient_path() -> None:
    empty = torch.zeros(0, requires_grad=True)
    value = losses.row_mean(losses.simpo(empty, empty, beta=2.0, gamma=0.5).loss, num_rows=0)
    assert value.item() == 0
    value.backward()
