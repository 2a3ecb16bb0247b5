"""Skipped updates in a row, and bounds on metrics."""

import math

import pytest

from rlstack.config.faults import Bound
from rlstack.errors import TrainingError
from rlstack.faults import SkippedUpdates, check_bounds, skipped_step
from rlstack.metrics import Metrics
from tests.config.test_load import problems, rl_values


def test_only_updates_of_one_role_in_a_row_count() -> None:
    skipped = SkippedUpdates(most=2)
    for policy, critic in [(1, 0), (0, 1), (1, 0), (0, 0)]:
        skipped.observe(
            skipped_step(["policy"], num_updates=policy)
            + skipped_step(["critic"], num_updates=critic)
        )
        assert skipped.under_way == bool(policy + critic)
    skipped.observe(skipped_step(["critic"], num_updates=1))
    skipped.observe(skipped_step(["policy"], num_updates=0))  # the critic made none at all
    with pytest.raises(TrainingError, match="2 updates of critic in a row"):
        skipped.observe(skipped_step(["critic"], num_updates=16))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((0.0, None), (0.5, None), (1.0, None), (1.01, "above 1"), (-0.1, "below 0")),
        *((math.inf, "above 1"), (-math.inf, "below 0"), (math.nan, "above 1")),
    ],
)
def test_what_is_beyond_a_bound(value: float, expected: str | None) -> None:
    bound = Bound(metric="mismatch/k3", above=1.0, below=0.0, action="skip")
    assert bound.beyond(value) == expected
    assert check_bounds([bound], Metrics.of({"mismatch/k3": value}), step=1) == bool(expected)


def test_a_metric_that_was_not_measured_is_within_its_bounds() -> None:
    bound = Bound(metric="policy/entropy", below=0.1, action="stop")
    assert not check_bounds([bound], Metrics.of({"policy/loss": 0.0}), step=1)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ("{metric: policy/entropy, below: 0.1, action: skip}", "known only after the update"),
        ("{metric: mismatch/k3, action: skip}", "bounds mismatch/k3 by nothing; give above or"),
        ("{metric: critic/loss, above: 1, action: warn}", "measured of a critic, and there is"),
        ("{metric: policy/ref_kl, above: 1, action: warn}", "needs a reference; set algorithm.kl"),
        (
            "{metric: mismatch/k4, above: 1, action: warn}",
            "got mismatch/k4; expected 'mi",
        ),
    ],
)
def test_a_bound_that_cannot_do_what_it_says_is_refused(bound: str, expected: str) -> None:
    text = problems(rl_values(f"faults.bounds=[{bound}]"))
    assert "faults.bounds[0]" in text
    assert expected in text
