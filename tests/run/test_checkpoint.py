"""Checkpoints are whole or absent, and a failed one leaves the others alone."""

import asyncio
import errno
import json
from collections.abc import Callable
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


def two(run_dir: Path) -> Checkpoints:
    """Checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(run_dir, keep_last=2)
    save(checkpoints, 1)
    save(checkpoints, 2)
    return checkpoints


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("break_file", [Path.unlink, cut], ids=["missing", "cut"])
@pytest.mark.parametrize("name", ["trainer/weights", "state.json", "files.json", "rewards/memory"])
def test_of_a_damaged_checkpoint_the_file_is_named_and_an_older_one_is_used(
    tmp_path: Path, name: str, break_file: Callable[[Path], None]
) -> None:
    checkpoints = two(tmp_path)
    break_file(checkpoints.path(2) / name)
    assert checkpoints.latest()[1].step == 1
    (line,) = checkpoints.set_aside_damaged()
    assert str(checkpoints.path(2) / name) in line
    assert checkpoints.steps() == [1]
    assert (checkpoints.directory / "damaged_step_000002").is_dir()
    save(checkpoints, 2)
    assert checkpoints.steps() == [1, 2]


def test_what_is_damaged_takes_no_place_of_those_that_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 4)
    save(checkpoints, 9, best_step=4)
    cut(checkpoints.path(9) / "trainer/weights")
    checkpoints.set_aside_damaged()
    save(checkpoints, 5)
    assert checkpoints.latest()[1].step == 5


def test_where_no_checkpoint_is_whole_each_is_named_and_none_is_moved(tmp_path: Path) -> None:
    checkpoints = two(tmp_path)
    for step in (1, 2):
        (checkpoints.path(step) / "trainer/weights").unlink()
    assert checkpoints.set_aside_damaged() == []
    with pytest.raises(CheckpointError, match=r"step_000002/trainer/weights: is missing; .*000001"):
        checkpoints.latest()
    assert checkpoints.steps() == [1, 2]


def test_a_checkpoint_of_another_format_is_not_damaged(tmp_path: Path) -> None:
    checkpoints = two(tmp_path)
    (checkpoints.path(2) / "state.json").write_text(json.dumps({"format": FORMAT - 1}))
    (checkpoints.path(2) / "files.json").unlink()
    assert checkpoints.set_aside_damaged() == []
    with pytest.raises(CheckpointError, match="earlier version"):
        checkpoints.latest()


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
