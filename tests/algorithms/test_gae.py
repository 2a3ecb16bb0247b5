"""Generalised advantage estimation against the sequential recursion, its limits, and masking."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms.advantages import reinforce_plus_plus, whiten
from rlstack.algorithms.gae import (
    decoupled_gae,
    discounted_sum,
    gae,
    length_adaptive_lambda,
    token_rewards,
)

GAMMAS_AND_LAMBDAS = [(1.0, 1.0), (0.99, 0.95), (1.0, 0.0), (0.5, 0.01), (0.0, 0.9), (1e-30, 1e-30)]


def random_rows(
    seed: int, rows: int = 3, columns: int = 9, masked: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rewards, values, loss_mask, last_values."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, columns, dtype=torch.float64, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) >= masked
    last_values = torch.randn(rows, dtype=torch.float64, generator=generator)
    return rewards, values, mask, last_values


def plain_loop(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: Tensor, lam: Tensor, last_values: Tensor
) -> Tensor:
    """Equation 16 over the loss tokens of each row, from the last one on."""
    advantages = torch.zeros_like(values)
    for row in range(values.shape[0]):
        value, advantage = float(last_values[row]), 0.0
        for t in reversed(mask[row].nonzero().flatten().tolist()):
            discount = float(gamma[row, t])
            error = float(rewards[row, t]) + discount * value - float(values[row, t])
            advantage = error + discount * float(lam[row, t]) * advantage
            value = float(values[row, t])
            advantages[row, t] = advantage
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), GAMMAS_AND_LAMBDAS)
@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65, 129, 700])
def test_equal_to_the_sequential_recursion(gamma: float, lam: float, columns: int) -> None:
    rewards, values, mask, last_values = random_rows(columns, columns=columns)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam, last_values=last_values)
    expected = plain_loop(
        rewards,
        values,
        mask,
        torch.full_like(values, gamma),
        torch.full_like(values, lam),
        last_values,
    )
    torch.testing.assert_close(advantages, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(returns, torch.where(mask, expected + values, 0.0))


@pytest.mark.parametrize(("gamma", "lam"), GAMMAS_AND_LAMBDAS)
def test_long_rows_lose_no_accuracy(gamma: float, lam: float) -> None:
    rewards, values, mask, last_values = random_rows(0, rows=2, columns=8192)
    expected = plain_loop(
        rewards,
        values,
        mask,
        torch.full_like(values, gamma),
        torch.full_like(values, lam),
        last_values,
    )
    advantages, _ = gae(rewards, values, mask, gamma=gamma, lam=lam, last_values=last_values)
    torch.testing.assert_close(advantages, expected, atol=1e-6, rtol=0)
    single, _ = gae(
        rewards.float(),
        values.float(),
        mask,
        gamma=gamma,
        lam=lam,
        last_values=last_values.float(),
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, atol=1e-3, rtol=1e-4)


@given(seed=st.integers(0, 10_000), columns=st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_discounts_per_token_and_lambdas_per_row(seed: int, columns: int) -> None:
    rewards, values, mask, last_values = random_rows(seed, columns=columns)
    gamma = torch.rand(3, columns, dtype=torch.float64)
    lam = torch.tensor([[0.0], [0.7], [1.0]], dtype=torch.float64)
    found, _ = gae(rewards, values, mask, gamma=gamma, lam=lam, last_values=last_values)
    expected = plain_loop(rewards, values, mask, gamma, lam.expand(3, columns), last_values)
    torch.testing.assert_close(found, expected)


def test_hand_computed_table() -> None:
    rewards = torch.tensor([[0.0, 0.0, 9.0, 1.0, 9.0]])
    values = torch.tensor([[9.0, 0.5, 9.0, 0.2, 9.0]])
    mask = torch.tensor([[False, True, False, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    last = 1.0 - 0.2
    first = 0.9 * 0.2 - 0.5 + 0.45 * last
    torch.testing.assert_close(advantages, torch.tensor([[0.0, first, 0.0, last, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.0, first + 0.5, 0.0, 1.0, 0.0]]))


def test_a_row_that_was_cut_continues_with_the_value_of_its_last_state() -> None:
    """Bootstrapping from v is what one more token with value v and no surprise would give."""
    rewards, values, mask, last_values = random_rows(1, columns=200)
    found, _ = gae(rewards, values, mask, gamma=0.9, lam=0.8, last_values=last_values)
    column = last_values.unsqueeze(1)
    longer, _ = gae(
        torch.cat([rewards, column], dim=1),
        torch.cat([values, column], dim=1),
        torch.cat([mask, torch.ones(3, 1, dtype=torch.bool)], dim=1),
        gamma=0.9,
        lam=0.8,
    )
    torch.testing.assert_close(found, longer[:, :-1])
    ended, _ = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    zeros = torch.zeros_like(last_values)
    torch.testing.assert_close(
        ended, gae(rewards, values, mask, gamma=0.9, lam=0.8, last_values=zeros)[0]
    )
    assert not torch.allclose(ended, found)


@given(seed=st.integers(0, 1000), num_inserted=st.integers(1, 140))
@settings(max_examples=30, deadline=None)
def test_masked_columns_and_padding_change_nothing(seed: int, num_inserted: int) -> None:
    """Rubbish between and behind the loss tokens leaves those as they were."""
    rewards, values, _, last_values = random_rows(seed, columns=20)
    mask = torch.ones(3, 20, dtype=torch.bool)
    expected, _ = gae(rewards, values, mask, gamma=0.9, lam=0.95, last_values=last_values)
    order = torch.randperm(20 + num_inserted, generator=torch.Generator().manual_seed(seed))
    where = order[:20].sort().values

    def spread(tensor: Tensor, filler: float) -> Tensor:
        wide = torch.full((3, 20 + num_inserted), filler, dtype=tensor.dtype)
        wide[:, where] = tensor
        return wide

    wide_mask = torch.zeros(3, 20 + num_inserted, dtype=torch.bool)
    wide_mask[:, where] = True
    found, returns = gae(
        spread(rewards, math.nan),
        spread(values, math.inf),
        wide_mask,
        gamma=spread(torch.full((3, 20), 0.9, dtype=torch.float64), math.nan),
        lam=0.95,
        last_values=last_values,
    )
    torch.testing.assert_close(found[:, where], expected)
    assert not found[~wide_mask].any()
    assert not returns[~wide_mask].any()


def test_rows_do_not_touch_each_other() -> None:
    rewards, values, mask, _ = random_rows(2)
    rewards[1], values[1] = math.nan, math.inf
    found, _ = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    alone, _ = gae(rewards[2:], values[2:], mask[2:], gamma=1.0, lam=1.0)
    torch.testing.assert_close(found[2:], alone)
    nothing, returns = gae(rewards, values, torch.zeros_like(mask), gamma=1.0, lam=1.0)
    assert not nothing.any()
    assert not returns.any()


def test_a_lambda_within_a_row_is_refused() -> None:
    rewards, values, mask, _ = random_rows(0)
    with pytest.raises(ValueError, match=r"lam to be a number or \[B, 1\], got \[3, 9\]"):
        gae(rewards, values, mask, gamma=1.0, lam=torch.ones(3, 9))


def test_arguments_stay_as_they_are() -> None:
    arguments = random_rows(3)
    before = [tensor.clone() for tensor in arguments]
    rewards, values, mask, last_values = arguments
    gae(rewards, values, mask, gamma=0.9, lam=0.9, last_values=last_values)
    # A single chunk: its transpose is contiguous as it stands, and must be copied all the same.
    discounted_sum(rewards[:1], values[:1], last_values[:1])
    for tensor, old in zip(arguments, before, strict=True):
        assert torch.equal(tensor, old)


def test_decays_of_any_size_neither_overflow_nor_vanish() -> None:
    for decay in (0.0, 1e-300, 1e-5, 1.0):
        terms = torch.ones(2, 4096, dtype=torch.float64)
        found = discounted_sum(terms, torch.full_like(terms, decay), terms[:, 0])
        steps = torch.arange(4096, 0, -1, dtype=torch.float64) + 1
        expected = steps if decay == 1 else torch.full_like(steps, 1 / (1 - decay))
        torch.testing.assert_close(found[0], expected)


def test_lambda_1_is_the_discounted_return_minus_the_value() -> None:
    rewards, values, mask, _ = random_rows(4)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    for row in range(3):
        columns = mask[row].nonzero().flatten().tolist()
        for position, t in enumerate(columns):
            rest = [float(rewards[row, later]) for later in columns[position:]]
            expected = sum(0.9**k * reward for k, reward in enumerate(rest))
            assert float(returns[row, t]) == pytest.approx(expected)
            assert float(advantages[row, t]) == pytest.approx(expected - float(values[row, t]))


def test_lambda_0_is_the_error_of_one_step() -> None:
    rewards, values, _, last_values = random_rows(5)
    mask = torch.ones(3, 9, dtype=torch.bool)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0, last_values=last_values)
    following = torch.cat([values[:, 1:], last_values.unsqueeze(1)], dim=1)
    torch.testing.assert_close(advantages, rewards + 0.9 * following - values)


def test_without_a_critic_it_is_what_reinforce_plus_plus_whitens() -> None:
    _, penalty, mask, _ = random_rows(6)
    penalty = torch.where(mask, penalty, 0.0)
    rewards = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    per_token = token_rewards(rewards, mask, kl_penalty=penalty)
    advantages, _ = gae(per_token, torch.zeros_like(penalty), mask, gamma=1.0, lam=1.0)
    found = whiten(advantages, mask)
    expected = reinforce_plus_plus(
        rewards, torch.arange(3), mask, kl_penalty=penalty, group_baseline=False
    )
    torch.testing.assert_close(found, expected)


def test_token_rewards() -> None:
    mask = torch.tensor([[False, True, True, False], [True, False, True, False]])
    mask = torch.cat([mask, torch.zeros(1, 4, dtype=torch.bool), mask[:1]])
    rewards = torch.tensor([2.0, -1.0, 5.0, math.nan])
    penalty = torch.full((4, 4), 0.5)
    penalty[~mask] = math.nan
    found = token_rewards(rewards, mask, kl_penalty=penalty)
    expected = [[0, -0.5, 1.5, 0], [-0.5, 0, -1.5, 0], [0, 0, 0, 0], [0, -0.5, -0.5, 0]]
    assert found.tolist() == expected
    without = token_rewards(rewards, mask, kl_penalty=None)
    assert without.tolist() == [[0, 0, 2, 0], [0, 0, -1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_longer_a_row_the_further_it_looks() -> None:
    lengths = torch.tensor([0, 1, 20, 40, 2000])
    mask = torch.arange(2000) < lengths.unsqueeze(1)
    found = length_adaptive_lambda(mask, alpha=0.05)
    assert found.shape == (5, 1)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.0, 0.0, 0.5, 0.99]))


def test_decoupled_lambdas_serve_policy_and_critic() -> None:
    rewards, values, mask, last_values = random_rows(7, columns=100)
    adaptive = length_adaptive_lambda(mask, alpha=0.05)
    advantages, returns = decoupled_gae(
        rewards,
        values,
        mask,
        gamma=0.99,
        policy_lam=adaptive,
        critic_lam=1.0,
        last_values=last_values,
    )
    expected, _ = gae(rewards, values, mask, gamma=0.99, lam=adaptive, last_values=last_values)
    torch.testing.assert_close(advantages, expected)
    _, monte_carlo = gae(rewards, values, mask, gamma=0.99, lam=1.0, last_values=last_values)
    torch.testing.assert_close(returns, monte_carlo)
    assert not torch.allclose(advantages, torch.where(mask, returns - values, 0.0))


def test_with_long_rows_the_adaptive_lambda_is_the_monte_carlo_limit() -> None:
    """An error 100 tokens ahead weighs lambda^100, which nears 1 as rows grow."""
    distances = []
    for length in (100, 1000, 8000):
        mask = torch.ones(1, length, dtype=torch.bool)
        rewards = torch.zeros(1, length, dtype=torch.float64)
        rewards[0, -1] = 1.0
        values = torch.linspace(0, 1, length, dtype=torch.float64).unsqueeze(0)
        lam = length_adaptive_lambda(mask, alpha=20.0)
        adaptive, _ = gae(rewards, values, mask, gamma=1.0, lam=lam)
        limit, _ = gae(rewards, values, mask, gamma=1.0, lam=1.0)
        distances.append(float((adaptive - limit)[0, -100:].abs().max()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-3
