"""Losses of whole sequences: plain loops of the papers' objectives, and what they reduce to."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import correction, reductions
from rlstack.algorithms.policy_losses import PolicyLoss, ppo_clip
from rlstack.algorithms.sequence_losses import gmpo, gspo, gspo_token
from tests.algorithms.test_policy_losses import LOSSES, clip, gradient_of, random_case

WIDE = {"clip_low": 1.0, "clip_high": 1e9}


def sequence_mean(result: PolicyLoss, mask: Tensor) -> Tensor:
    return reductions.sequence_mean(result.loss, mask, num_rollouts=int(mask.any(dim=1).sum()))


def objective(name: str, logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> float:
    """The paper's: the mean over sequences of one term each."""
    terms = []
    for row in range(len(mask)):
        used = mask[row].tolist()
        if not any(used):
            continue
        logs = [float(x) for x in (logprobs - old).detach()[row][mask[row]]]
        advantage = float(advantages[row, 0])
        if name == "gmpo":
            sign = math.copysign(1.0, advantage)
            logs = [sign * min(sign * x, sign * clip(x, -0.4, 0.4)) for x in logs]
            terms.append(-(math.prod(math.exp(x) for x in logs) ** (1 / len(logs))) * advantage)
            continue
        ratio = math.prod(math.exp(x) for x in logs) ** (1 / len(logs))
        terms.append(-min(ratio * advantage, clip(ratio, 0.9, 1.2) * advantage))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "gmpo"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_sequence_mean_is_the_papers_objective(name: str, seed: int) -> None:
    logprobs, old, advantages, mask = random_case(seed, equal_advantages=True)
    found = sequence_mean(LOSSES[name](logprobs, old, advantages, mask), mask)
    expected = objective(name, logprobs, old, advantages, mask)
    assert found.item() == pytest.approx(expected, abs=1e-10)


@given(seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_gspo_of_tokens_equals_gspo_of_sequences_for_equal_advantages(seed: int) -> None:
    logprobs, old, advantages, mask = random_case(seed, equal_advantages=True)
    by_sequence = LOSSES["gspo"](logprobs, old, advantages, mask)
    by_token = LOSSES["gspo_token"](logprobs, old, advantages, mask)
    torch.testing.assert_close(by_token.loss, by_sequence.loss)
    assert torch.equal(by_token.clipped_low, by_sequence.clipped_low)
    assert torch.equal(by_token.clipped_high, by_sequence.clipped_high)
    torch.testing.assert_close(
        gradient_of(sequence_mean(by_token, mask), logprobs),
        gradient_of(sequence_mean(by_sequence, mask), logprobs),
    )


def test_gspo_of_tokens_gives_every_token_its_own_advantage() -> None:
    logprobs = torch.tensor([[0.1, 0.3]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    old = torch.zeros_like(advantages)
    ratio = math.exp(0.2)
    by_token = gspo_token(logprobs, old, advantages, mask, **WIDE)
    assert by_token.loss.tolist() == [pytest.approx([-ratio, 2 * ratio])]
    found = gradient_of(by_token.loss.sum(), logprobs)
    assert found.tolist() == [pytest.approx([-ratio, 2 * ratio])]
    by_sequence = gspo(logprobs, old, advantages, mask, **WIDE)  # the row's mean, -0.5
    assert by_sequence.loss.tolist() == [pytest.approx([0.5 * ratio] * 2)]


def test_gspo_clips_whole_rows_by_their_mean() -> None:
    """One token far out is within the bounds of its row; both rows have the same such token."""
    logprobs = torch.tensor([[0.6, -0.5], [0.6, 0.6]], dtype=torch.float64, requires_grad=True)
    ones, mask = torch.ones_like(logprobs), torch.ones(2, 2, dtype=torch.bool)
    result = LOSSES["gspo"](logprobs, torch.zeros_like(logprobs), ones, mask)
    assert result.clipped_high.tolist() == [[False, False], [True, True]]
    gradient = gradient_of(result.loss.sum(), logprobs)
    assert gradient[0].tolist() == pytest.approx([-math.exp(0.05)] * 2)
    assert gradient[1].tolist() == [0, 0]


def test_a_bounded_token_of_gmpo_counts_in_the_mean_and_gets_no_gradient() -> None:
    logprobs = torch.tensor([[1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    ones, mask = torch.ones_like(logprobs), torch.ones(1, 2, dtype=torch.bool)
    result = gmpo(logprobs, torch.zeros_like(logprobs), ones, mask, log_clip=0.4)
    ratio = math.exp((0.4 + 0.2) / 2)
    assert result.loss.tolist() == [pytest.approx([-ratio] * 2)]
    assert result.clipped_high.tolist() == [[True, False]]
    gradient = gradient_of(sequence_mean(result, mask), logprobs)
    assert gradient.tolist() == [pytest.approx([0.0, -ratio / 2])]


def one_token_rows(seed: int) -> tuple[Tensor, ...]:
    logprobs, old, advantages, mask = random_case(seed)
    first = torch.zeros_like(mask)
    first[:, 2] = True
    return logprobs, old, advantages, mask & first


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", [gspo, gspo_token])
def test_gspo_of_one_token_responses_is_ppo(form: Callable[..., PolicyLoss], seed: int) -> None:
    case = one_token_rows(seed)
    found = form(*case, clip_low=0.2, clip_high=0.3)
    expected = LOSSES["ppo_clip"](*case)
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found.clipped_low, expected.clipped_low)
    torch.testing.assert_close(
        gradient_of(found.loss.sum(), case[0]), gradient_of(expected.loss.sum(), case[0])
    )


@pytest.mark.parametrize("seed", range(3))
def test_gmpo_of_one_token_without_a_clip_is_the_ratio_policy_gradient(seed: int) -> None:
    logprobs, old, advantages, mask = one_token_rows(seed)
    found = gmpo(logprobs, old, advantages, mask, log_clip=1e9)
    expected = torch.where(mask, -(logprobs - old).exp() * advantages, 0.0)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(
        gradient_of(found.loss.sum(), logprobs), gradient_of(expected.sum(), logprobs)
    )


def decoupled_ppo(
    logprobs: Tensor, proximal: Tensor, behaviour: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """Equation 5 of arXiv 2505.24298, token by token."""
    total = logprobs.new_zeros(())
    for row, column in mask.nonzero().tolist():
        weight = torch.exp(proximal[row, column] - behaviour[row, column])
        ratio = torch.exp(logprobs[row, column] - proximal[row, column])
        advantage = advantages[row, column]
        clipped = ratio.clamp(0.8, 1.3)
        total = total - weight * torch.minimum(ratio * advantage, clipped * advantage)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_decoupled_ppo_is_ppo_times_importance_weights(seed: int) -> None:
    logprobs, proximal, advantages, mask = random_case(seed)
    behaviour = random_case(seed + 100)[1]
    bounds = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": None}
    surrogate = ppo_clip(logprobs, proximal, advantages, mask, **bounds)
    mismatch = correction.log_mismatch(proximal, behaviour, mask)
    ratios = correction.importance_ratios(mismatch, mask, level="token")
    found = (surrogate.loss * correction.truncated(ratios, cap=math.inf).weights).sum()
    expected = decoupled_ppo(logprobs, proximal, behaviour, advantages, mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient_of(found, logprobs), gradient_of(expected, logprobs))
    same = decoupled_ppo(logprobs, proximal, proximal, advantages, mask)
    torch.testing.assert_close(same, surrogate.loss.sum())
