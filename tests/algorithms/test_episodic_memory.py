"""Episodic memory: scores by hand and by a loop, order of time, bounds, and purity."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlstack.algorithms import episodic_memory as episodic
from rlstack.algorithms.episodic_memory import Array, EpisodicMemory

NAN = float("nan")


def remember(
    memory: EpisodicMemory, query: str, responses: list[list[float]], rewards: list[float]
) -> EpisodicMemory:
    return episodic.insert(
        memory, query, np.array(responses), np.array(rewards), threshold=0.5, capacity=3
    )


def score(
    memory: EpisodicMemory,
    responses: list[list[float]],
    *neighbours: str,
    window: int = 100,
    weights: tuple[float, float] = (1.0, 1.0),
) -> tuple[list[float], EpisodicMemory]:
    rewards, memory = episodic.score(
        memory,
        np.array(responses),
        neighbours=neighbours,
        window=window,
        exploit_weight=weights[0],
        explore_weight=weights[1],
    )
    return rewards.tolist(), memory


def test_exploitation_by_hand() -> None:
    """The centroid of (0, 0) and (2, 0) is (1, 0)."""
    found = episodic.exploit_scores(
        np.array([[1.0, 0.0], [1.0, 2.0], [4.0, 4.0]]), np.array([[0.0, 0.0], [2.0, 0.0]])
    )
    np.testing.assert_allclose(found, [0.0, -2.0, -5.0])


def test_exploration_by_hand() -> None:
    failures = np.array([[1.0, 0.0], [0.0, 5.0]])
    responses = np.array([[3.0, 0.0], [-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    found = episodic.explore_scores(responses, failures)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(found, [0.0, 1 + half, 1 - half, 1.0], atol=1e-15)


@given(seed=st.integers(0, 1000), size=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_scores_are_the_loop_over_memory(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    responses, stored = generator.normal(size=(4, 3)), generator.normal(size=(size, 3))
    for response, exploit, explore in zip(
        responses.tolist(),
        episodic.exploit_scores(responses, stored),
        episodic.explore_scores(responses, stored),
        strict=True,
    ):
        centroid = [sum(column) / size for column in stored.T.tolist()]
        assert exploit == pytest.approx(-math.dist(response, centroid))
        cosines = [
            sum(a * b for a, b in zip(response, other, strict=True))
            / (math.hypot(*response) * math.hypot(*other))
            for other in stored.tolist()
        ]
        assert explore == pytest.approx(1 - max(cosines))
    shuffled = stored[generator.permutation(size)]
    np.testing.assert_allclose(
        episodic.exploit_scores(responses, shuffled), episodic.exploit_scores(responses, stored)
    )


def test_an_empty_memory_gives_zero_and_remembers_no_score() -> None:
    rewards, memory = score(episodic.empty_memory(), [[1.0, 0.0], [0.0, 1.0]], "a")
    assert rewards == [0, 0]
    assert memory.exploit_scores.size == memory.explore_scores.size == 0


def test_normalised_and_weighted_by_hand() -> None:
    memory = remember(episodic.empty_memory(), "a", [[0.0, 1.0], [1.0, 0.0]], [1.0, 0.0])
    # Distances to the success: 0, sqrt 2 and 2; cosines to the failure: 0, 1 and 0.
    responses = [[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]]
    exploit = [1.0, 1 - math.sqrt(2) / 2, 0.0]
    explore = [1.0, 0.0, 1.0]
    rewards, _ = score(memory, responses, "a", weights=(2.0, 3.0))
    expected = [2 * a + 3 * b for a, b in zip(exploit, explore, strict=True)]
    assert rewards == pytest.approx(expected)


def test_scores_are_normalised_over_the_window_of_past_scores() -> None:
    memory = remember(episodic.empty_memory(), "a", [[0.0, 0.0]], [1.0])
    rewards, memory = score(memory, [[4.0, 0.0], [0.0, 0.0]], "a", window=2)
    assert rewards == [0, 1]
    rewards, memory = score(memory, [[1.0, 0.0]], "a", window=2)
    assert rewards == [0.75]  # within -4 .. 0, seen before
    assert memory.exploit_scores.tolist() == [0, -1]
    rewards, memory = score(memory, [[2.0, 0.0]], "a", window=2)
    assert rewards == [0]  # -4 has left the window: -2 is the lowest now
    assert memory.exploit_scores.tolist() == [-1, -2]


def test_equal_scores_give_exactly_zero() -> None:
    memory = remember(episodic.empty_memory(), "a", [[0.1, 0.3], [0.7, 0.1]], [1.0, 0.0])
    rewards, _ = score(memory, [[0.3, 0.4]] * 3, "a")
    assert rewards == [0, 0, 0]


@given(seed=st.integers(0, 1000), window=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_each_part_stays_within_zero_and_its_weight(seed: int, window: int) -> None:
    generator = np.random.default_rng(seed)
    memory = remember(episodic.empty_memory(), "a", generator.normal(size=(2, 3)).tolist(), [1, 0])
    for _ in range(3):
        rewards, memory = score(memory, generator.normal(size=(4, 3)).tolist(), "a", window=window)
        assert min(rewards) >= 0
        assert max(rewards) <= 2
        assert len(memory.exploit_scores) <= window


def test_neighbours_are_pooled_and_others_left_out() -> None:
    memory = remember(episodic.empty_memory(), "a", [[0.0, 0.0]], [1.0])
    memory = remember(memory, "b", [[2.0, 0.0]], [1.0])
    memory = remember(memory, "far", [[100.0, 0.0]], [1.0])
    found, memory = score(memory, [[1.0, 0.0], [1.0, 1.0]], "a", "b", "unknown")
    assert found == [1, 0]
    assert memory.exploit_scores.tolist() == [0, -1]


def test_successes_failures_and_what_was_not_judged() -> None:
    memory = remember(
        episodic.empty_memory(), "a", [[1.0], [2.0], [3.0], [4.0]], [0.6, 0.5, NAN, -1.0]
    )
    assert memory.successes["a"].tolist() == [[1]]
    assert memory.failures["a"].tolist() == [[2], [4]]


def test_memory_is_bounded_by_query_and_the_oldest_leave_first() -> None:
    memory = episodic.empty_memory()
    for value in range(5):
        memory = remember(memory, "a", [[float(value)]], [1.0])
    memory = remember(memory, "b", [[9.0]], [1.0])
    assert memory.successes["a"].tolist() == [[2], [3], [4]]
    assert memory.successes["b"].tolist() == [[9]]
    memory = remember(memory, "a", [[5.0], [6.0], [7.0], [8.0]], [1.0] * 4)
    assert memory.successes["a"].tolist() == [[6], [7], [8]]


def test_the_memory_given_stays_as_it_was() -> None:
    before = remember(episodic.empty_memory(), "a", [[1.0], [2.0]], [1.0, 0.0])
    kept: Array = before.successes["a"].copy()
    remember(before, "a", [[3.0]], [1.0])
    remember(before, "b", [[3.0]], [1.0])
    score(before, [[0.0], [1.0]], "a")
    assert set(before.successes) == {"a"}
    np.testing.assert_array_equal(before.successes["a"], kept)
    assert before.exploit_scores.size == 0


def test_scoring_after_inserting_would_punish_a_failure_for_being_one() -> None:
    """Why `score` comes first: the response that is far from past failures scores best."""
    memory = remember(episodic.empty_memory(), "a", [[1.0, 0.0]], [0.0])
    responses = [[0.9, 0.1], [-1.0, 0.0]]
    first, _ = score(memory, responses, "a", weights=(0.0, 1.0))
    assert first == [0, 1]
    inserted = remember(memory, "a", responses, [0.0, 0.0])
    late, _ = score(inserted, responses, "a", weights=(0.0, 1.0))
    assert late == pytest.approx([0, 0])
