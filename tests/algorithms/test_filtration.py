"""Filtration against the paper's weights, a plain loop per group, ties, and drawn frequencies."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import filtration
from rlstack.algorithms.filtration import Strategy

NAN = float("nan")
STRATEGIES: tuple[Strategy, ...] = ("all", "best", "best_random", "best_worst")
rewards_and_groups = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 1.0, -2.0, NAN]), st.integers(0, 3)),
    min_size=1,
    max_size=16,
)
Rows = list[tuple[float, int]]


def tensors(rows: Rows) -> tuple[Tensor, Tensor]:
    rewards = torch.tensor([reward for reward, _ in rows], dtype=torch.float64)
    return rewards, torch.tensor([group for _, group in rows])


def judged_by_group(rows: Rows) -> dict[int, dict[int, float]]:
    """Group -> row -> reward, judged rows only."""
    groups: dict[int, dict[int, float]] = {}
    for row, (reward, group) in enumerate(rows):
        if reward == reward:
            groups.setdefault(group, {})[row] = reward
    return groups


def weights_by_loop(rows: Rows, strategy: Strategy) -> list[float]:
    """Rank weights as the paper writes them, averaged over rows of equal reward."""
    weights = [0.0] * len(rows)
    for group in judged_by_group(rows).values():
        n = len(group)
        by_rank = {
            "all": [1 / n] * n,
            "best": [1.0] + [0.0] * (n - 1),
            "best_random": [0.5] + [1 / (2 * (n - 1)) if n > 1 else 0.0] * (n - 1),
            "best_worst": [0.5] + [0.0] * (n - 2) + [0.5],
        }[strategy]
        by_rank = by_rank if n > 1 else [1.0]
        ranked = sorted(group, key=lambda row: -group[row])
        for row in group:
            equal = [by_rank[i] for i, other in enumerate(ranked) if group[other] == group[row]]
            weights[row] = sum(equal) / len(equal)
    return weights


def test_rank_weights_by_hand() -> None:
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7, NAN, 0.2])
    groups = torch.tensor([0, 0, 0, 0, 0, 0, 1])
    expected = {
        "all": [0.2, 0.2, 0.2, 0.2, 0.2, 0, 1],
        "best": [0, 1, 0, 0, 0, 0, 1],
        "best_random": [0.125, 0.5, 0.125, 0.125, 0.125, 0, 1],
        "best_worst": [0.5, 0.5, 0, 0, 0, 0, 1],
    }
    for strategy in STRATEGIES:
        found = filtration.rank_weights(rewards, groups, strategy=strategy)
        torch.testing.assert_close(found, torch.tensor(expected[strategy], dtype=torch.float32))


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(rows=rewards_and_groups)
@settings(max_examples=40, deadline=None)
def test_rank_weights_are_the_loop_over_groups(strategy: Strategy, rows: Rows) -> None:
    found = filtration.rank_weights(*tensors(rows), strategy=strategy)
    expected = torch.tensor(weights_by_loop(rows, strategy), dtype=torch.float64)
    torch.testing.assert_close(found, expected)


@given(rows=rewards_and_groups, power=st.sampled_from([1.0, 2.0, 3.0, 500.0]))
@settings(max_examples=60, deadline=None)
def test_power_weights_are_the_loop_over_groups(rows: Rows, power: float) -> None:
    found = filtration.power_weights(*tensors(rows), power=power)
    expected = torch.zeros(len(rows), dtype=torch.float64)
    for group in judged_by_group(rows).values():
        largest = max(abs(reward) for reward in group.values()) or 1.0
        all_zero = not any(group.values())
        powers = {r: 1.0 if all_zero else (abs(v) / largest) ** power for r, v in group.items()}
        for row, value in powers.items():
            expected[row] = value / sum(powers.values())
    torch.testing.assert_close(found, expected)


@given(rows=rewards_and_groups)
@settings(max_examples=60, deadline=None)
def test_signal_and_difficulty_are_the_loop_over_groups(rows: Rows) -> None:
    signal, middling = set(), set()
    for group in judged_by_group(rows).values():
        values = list(group.values())
        signal |= set(group) if len(set(values)) > 1 else set()
        middling |= set(group) if -0.6 < sum(values) / len(values) < 0.3 else set()
    rewards, groups = tensors(rows)
    found = filtration.has_signal(rewards, groups)
    assert set(filtration.rows(found).tolist()) == signal
    found = filtration.within_difficulty(rewards, groups, low=-0.6, high=0.3)
    assert set(filtration.rows(found).tolist()) == middling


@given(reward=st.floats(-1e3, 1e3, width=32), size=st.integers(2, 13))
@settings(max_examples=60, deadline=None)
def test_equal_rewards_carry_no_signal_whatever_they_are(reward: float, size: int) -> None:
    rewards, groups = torch.full((size,), reward), torch.zeros(size, dtype=torch.int64)
    assert not filtration.has_signal(rewards, groups).any()


def test_difficulty_bounds_are_outside() -> None:
    rewards, groups = torch.tensor([0.0, 0, 1, 1, 0, 1, NAN]), torch.tensor([0, 0, 1, 1, 2, 2, 2])
    found = filtration.within_difficulty(rewards, groups, low=0.0, high=1.0)
    assert filtration.rows(found).tolist() == [4, 5]
    assert torch.equal(found, filtration.has_signal(rewards, groups))


def test_length_filter() -> None:
    lengths, truncated = torch.tensor([5, 10, 11, 3]), torch.tensor([False, False, False, True])

    def kept(*, keep_truncated: bool) -> list[int]:
        mask = filtration.within_length(
            lengths, truncated, max_tokens=10, keep_truncated=keep_truncated
        )
        return filtration.rows(mask).tolist()

    assert kept(keep_truncated=False) == [0, 1]
    assert kept(keep_truncated=True) == [0, 1, 3]


@given(rows=rewards_and_groups, seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_hard_selection_takes_the_extremes_of_every_group(rows: Rows, seed: int) -> None:
    def chosen(strategy: Strategy) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        found = filtration.select_rows(*tensors(rows), strategy=strategy, generator=generator)
        assert found.tolist() == sorted(set(found.tolist()))
        return found.tolist()

    for strategy in STRATEGIES:
        assert chosen(strategy) == chosen(strategy)
    groups = judged_by_group(rows)
    assert chosen("all") == sorted(row for group in groups.values() for row in group)
    for strategy, most in (("best", 1), ("best_random", 2), ("best_worst", 2)):
        rows_left = set(chosen(strategy))
        for group in groups.values():
            values = [group[row] for row in rows_left & set(group)]
            assert len(values) == min(most, len(group))
            assert max(values) == max(group.values())
            assert strategy != "best_worst" or min(values) == min(group.values())
            rows_left -= set(group)
        assert not rows_left


def test_hard_selection_draws_the_other_response_and_ties_equally() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, -1.0, -2.0]), torch.zeros(4, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    others, ties = Counter[int](), Counter[int]()
    for _ in range(900):
        pair = filtration.select_rows(
            rewards, groups, strategy="best_random", generator=generator
        ).tolist()
        assert pair[0] == 0
        others[pair[1]] += 1
        one = filtration.select_rows(
            torch.tensor([1.0, 1.0, 0.0, 1.0]), groups, strategy="best", generator=generator
        )
        ties[int(one)] += 1
    assert set(others) == {1, 2, 3}
    assert set(ties) == {0, 1, 3}
    assert min([*others.values(), *ties.values()]) > 230  # 300 each, standard deviation 14


def test_soft_selection_draws_with_its_weights() -> None:
    weights = torch.tensor([0.5, 0.1, 0.4, 0.0, 2.0, 0.0])
    groups = torch.tensor([0, 0, 0, 0, 1, 2])
    generator = torch.Generator().manual_seed(0)
    drawn = filtration.sample_rows(weights, groups, num_per_group=4000, generator=generator)
    counts = torch.bincount(drawn, minlength=6)
    torch.testing.assert_close(counts[:3] / 4000, weights[:3], atol=0.03, rtol=0)
    assert counts[3:].tolist() == [0, 4000, 0]


@given(rows=rewards_and_groups, seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_soft_selection_never_draws_what_was_not_judged(rows: Rows, seed: int) -> None:
    rewards, groups = tensors(rows)
    weights = filtration.power_weights(rewards, groups, power=2.0)

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return filtration.sample_rows(weights, groups, num_per_group=3, generator=generator)

    drawn = draw()
    assert torch.equal(drawn, draw())
    assert (weights[drawn] > 0).all()
    assert len(drawn) == 3 * len(judged_by_group(rows))


def test_an_empty_batch_is_empty_everywhere() -> None:
    rewards, groups = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    generator = torch.Generator()
    assert filtration.has_signal(rewards, groups).shape == (0,)
    for strategy in STRATEGIES:
        assert filtration.rank_weights(rewards, groups, strategy=strategy).shape == (0,)
        found = filtration.select_rows(rewards, groups, strategy=strategy, generator=generator)
        assert found.shape == (0,)
    found = filtration.sample_rows(rewards, groups, num_per_group=2, generator=generator)
    assert found.shape == (0,)
