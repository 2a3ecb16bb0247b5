"""Advantages against hand-computed tables, a plain loop, and invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms.advantages import (
    dr_grpo,
    gpg,
    grpo,
    maxrl,
    opo,
    per_token,
    reinforce_plus_plus,
    remax,
    rloo,
    whiten,
)

NAN = float("nan")


def opo_of_equal_lengths(rewards: Tensor, group_ids: Tensor) -> Tensor:
    return opo(rewards, group_ids, torch.full_like(group_ids, 7))


def opo_of_growing_lengths(rewards: Tensor, group_ids: Tensor) -> Tensor:
    return opo(rewards, group_ids, torch.arange(len(rewards)))


GROUP_METHODS = [grpo, dr_grpo, rloo, opo_of_equal_lengths, opo_of_growing_lengths, gpg, maxrl]
rewards_and_groups = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 1.0, -2.0, NAN]), st.integers(0, 3)),
    min_size=1,
    max_size=16,
)


def test_hand_computed_table() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 3.0], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    std = math.sqrt(4 * 0.25 / 3)
    expected = [0.5 / (std + 1e-6), -0.5 / (std + 1e-6)] * 2
    expected = [expected[0], expected[1], expected[1], expected[0], 0, 0, 0]
    torch.testing.assert_close(grpo(rewards, groups), torch.tensor(expected, dtype=torch.float64))
    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(dr_grpo(rewards, groups), centred)
    torch.testing.assert_close(rloo(rewards, groups)[:4], centred[:4] * 4 / 3)


def test_an_unjudged_rollout_counts_for_nothing() -> None:
    rewards, groups = torch.tensor([1.0, NAN, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    without = torch.tensor([1.0, 0.0, 0.0])
    for estimator in (grpo, dr_grpo, rloo, opo_of_equal_lengths, gpg, maxrl):
        found = estimator(rewards, groups)
        assert found[1] == 0
        torch.testing.assert_close(found[[0, 2, 3]], estimator(without, groups[:3]))


@pytest.mark.parametrize("estimator", GROUP_METHODS)
def test_a_group_of_one_or_of_equals_gives_exactly_zero(estimator: object) -> None:
    assert callable(estimator)
    rewards = torch.tensor([0.7, 0.1, 0.1, 0.1])
    assert torch.equal(estimator(rewards, torch.tensor([0, 1, 1, 1])), torch.zeros(4))


@given(reward=st.floats(-1e3, 1e3, width=32), size=st.integers(2, 13))
@settings(max_examples=100, deadline=None)
def test_equal_rewards_leave_no_rounding_error(reward: float, size: int) -> None:
    rewards, groups = torch.full((size,), reward), torch.zeros(size, dtype=torch.int64)
    mask = torch.ones(size, 3, dtype=torch.bool)
    assert not remax(rewards, rewards).any()
    for estimator in GROUP_METHODS:
        assert not estimator(rewards, groups).any()
    assert not reinforce_plus_plus(
        rewards, groups, mask, kl_penalty=None, group_baseline=False
    ).any()


def gpg_factor(rewards: list[float], groups: list[int]) -> float:
    total = useful = 0
    for group in set(groups):
        members = [
            r for r, g in zip(rewards, groups, strict=True) if g == group and not math.isnan(r)
        ]
        total += len(members)
        useful += len(members) if len(set(members)) > 1 else 0
    return total / useful if useful else 0.0


def plain_loop(rewards: list[float], groups: list[int], kind: str) -> list[float]:
    result = []
    for reward, group in zip(rewards, groups, strict=True):
        members = [
            r for r, g in zip(rewards, groups, strict=True) if g == group and not math.isnan(r)
        ]
        if math.isnan(reward) or len(members) < 2:
            result.append(0.0)
            continue
        mean = sum(members) / len(members)
        std = math.sqrt(sum((r - mean) ** 2 for r in members) / (len(members) - 1))
        match kind:
            case "grpo":
                result.append((reward - mean) / (std + 1e-6))
            case "dr_grpo":
                result.append(reward - mean)
            case "maxrl":
                result.append((reward - mean) / mean if mean > 0 else 0.0)
            case "gpg":
                result.append((reward - mean) * gpg_factor(rewards, groups))
            case _:
                others = (sum(members) - reward) / (len(members) - 1)
                result.append(reward - others)
    return result


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [("grpo", grpo), ("dr_grpo", dr_grpo), ("rloo", rloo), ("gpg", gpg), ("maxrl", maxrl)],
)
@given(rows=rewards_and_groups)
@settings(max_examples=60, deadline=None)
def test_equal_to_a_plain_loop(kind: str, estimator: object, rows: list[tuple[float, int]]) -> None:
    assert callable(estimator)
    rewards, groups = [row[0] for row in rows], [row[1] for row in rows]
    found = estimator(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups))
    expected = torch.tensor(plain_loop(rewards, groups, kind), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@given(rows=rewards_and_groups, seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_does_not_matter(rows: list[tuple[float, int]], seed: int) -> None:
    rewards = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    groups = torch.tensor([row[1] for row in rows])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for estimator in (grpo, dr_grpo, rloo, gpg, maxrl):
        found = estimator(rewards[order], groups[order])
        torch.testing.assert_close(found, estimator(rewards, groups)[order])
    lengths = torch.arange(len(rows))
    found = opo(rewards[order], groups[order], lengths[order])
    torch.testing.assert_close(found, opo(rewards, groups, lengths)[order])


@given(rows=rewards_and_groups, seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_opo_is_equal_to_a_plain_loop(rows: list[tuple[float, int]], seed: int) -> None:
    rewards, groups = [row[0] for row in rows], [row[1] for row in rows]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (len(rows),), generator=generator)
    found = opo(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), lengths)
    for row, (reward, group) in enumerate(rows):
        members = [
            (r, n)
            for r, g, n in zip(rewards, groups, lengths.tolist(), strict=True)
            if g == group and not math.isnan(r)
        ]
        expected = 0.0
        if not math.isnan(reward) and len(members) > 1:
            expected = reward - sum(r * n for r, n in members) / sum(n for _, n in members)
        assert float(found[row]) == pytest.approx(expected)


@given(rows=rewards_and_groups)
@settings(max_examples=40, deadline=None)
def test_methods_that_are_one_another(rows: list[tuple[float, int]]) -> None:
    rewards = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    groups = torch.tensor([row[1] for row in rows])
    centred = dr_grpo(rewards, groups)
    torch.testing.assert_close(opo_of_equal_lengths(rewards, groups), centred)
    counts = ((groups == groups.unsqueeze(1)) & ~rewards.isnan()).sum(dim=1)
    torch.testing.assert_close(centred * counts / (counts - 1).clamp(min=1), rloo(rewards, groups))
    # Of a single group all rollouts have signal, or none has.
    together = torch.zeros_like(groups)
    torch.testing.assert_close(gpg(rewards, together), dr_grpo(rewards, together))


def test_gpg_makes_up_for_groups_without_signal() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.5, 2.0, 2.0, 2.0, 1.0, NAN])
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 0])
    found = gpg(rewards, groups)
    # 7 judged rollouts, 3 of them in the group with signal, one of those at its mean.
    torch.testing.assert_close(found, torch.tensor([0.5, -0.5, 0, 0, 0, 0, 0, 0]) * 7 / 3)


def test_opo_leans_on_long_responses() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, NAN]), torch.zeros(3, dtype=torch.int64)
    found = opo(rewards, groups, torch.tensor([3, 1, 100]))
    torch.testing.assert_close(found, torch.tensor([0.25, -0.75, 0.0]))
    assert not opo(torch.ones(3), groups, torch.zeros(3)).any()


def test_maxrl_gives_hard_prompts_weight() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    groups = torch.arange(8) // 4
    expected = torch.tensor([3.0, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1])
    torch.testing.assert_close(maxrl(rewards, groups), expected)
    assert not maxrl(torch.tensor([-1.0, 0.0]), torch.zeros(2, dtype=torch.int64)).any()


def test_remax_is_a_difference_of_rewards() -> None:
    rewards, baselines = torch.tensor([1.0, 0.0, NAN, 1.0]), torch.tensor([0.25, 0.5, 0.5, NAN])
    assert remax(rewards, baselines).tolist() == [0.75, -0.5, 0, 0]


def test_reinforce_plus_plus_whitens_rewards_to_go() -> None:
    rewards, groups = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    penalty = torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.3, 0.0]])
    found = reinforce_plus_plus(rewards, groups, mask, kl_penalty=penalty, group_baseline=False)
    returns = torch.tensor([1.0 - 0.3, 1.0 - 0.2, 0.0 - 0.3])
    expected = (returns - returns.mean()) / returns.std()
    torch.testing.assert_close(found[mask], expected)
    assert not found[~mask].any()


def test_a_baseline_needs_a_second_rollout() -> None:
    """A rollout alone in its group trains nothing, and moves no statistic."""
    rewards, groups = torch.tensor([1.0, 0.0, 1.0, 9.0]), torch.tensor([0, 0, 0, 1])
    mask = torch.ones(4, 2, dtype=torch.bool)
    found = reinforce_plus_plus(rewards, groups, mask, kl_penalty=None, group_baseline=True)
    assert not found[3].any()
    without = reinforce_plus_plus(
        rewards[:3], groups[:3], mask[:3], kl_penalty=None, group_baseline=True
    )
    torch.testing.assert_close(found[:3], without)


def test_whitening_has_zero_mean_and_unit_deviation() -> None:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    white = whiten(values, mask)
    assert abs(float(white[mask].mean())) < 1e-6
    assert abs(float(white[mask].std()) - 1) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (2**20, 1), (0, 1e30), (-1e30, 1e30)])
def test_whitening_is_as_exact_far_from_zero(
    dtype: torch.dtype, offset: float, scale: float
) -> None:
    steps = torch.tensor([[0.0, 1.0, 3.0], [NAN, 8.0, -2.0]], dtype=dtype)
    mask = ~steps.isnan()
    found = whiten(offset + scale * steps, mask)
    expected = (steps - 2.0) / math.sqrt(58 / 4)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-6, rtol=1e-6)
    assert not found[~mask].any()


@pytest.mark.parametrize("value", [0.0, 0.1, -3e37, 1e-40])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_whitening_equal_values_gives_exactly_zero(value: float, count: int) -> None:
    values = torch.full((2, count), value)
    mask = torch.zeros(2, count, dtype=torch.bool)
    mask[0] = True
    assert not whiten(values, mask).any()


def test_whitening_does_not_magnify_what_is_almost_equal() -> None:
    values = torch.tensor([[0.0, 1e-25]])
    assert whiten(values, torch.ones(1, 2, dtype=torch.bool)).abs().max() < 1e-15


def test_per_token_covers_the_loss_tokens_only() -> None:
    mask = torch.tensor([[False, True], [True, False]])
    assert per_token(torch.tensor([2.0, -1.0]), mask).tolist() == [[0, 2], [-1, 0]]
