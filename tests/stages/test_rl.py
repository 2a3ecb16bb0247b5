"""A run that stops and is resumed goes on with the state that it stopped with."""

import asyncio
from pathlib import Path

import pytest

from rlstack.stages.rl import Training
from rlstack.tracking import Tracker
from tests.test_controller import make_controller


def train(run_dir: Path, *overrides: str) -> float:
    """The KL coefficient after the run, which measures far too much KL in every step."""
    controller, _, policy = make_controller(
        run_dir,
        f"run_dir={run_dir}",
        "evaluation.every=0",
        "checkpoint.export=false",
        "algorithm.kl.coef=0.2",
        "algorithm.kl.target=0.1",
        "algorithm.kl.horizon=160",
        *overrides,
    )
    policy.ref_kl = 5.0
    config = controller.config
    with Tracker.open(
        config.tracking, run_dir=run_dir, total_steps=config.total_steps, title="rl"
    ) as tracker:
        asyncio.run(Training(config, controller, tracker, ()).run(asyncio.Event()))
    return controller.kl_coef


def test_the_kl_coefficient_survives_a_resume(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.mkdir()
    twice.mkdir()
    expected = train(once, "total_steps=4")
    assert expected == pytest.approx(0.2 * 1.02**4)
    train(twice, "total_steps=2")
    assert train(twice, "total_steps=4", f"resume={twice}") == expected
