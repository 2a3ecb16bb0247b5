"""A run that stops and is resumed goes on with the state that it stopped with."""

import asyncio
import json
import shutil
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import pytest

from rlstack.commands.rl import train_policy
from rlstack.commands.wiring import Running
from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.controller import Controller, StepResult
from rlstack.errors import ConfigError, TrainingError
from rlstack.metrics import Metrics
from rlstack.protocols import Scorer
from rlstack.run.tracking import Tracker
from rlstack.types import Prompt
from tests.fakes import FakeMovingReference, FakeReference, Journal
from tests.test_controller import make_controller
from workers.scoring.pool import ScorerPool

REMEMBERS = """
import json
from rewards.registry import register

@register("unheard_of", batched=True)
class UnheardOf:
    "Fewer points the more has been heard before, and the later it is heard."
    def __init__(self):
        self.heard = []
    def __call__(self, requests):
        self.heard += [f"{r.prompt}: {r.response}" for r in requests]
        return [float(r.response) - len(self.heard) for r in requests]
    def state(self):
        return json.dumps(self.heard).encode()
    def restore(self, state):
        self.heard = json.loads(state)
"""


def running(controller: Controller, tracker: Tracker, scorer: Scorer | None = None) -> Running:
    """Nothing is started: the controller has its roles."""
    return Running(
        roles=None,  # type: ignore[arg-type]
        sampler=None,
        scorer=scorer,
        tracker=tracker,
        timeline=controller.timeline,
        stop=asyncio.Event(),
    )


def with_memory(run_dir: Path, *overrides: str) -> tuple[bytes, dict[str, float]]:
    """What the reward remembers after the run, and the metrics of the last step."""
    plugin = run_dir.parent / "remembers.py"
    plugin.write_text(REMEMBERS)
    pool = ScorerPool(
        RewardConfig(
            components=(RewardComponent(name="unheard_of", label="un/heard"),),
            plugins=(str(plugin),),
            num_workers=2,
            timeout_s=20,
            memory_gib=16,
        )
    )
    controller, _, _ = make_controller(
        run_dir,
        f"run_dir={run_dir}",
        "evaluation.every=2",
        "checkpoint.export=false",
        *overrides,
        scorer=pool,
    )
    config = controller.config

    async def run() -> bytes:
        with Tracker.open(
            config.tracking, run_dir=run_dir, total_steps=config.total_steps, title="rl"
        ) as tracker:
            await train_policy(config, controller, running(controller, tracker, pool), ())
        return (await pool.state())["un/heard"]

    try:
        remembered = asyncio.run(run())
    finally:
        pool.close()
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return remembered, {k: v for k, v in last.items() if k.startswith("reward/")}


def test_what_a_reward_remembers_survives_a_resume(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.mkdir()
    twice.mkdir()
    expected = with_memory(once, "total_steps=4")
    with_memory(twice, "total_steps=2")
    assert with_memory(twice, "total_steps=4", f"resume={twice}") == expected
    assert expected[1]["reward/judged_fraction"] == 1.0


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
        asyncio.run(train_policy(config, controller, running(controller, tracker), ()))
    return controller.kl_coef


def test_the_kl_coefficient_survives_a_resume(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.mkdir()
    twice.mkdir()
    expected = train(once, "total_steps=4")
    assert expected == pytest.approx(0.2 * 1.02**4)
    train(twice, "total_steps=2")
    assert train(twice, "total_steps=4", f"resume={twice}") == expected


def test_a_run_goes_on_from_an_older_checkpoint_where_the_newest_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.mkdir()
    twice.mkdir()
    expected = train(once, "total_steps=6")
    train(twice, "total_steps=4", "checkpoint.every=2")
    (twice / "checkpoints/step_000004/state.json").write_text("{")
    assert train(twice, "total_steps=6", f"resume={twice}") == expected
    assert "step_000004/state.json: cannot be read" in capsys.readouterr().out
    logged = [json.loads(line)["step"] for line in (twice / "metrics.jsonl").open()]
    assert logged == [1, 2, 3, 4, 5, 6]


def moves_after(run_dir: Path, *overrides: str) -> int:
    """How often the reference has moved by the end of the run."""
    controller, _, _ = make_controller(
        run_dir,
        f"run_dir={run_dir}",
        "evaluation.every=0",
        "algorithm.kl.coef=0.1",
        "reference.update.every=2",
        *overrides,
    )
    moving = FakeMovingReference(Journal())
    controller.roles = replace(controller.roles, reference=FakeReference(), moving_reference=moving)
    config = controller.config
    with Tracker.open(
        config.tracking, run_dir=run_dir, total_steps=config.total_steps, title="rl"
    ) as tracker:
        asyncio.run(train_policy(config, controller, running(controller, tracker), ()))
    return moving.moves


def test_a_moving_reference_survives_a_resume_and_is_not_exported(tmp_path: Path) -> None:
    assert moves_after(tmp_path, "total_steps=3") == 1
    shutil.rmtree(tmp_path / "export")
    assert moves_after(tmp_path, "total_steps=6", f"resume={tmp_path}") == 3
    assert (tmp_path / "export").is_dir()
    assert not (tmp_path / "export_reference").exists()


def train_with_losses(run_dir: Path, losses: list[float | None], *overrides: str) -> list[str]:
    """The checkpoints that are kept where each evaluation measures the next of `losses`."""
    controller, _, _ = make_controller(
        run_dir, f"run_dir={run_dir}", "evaluation.every=2", "checkpoint.export=false", *overrides
    )
    measured = iter(losses)
    evaluate_prompts = controller.evaluate

    async def evaluate(prompts: tuple[Prompt, ...]) -> StepResult:
        result = await evaluate_prompts(prompts)
        loss = next(measured)
        return replace(result, metrics=Metrics.of({} if loss is None else {"eval/loss": loss}))

    controller.evaluate = evaluate  # type: ignore[method-assign]
    config = controller.config
    with Tracker.open(
        config.tracking, run_dir=run_dir, total_steps=config.total_steps, title="rl"
    ) as tracker:
        asyncio.run(train_policy(config, controller, running(controller, tracker), ()))
    return sorted(folder.name for folder in (run_dir / "checkpoints").iterdir())


def test_the_best_step_is_saved_when_no_checkpoint_was_due(tmp_path: Path) -> None:
    kept = train_with_losses(
        tmp_path,
        [5.0, 4.0, 2.0, 3.0],
        "total_steps=6",
        "checkpoint.every=5",
        "checkpoint.keep_last=1",
        "checkpoint.keep_best=eval/loss",
    )
    assert kept == ["step_000004", "step_000006"]


def test_a_best_metric_that_is_not_measured_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep_best: no metric 'eval/los'.*there are eval/loss"):
        train_with_losses(tmp_path, [5.0], "checkpoint.keep_best=eval/los")
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


def test_an_evaluation_that_measures_nothing_later_stops_no_run(tmp_path: Path) -> None:
    overrides = ("total_steps=4", "checkpoint.every=0", "checkpoint.keep_best=eval/loss")
    assert train_with_losses(tmp_path, [5.0, None, 4.0], *overrides) == ["step_000004"]


def train_with_skips(run_dir: Path, skips: Container[int], *overrides: str) -> list[str]:
    """The checkpoints that are left of a run whose updates of these numbers are skipped."""
    controller, _, policy = make_controller(
        run_dir,
        f"run_dir={run_dir}",
        "evaluation.every=0",
        "checkpoint.export=false",
        "checkpoint.every=2",
        *overrides,
    )
    policy.skips = skips
    config = controller.config
    with Tracker.open(
        config.tracking, run_dir=run_dir, total_steps=config.total_steps, title="rl"
    ) as tracker:
        asyncio.run(train_policy(config, controller, running(controller, tracker), ()))
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_no_checkpoint_is_rotated_away_by_steps_that_are_skipped(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="4 updates of policy in a row"):
        train_with_skips(
            tmp_path,
            range(3, 100),
            "total_steps=20",
            "checkpoint.keep_last=1",
            "faults.max_skipped_updates=4",
        )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]


def test_a_step_that_was_passed_over_is_made_up_for_by_the_next_that_learns(
    tmp_path: Path,
) -> None:
    kept = train_with_skips(
        tmp_path, (4,), "total_steps=9", "checkpoint.keep_last=9", "faults.max_skipped_updates=4"
    )
    assert kept == [f"step_{step:06d}" for step in (2, 5, 6, 8, 9)]
