"""Advantages against hand-computed tables, a plain loop, and invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlstack.algorithms.advantages import (
    dr_grpo,
    grpo,
    per_token,
    reinforce_plus_plus,
    rloo,
    whiten,
)

NAN = float("nan")
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
    for estimator in (grpo, dr_grpo, rloo):
        found = estimator(rewards, groups)
        assert found[1] == 0
        torch.testing.assert_close(found[[0, 2, 3]], estimator(without, groups[:3]))


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
def test_a_group_of_one_or_of_equals_gives_exactly_zero(estimator: object) -> None:
    assert callable(estimator)
    rewards = torch.tensor([0.7, 0.1, 0.1, 0.1])
    assert torch.equal(estimator(rewards, torch.tensor([0, 1, 1, 1])), torch.zeros(4))


@given(reward=st.floats(-1e3, 1e3, width=32), size=st.integers(2, 13))
@settings(max_examples=100, deadline=None)
def test_equal_rewards_leave_no_rounding_error(reward: float, size: int) -> None:
    rewards, groups = torch.full((size,), reward), torch.zeros(size, dtype=torch.int64)
    mask = torch.ones(size, 3, dtype=torch.bool)
    for estimator in (grpo, dr_grpo, rloo):
        assert not estimator(rewards, groups).any()
    assert not reinforce_plus_plus(
        rewards, groups, mask, kl_penalty=None, group_baseline=False
    ).any()


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
            case _:
                others = (sum(members) - reward) / (len(members) - 1)
                result.append(reward - others)
    return result


@pytest.mark.parametrize(
    ("kind", "estimator"), [("grpo", grpo), ("dr_grpo", dr_grpo), ("rloo", rloo)]
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
    torch.testing.assert_close(grpo(rewards, groups)[order], grpo(rewards[order], groups[order]))


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


def test_per_token_covers_the_loss_tokens_only() -> None:
    mask = torch.tensor([[False, True], [True, False]])
    assert per_token(torch.tensor([2.0, -1.0]), mask).tolist() == [[0, 2], [-1, 0]]
