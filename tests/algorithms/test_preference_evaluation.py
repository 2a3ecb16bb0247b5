"""Metrics of scored preferences against closed forms, and where a closed form is the definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlstack.algorithms.preference_evaluation import (
    Bin,
    PairScores,
    agreement,
    brier,
    by_quantile,
    calibration_error,
    correlation,
    held_out_metrics,
    joined,
    log_loss,
    pair_metrics,
    reliability,
)

SCORES = arrays(np.float64, st.integers(1, 40), elements=st.floats(-50, 50))


def pairs(differences: list[float] | np.ndarray, *sources: str) -> PairScores:
    chosen = np.asarray(differences, dtype=np.float64)
    return PairScores(
        chosen=chosen,
        rejected=np.zeros(len(chosen)),
        lengths=np.ones((2, len(chosen))),
        data_sources=sources or ("rows",) * len(chosen),
    )


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_agreement_counts_a_tie_as_half() -> None:
    assert agreement(pairs([2.0, -0.1, 0.0])).tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 0.999])
def test_losses_of_a_known_probability(probability: float) -> None:
    difference = np.array([logit(probability)])
    assert log_loss(difference)[0] == pytest.approx(-math.log(probability))
    assert brier(difference)[0] == pytest.approx((1 - probability) ** 2)


def test_losses_do_not_overflow() -> None:
    far = np.array([-1e4, 1e4])
    assert log_loss(far).tolist() == [1e4, 0.0]
    assert brier(far).tolist() == [1.0, 0.0]


def test_reliability_and_its_error_by_hand() -> None:
    # Confidences 0.6 (right, wrong), 0.9 (right) and 0.9 for the wrong response.
    differences = [logit(0.6), -logit(0.6), logit(0.9), -logit(0.9)]
    found = reliability(pairs(differences), num_bins=5)
    assert [(b.position, b.value, b.count) for b in found] == [
        (pytest.approx(0.6), 0.5, 2),
        (pytest.approx(0.9), 0.5, 2),
    ]
    assert calibration_error(found) == pytest.approx((0.1 * 2 + 0.4 * 2) / 4)


def test_a_model_that_knows_how_much_it_knows_is_calibrated() -> None:
    random = np.random.default_rng(0)
    differences = random.normal(scale=2.0, size=200_000)
    # Which response is the chosen one is drawn with the probability that the model states.
    sign = np.where(random.random(200_000) < 1 / (1 + np.exp(-differences)), 1.0, -1.0)
    honest = calibration_error(reliability(pairs(sign * differences)))
    boasting = calibration_error(reliability(pairs(sign * differences * 4)))
    assert honest < 0.005
    assert boasting > 0.1


@settings(max_examples=100, deadline=None)
@given(SCORES)
def test_every_pair_is_in_one_bin_and_the_error_is_a_share(differences: np.ndarray) -> None:
    found = reliability(pairs(differences))
    assert sum(b.count for b in found) == len(differences)
    assert all(0.5 <= b.position <= 1 and 0 <= b.value <= 1 for b in found)
    assert 0 <= calibration_error(found) <= 1
    accuracy = sum(b.value * b.count for b in found) / len(differences)
    assert accuracy == pytest.approx(agreement(pairs(differences)).mean())


def test_parts_of_equal_size_in_ascending_order() -> None:
    lengths, scores = np.array([4.0, 1.0, 2.0, 3.0, 5.0]), np.array([40.0, 10.0, 20.0, 30.0, 50.0])
    assert by_quantile(lengths, scores, num_bins=2) == [
        Bin(position=2.0, value=20.0, count=3),
        Bin(position=4.5, value=45.0, count=2),
    ]
    assert len(by_quantile(lengths, scores, num_bins=9)) == 5
    assert by_quantile(np.array([]), np.array([])) == []


def test_correlation_of_lines_and_of_what_does_not_vary() -> None:
    line = np.arange(5.0)
    assert correlation(line, 3 - 2 * line) == pytest.approx(-1.0)
    assert correlation(line, np.full(5, 0.1)) == 0.0
    assert correlation(np.array([]), np.array([])) == 0.0


def test_metrics_of_pairs_by_hand() -> None:
    scores = PairScores(
        chosen=np.array([1.0, 2.0, -1.0]),
        rejected=np.array([0.0, 3.0, -1.0]),
        lengths=np.ones((2, 3)),
        data_sources=("a", "a", "b"),
    )
    both = [1.0, 2.0, -1.0, 0.0, 3.0, -1.0]
    assert pair_metrics(scores, prefix="reward_model").values() == {
        "reward_model/accuracy": 0.5,
        "reward_model/accuracy/a": 0.5,
        "reward_model/accuracy/b": 0.5,
        "reward_model/margin": 0.0,
        "reward_model/score_mean": pytest.approx(np.mean(both)),
        "reward_model/score_std": pytest.approx(np.std(both)),
    }
    assert "reward_model/accuracy/rows" not in pair_metrics(pairs([1.0]), prefix="x").values()


def test_held_out_metrics_of_a_model_that_scores_by_length() -> None:
    lengths = np.array([[2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 3.0, 5.0, 7.0, 9.0]])
    scores = PairScores(
        chosen=lengths[0], rejected=lengths[1], lengths=lengths, data_sources=("rows",) * 5
    )
    found = held_out_metrics(scores).values()
    assert found["eval/score_length_correlation"] == pytest.approx(1.0)
    assert [found[f"eval/score_by_length/{part}"] for part in range(1, 6)] == [
        pytest.approx(value) for value in (1.5, 3.5, 5.5, 7.5, 9.5)
    ]
    sure = 1 / (1 + math.exp(-1))
    assert found["eval/accuracy"] == 1.0
    assert found["eval/calibration_error"] == pytest.approx(1 - sure)
    assert found["eval/log_loss"] == pytest.approx(-math.log(sure))
    assert found["eval/brier_loss"] == pytest.approx((1 - sure) ** 2)


def test_parts_joined_are_the_whole() -> None:
    whole = pairs([1.0, -2.0, 0.5], "a", "b", "a")
    parts = [pairs([1.0], "a"), pairs([-2.0, 0.5], "b", "a")]
    assert held_out_metrics(joined(parts)) == held_out_metrics(whole)


def test_a_model_that_says_nothing() -> None:
    found = held_out_metrics(pairs([0.0] * 4)).values()
    assert found["eval/accuracy"] == 0.5
    assert found["eval/brier_loss"] == 0.25
    assert found["eval/calibration_error"] == 0.0
    assert found["eval/log_loss"] == pytest.approx(math.log(2))
