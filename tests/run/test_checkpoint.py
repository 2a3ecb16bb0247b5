"""Checkpoints are whole or absent, and a failed one leaves the others alone."""

import asyncio
import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlstack.errors import CheckpointError
from rlstack.run.checkpoint import (
    FORMAT,
    Checkpoints,
    RunState,
    improves,
    load_rewards,
    load_state,
    write_folder,
)

STATE = RunState(
    step=1,
    state={"policy_version": 1, "kl_coef": 0.1, "sampler": {"taken": [3]}},
    best_value=None,
    best_step=None,
    versions={},
)

REWARDS = {"memory": b"\0state", "a/b c..": b""}


async def write_weights(directory: Path) -> None:
    directory.mkdir()
    (directory / "weights").write_bytes(b"w" * 100)


def save(checkpoints: Checkpoints, step: int, *, best_step: int | None = None) -> None:
    state = replace(STATE, step=step, best_step=best_step)
    asyncio.run(checkpoints.save(state, write_weights, rewards=REWARDS))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 7)
    path, state = checkpoints.latest()
    assert state == replace(STATE, step=7)
    assert (path / "trainer" / "weights").read_bytes() == b"w" * 100
    assert load_rewards(path) == REWARDS


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in range(1, 6):
        save(checkpoints, step, best_step=2 if step >= 2 else None)
    assert checkpoints.steps() == [2, 4, 5]


def test_a_full_disk_keeps_the_earlier_checkpoint_and_says_so(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 1)

    async def disk_full(directory: Path) -> None:
        directory.mkdir()
        (directory / "half").write_bytes(b"h")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"step_000002.*No space left.*step_000001"):
        asyncio.run(checkpoints.save(replace(STATE, step=2), disk_full, rewards={}))
    assert checkpoints.steps() == [1]
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step_000001"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "export"
    asyncio.run(write_folder(final, lambda folder: write_weights(folder / "a")))

    async def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"h")
        raise RuntimeError("rank 1:\n  Traceback\nOSError: No space left on device")

    with pytest.raises(CheckpointError, match=r"export: OSError: No space.*\d+ MiB"):
        asyncio.run(write_folder(final, fail))
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (final / "a" / "weights").exists()


def test_no_checkpoint_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no complete checkpoint.*checkpoint\.every"):
        Checkpoints(tmp_path, keep_last=1).latest()


@pytest.mark.parametrize(
    "text", ["{", "[]", json.dumps({"format": 99}), json.dumps({"format": FORMAT})]
)
def test_a_damaged_state_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load_state(tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_named_with_the_way_out(tmp_path: Path) -> None:
    earlier = {"format": 3, "step": 1, "sampler": {}, "policy_version": 1, "kl_coef": 0.1}
    (tmp_path / "state.json").write_text(json.dumps(earlier))
    with pytest.raises(CheckpointError, match=r"earlier version .* format 3, .* start a new one"):
        load_state(tmp_path)


@pytest.mark.parametrize(
    ("metric", "higher_is_better"),
    [
        ("eval/accuracy", True),
        ("eval/log_loss", False),
        ("eval/brier_loss", False),
        ("eval/calibration_error", False),
    ],
)
def test_which_of_two_values_is_better(metric: str, higher_is_better: bool) -> None:
    assert improves(metric, 0.5, None)
    assert improves(metric, 0.6, 0.5) is higher_is_better
    assert improves(metric, 0.4, 0.5) is not higher_is_better
