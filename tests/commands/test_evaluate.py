"""What `rlstack eval` reads of a run directory."""

import asyncio
from pathlib import Path

from rlstack.commands.evaluate import num_updates
from rlstack.config.model import ModelConfig
from rlstack.run.checkpoint import Checkpoints, RunState


async def save_nothing(path: Path) -> None:
    path.mkdir(parents=True)


def updates_of(path: str) -> int:
    return num_updates(ModelConfig(path=path, dtype="float32", trust_remote_code=False))


def test_weight_schedules_are_evaluated_where_the_run_is(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in (4, 12):  # of which two updated the critic alone
        state = RunState(
            step=step,
            state={"policy_version": step - 2},
            best_value=None,
            best_step=None,
            versions={},
        )
        asyncio.run(checkpoints.save(state, save_nothing, rewards={}))
    assert updates_of(str(tmp_path)) == 10


def test_a_run_without_engines_has_no_updates_that_they_saw(tmp_path: Path) -> None:
    state = RunState(step=4, state={}, best_value=None, best_step=None, versions={})
    asyncio.run(Checkpoints(tmp_path, keep_last=1).save(state, save_nothing, rewards={}))
    assert updates_of(str(tmp_path)) == 0


def test_a_model_that_is_no_run_has_no_updates(tmp_path: Path) -> None:
    assert updates_of(str(tmp_path)) == 0
    assert updates_of("someone/some-model") == 0
