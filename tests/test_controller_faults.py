"""Skipped updates and bounds on metrics in a step, on fake roles."""

from pathlib import Path

import pytest
import torch

from rlstack.batch import TokenBatch
from rlstack.errors import TrainingError
from tests.fakes import FakePolicy
from tests.test_controller import make_controller, run


def test_a_step_without_a_single_update_publishes_nothing(tmp_path: Path) -> None:
    controller, journal, policy = make_controller(
        tmp_path,
        "algorithm.updates_per_epoch=2",
        "algorithm.kl.coef=0.2",
        "algorithm.kl.target=0.1",
        "algorithm.kl.horizon=160",
    )
    policy.ref_kl, policy.skips = 5.0, (1, 2, 3)
    values = [run(controller.step(step)).metrics.values() for step in (1, 2)]
    assert [value["policy/skipped_updates"] for value in values] == [2.0, 1.0]
    # After the first step the engines still hold version 0, after the second one update more.
    published = [event for event in journal.events if event.startswith("generate v")]
    assert published == ["generate v0", "generate v0", "generate v0", "generate v1"]
    # No KL was measured in the first step.
    assert [value["policy/kl_coef"] for value in values] == [0.2, 0.2]
    assert controller.kl_coef == pytest.approx(0.2 * 1.02)
    assert "policy/loss" not in values[0]
    assert values[1]["policy/loss"] == 1.0


def test_updates_that_are_skipped_one_after_the_other_end_the_run(tmp_path: Path) -> None:
    controller, _, policy = make_controller(
        tmp_path, "algorithm.updates_per_epoch=2", "faults.max_skipped_updates=3"
    )
    policy.skips = (1, 2, 4, 5, 6)
    for step in (1, 2):
        run(controller.step(step))
    with pytest.raises(TrainingError, match=r"3 updates of policy in a row.*max_skipped_updates"):
        run(controller.step(3))
    assert len(policy.batches) == 6


def test_a_bound_on_what_is_known_before_the_update_skips_all_updates_of_a_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Engines say 1 nat less than the trainer does of every token that they write from step 2."""
    controller, journal, policy = make_controller(
        tmp_path,
        "algorithm.updates_per_epoch=4",
        "faults.max_skipped_updates=2",
        "faults.bounds=[{metric: mismatch/logprob_difference_mean, above: 0.5, action: skip}]",
    )
    first = run(controller.step(1)).metrics.values()
    assert first["policy/skipped_updates"] == 0.0
    drifts(policy)
    values = run(controller.step(2)).metrics.values()
    assert values["mismatch/logprob_difference_mean"] == 1.0
    assert values["policy/skipped_updates"] == 4.0
    assert len(policy.batches) == 4
    assert journal.events[-1] == "generate v1"
    assert "step 2: mismatch/logprob_difference_mean is 1, above 0.5 (faults.bounds[0])" in (
        caplog.text
    )
    with pytest.raises(TrainingError, match="2 updates of policy in a row"):  # 2 steps, that is
        run(controller.step(3))


def drifts(policy: FakePolicy) -> None:
    async def logprobs(batch: TokenBatch) -> torch.Tensor:
        return torch.where(batch.loss_mask, -2.0, 0.0)

    policy.logprobs = logprobs  # type: ignore[method-assign]


def test_a_critic_is_spared_the_step_too(tmp_path: Path) -> None:
    controller, journal, _ = make_controller(
        tmp_path,
        "algorithm=ppo",
        "algorithm.updates_per_epoch=2",
        "algorithm.kl.coef=0",
        "faults.bounds=[{metric: critic/value_mean, above: 0.4, action: skip}]",
    )
    values = run(controller.step(1)).metrics.values()
    assert {k: v for k, v in values.items() if k.endswith("skipped_updates")} == {
        "policy/skipped_updates": 2.0,
        "critic/skipped_updates": 2.0,
    }
    assert not any("update" in event for event in journal.events)


@pytest.mark.parametrize(
    ("metric", "num_updates"), [("mismatch/k3, above: -1", 0), ("policy/loss, below: 2", 1)]
)
def test_a_bound_stops_the_run_as_soon_as_it_can(
    tmp_path: Path, metric: str, num_updates: int
) -> None:
    controller, _, policy = make_controller(
        tmp_path, f"faults.bounds=[{{metric: {metric}, action: stop}}]"
    )
    with pytest.raises(TrainingError, match=r"step 1: .*faults.bounds\[0\]\); the run ends"):
        run(controller.step(1))
    assert len(policy.batches) == num_updates


def test_a_bound_that_warns_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    controller, _, policy = make_controller(
        tmp_path, "faults.bounds=[{metric: policy/loss, above: 0.5, below: 0, action: warn}]"
    )
    run(controller.step(1))
    assert "step 1: policy/loss is 1, above 0.5" in caplog.text
    assert (len(policy.batches), controller.policy_version) == (1, 1)
