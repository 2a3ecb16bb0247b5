"""Whole runs of the `rlstack` command as subprocesses, on the real stack."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
LONGER = [*OVERRIDES[:-1], "total_steps=7"]
"""There is time to be interrupted twice."""


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


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    return output


def logged_steps(run_dir: Path) -> list[int]:
    file = run_dir / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: step in logged_steps(run_dir), process)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not reached():
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
    run = start("rl", *LONGER, f"model.path={model}", "run_dir=whole", cwd=folder)
    output = finish(run)
    assert run.returncode == 0, output
    return folder / "whole"


def test_a_run_leaves_everything_that_is_promised(uninterrupted: Path) -> None:
    assert logged_steps(uninterrupted) == list(range(8))
    for name in ("config.yaml", "report.html", "timeline.jsonl", "export/model.safetensors"):
        assert (uninterrupted / name).stat().st_size > 0, name
    steps = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert steps == ["step_000006", "step_000007"]
    last = json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["mismatch/logprob_difference_max"] < 1e-4
    for name in ("reward/mean", "policy/entropy", "policy/grad_norm", "eval/pass@1", "time/step_s"):
        assert name in last


def kill(run: subprocess.Popen[str]) -> None:
    """SIGKILL, as a scheduler or the kernel's memory killer does it."""
    children = descendants(run)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    # Two helpers of Ray's notice only after a while that their parent is gone; they hold nothing.
    assert_all_gone(children, except_names=("ray::DashboardAgent", "ray::RuntimeEnvAgent"))


def test_killed_stopped_and_resumed_equals_uninterrupted(
    model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "broken"
    run = start("rl", *LONGER, f"model.path={model}", "run_dir=broken", cwd=tmp_path)
    wait_for_step(run_dir, 3, run)  # checkpoints are made every 2 steps
    kill(run)
    reached = logged_steps(run_dir)[-1]

    run = start("rl", "resume=broken", cwd=tmp_path)
    wait_for_step(run_dir, reached + 1, run)
    children = descendants(run)
    run.send_signal(signal.SIGTERM)
    output = finish(run)
    assert run.returncode == 0, output
    assert f"rlstack rl resume={run_dir}" in output
    assert_all_gone(children)
    last = logged_steps(run_dir)[-1]
    assert last < 7, "it was to be stopped on the way"
    assert (run_dir / "checkpoints" / f"step_{last:06d}" / "state.json").is_file()

    run = start("rl", "resume=broken", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    assert logged_steps(run_dir) == list(range(8))
    weights = "export/model.safetensors"
    assert (run_dir / weights).read_bytes() == (uninterrupted / weights).read_bytes()


GSM8K_ROWS = [
    ("Ann has 3 bags of 4 nuts. How many nuts?", "3*4 = <<3*4=12>>12 nuts.\n#### 12"),
    ("Bo reads 10 pages a day. Pages in 3 days?", "10*3 = <<10*3=30>>30 pages.\n#### 30"),
    ("Cy earns $1,200 a month. And in a year?", "1200*12 = <<1200*12=14400>>14400.\n#### 14,400"),
    ("Di had 9 pens and lost 2. How many now?", "9-2 = <<9-2=7>>7 pens.\n#### 7"),
]


def gsm8k_source(file: Path, rows: list[tuple[str, str]]) -> str:
    """Rows as the GSM8K files hold them, and the source that reads them."""
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
    file.write_text("\n".join(lines))
    columns = "{prompt: question, answer: answer}"
    pattern = "'#### (.*)'"
    return f"[{{type: file, path: {file}, columns: {columns}, answer_pattern: {pattern}}}]"


def test_gsm8k_rows_through_rl_and_eval(model: Path, tmp_path: Path) -> None:
    """With what the other runs leave out: a reference, bf16, recomputation, stop strings."""
    held_out = gsm8k_source(tmp_path / "test.jsonl", GSM8K_ROWS[3:])
    run = start(
        "rl",
        *OVERRIDES,
        "experiment=gsm8k_grpo",
        f"data.train={gsm8k_source(tmp_path / 'train.jsonl', GSM8K_ROWS[:3])}",
        f"data.eval={held_out}",
        "data.prompts_per_step=4",
        "data.max_prompt_tokens=256",
        "algorithm.kl.coef=0.05",
        "algorithm.entropy_coef=0.01",  # moves the policy also where no answer was right by chance
        "placement=disaggregated",
        "rollout.stop=[e]",
        "rollout.max_response_tokens=40",
        "trainer.gradient_checkpointing=true",
        "total_steps=2",
        f"model.path={model}",
        "run_dir=gsm8k",
        cwd=tmp_path,
    )
    output = finish(run)
    assert run.returncode == 0, output
    metrics = [json.loads(line) for line in (tmp_path / "gsm8k/metrics.jsonl").open()]
    assert metrics[-1]["policy/ref_kl"] > 0  # the first update has moved the policy
    assert metrics[-1]["mismatch/logprob_difference_max"] < 0.1  # bf16
    rollouts = [json.loads(line) for line in (tmp_path / "gsm8k/rollouts/step_000001.jsonl").open()]
    assert {row["answer"] for row in rollouts} <= {"12", "30", "14,400"}
    stopped = [row for row in rollouts if row["finish_reason"] == "stop"]
    assert stopped
    assert all("e" not in row["response"] for row in stopped)

    evaluation = start(
        "eval",
        "reward=math",
        f"data.eval={held_out}",
        "data.max_prompt_tokens=256",
        "placement.device=cpu",
        "rollout.max_response_tokens=24",
        "rollout.kv_cache_gib=1",
        "evaluation.num_samples=4",
        "model.path=gsm8k",
        "run_dir=evaluated",
        cwd=tmp_path,
    )
    output = finish(evaluation)
    assert evaluation.returncode == 0, output
    values = json.loads((tmp_path / "evaluated/evaluation.json").read_text())
    assert {"eval/pass@1", "eval/pass@4", "eval/maj@4"} <= set(values)
    assert f"eval/pass@1: {values['eval/pass@1']:.4f}" in output


ECHO = """
from rewards.environments.registry import register_environment
from rlstack.types import Task, Turn

@register_environment("echo")
class Echo:
    def __init__(self, *, turns: int) -> None:
        self.turns, self.said = turns, []

    def reset(self, task: Task) -> None:
        if task.seed % 8 == 0:
            raise LookupError("no board")

    def step(self, action: str) -> Turn:
        self.said.append(action)
        if len(self.said) == 2 and action.startswith("x"):
            raise ValueError("no x, please")
        short = float(len(action) < 4)
        return Turn(observation="go on", done=len(self.said) == self.turns, reward=short)
"""


METHOD = """
import torch

from rlstack.algorithms.plugins import register_advantage, register_policy_loss
from rlstack.batch import TokenBatch

@register_advantage("three")
def three(batch: TokenBatch, *, value: float) -> torch.Tensor:
    return torch.where(batch.rewards.isnan(), 0.0, value)

@register_policy_loss("level")
def level(logprobs, old_logprobs, advantages, loss_mask, *, at: float):
    return at - advantages * (logprobs - logprobs.detach())
"""


def test_two_steps_of_episodes(model: Path, tmp_path: Path) -> None:
    """Several turns a rollout through the whole loop, with an environment that may fail.

    Its method is of a plugin: the advantage in the driver, the loss in the ranks.
    """
    (tmp_path / "echo.py").write_text(ECHO)
    (tmp_path / "method.py").write_text(METHOD)
    run = start(
        "rl",
        *OVERRIDES,
        "environment=reasoning_gym_retry",
        "environment.name=echo",
        "environment.params={turns: 3}",
        "environment.max_turns=3",
        "environment.max_observation_tokens=16",
        "environment.num_workers=1",
        "reward=environment",
        "reward.plugins=[echo.py]",
        "algorithm.plugins=[method.py]",
        "algorithm/advantage=plugin",
        "algorithm.advantage.function=three",
        "algorithm.advantage.params={value: 3.0}",
        "algorithm/policy_loss=plugin",
        "algorithm.policy_loss.function=level",
        "algorithm.policy_loss.params={at: 2.5}",
        "algorithm/correction=none",
        "rollout.max_response_tokens=64",
        f"rollout.stop=[{','.join('abcdefghijklm')}]",
        "evaluation.every=0",
        "checkpoint.every=0",
        "total_steps=2",
        f"model.path={model}",
        "run_dir=episodes",
        cwd=tmp_path,
    )
    output = finish(run)
    assert run.returncode == 0, output
    for values in map(json.loads, (tmp_path / "episodes/metrics.jsonl").open()):
        assert values["mismatch/logprob_difference_max"] < 1e-4
        assert values["policy/grad_norm"] > 0
        assert values["rollout/num_turns"] > 1.5
        assert values["advantage/max"] == 3.0
        assert values["policy/loss"] == pytest.approx(2.5)
        assert values["rollout/observation_tokens"] > 0
    rows = [json.loads(line) for line in (tmp_path / "episodes/rollouts/step_000002.jsonl").open()]
    for row in rows:
        answers = [turn["answer"] for turn in row["turns"] if turn["answer"] is not None]
        if row["finish_reason"] == "error":
            problem = "ValueError: no x, please" if row["turns"] else "LookupError: no board"
            assert row["errors"][0] == f"environment: {problem}"
            assert row["reward"] is None
        else:
            assert row["reward"] == sum(answer["reward"] for answer in answers)
    assert any(row["response_tokens"] == 0 for row in rows)  # nothing but the prompt to train on
    assert '<pre class="tool">go on</pre>' in (tmp_path / "episodes/report.html").read_text()
