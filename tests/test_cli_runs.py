"""Whole runs of the `rlstack` command as subprocesses, on the real stack."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]

TASK = (
    "{type: reasoning_gym, task: chain_sum, size: %d, seed: %d, "
    "params: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}"
)
OVERRIDES = [
    f"data.train=[{TASK % (200, 1)}]",
    f"data.eval=[{TASK % (10, 2)}]",
    "data.prompts_per_step=8",
    "data.max_prompt_tokens=128",
    "placement.trainer_ranks=2",
    "placement.device=cpu",
    "rollout.num_samples=4",
    "rollout.max_response_tokens=12",
    "rollout.kv_cache_gib=1",
    "algorithm.updates_per_epoch=2",
    "trainer.learning_rate=0.001",
    "evaluation.every=2",
    "checkpoint.every=2",
    "reward.num_workers=1",
    "total_steps=5",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rlstack.cli", *arguments]


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, timeout_s: float = 240) -> str:
    output, _ = process.communicate(timeout=timeout_s)
    return output


def logged_steps(run_dir: Path) -> list[int]:
    file = run_dir / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while step not in logged_steps(run_dir):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.05)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_all_gone(processes: list[psutil.Process], *, except_names: tuple[str, ...] = ()) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    names = [process.name() for process in alive]
    assert not [name for name in names if name not in except_names], names


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path)
    return path


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = start("rl", *OVERRIDES, f"model.path={model}", "run_dir=whole", cwd=folder)
    output = finish(run)
    assert run.returncode == 0, output
    return folder / "whole"


def test_a_run_leaves_everything_that_is_promised(uninterrupted: Path) -> None:
    assert logged_steps(uninterrupted) == [0, 1, 2, 3, 4, 5]
    for name in ("config.yaml", "report.html", "timeline.jsonl", "export/model.safetensors"):
        assert (uninterrupted / name).stat().st_size > 0, name
    steps = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert steps == ["step_000004", "step_000005"]
    last = json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["mismatch/logprob_difference_max"] < 1e-4
    for name in ("reward/mean", "policy/entropy", "policy/grad_norm", "eval/pass@1", "time/step_s"):
        assert name in last


@pytest.mark.parametrize("kill_after", [3, 4], ids=["within-a-step", "after-a-checkpoint"])
def test_killed_and_resumed_equals_uninterrupted(
    model: Path, uninterrupted: Path, tmp_path: Path, kill_after: int
) -> None:
    run = start("rl", *OVERRIDES, f"model.path={model}", "run_dir=killed", cwd=tmp_path)
    wait_for_step(tmp_path / "killed", kill_after, run)
    children = descendants(run)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    # Two helpers of Ray's notice only after a while that their parent is gone; they hold nothing.
    assert_all_gone(children, except_names=("ray::DashboardAgent", "ray::RuntimeEnvAgent"))

    resumed = start("rl", "resume=killed", cwd=tmp_path)
    output = finish(resumed)
    assert resumed.returncode == 0, output
    assert logged_steps(tmp_path / "killed") == [0, 1, 2, 3, 4, 5]
    weights = "export/model.safetensors"
    assert (tmp_path / "killed" / weights).read_bytes() == (uninterrupted / weights).read_bytes()


def test_sigterm_saves_and_leaves_no_process(model: Path, tmp_path: Path) -> None:
    run = start(
        "rl",
        *OVERRIDES[:-1],
        "total_steps=1000",
        f"model.path={model}",
        "run_dir=stopped",
        cwd=tmp_path,
    )
    wait_for_step(tmp_path / "stopped", 1, run)
    children = descendants(run)
    run.send_signal(signal.SIGTERM)
    output = finish(run)
    assert run.returncode == 0, output
    assert "rlstack rl resume=stopped" in output
    assert_all_gone(children)
    last = logged_steps(tmp_path / "stopped")[-1]
    assert (tmp_path / "stopped" / "checkpoints" / f"step_{last:06d}" / "state.json").is_file()
