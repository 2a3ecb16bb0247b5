"""Whole runs of what learns from data alone, and of a pipeline, on the real stack."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlstack.run.checkpoint import damage
from tests.test_cli_runs import finish, kill, logged_steps, model, start, wait_until

__all__ = ["model"]

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]


def test_a_reward_model_learns_from_pairs_and_features(model: Path, tmp_path: Path) -> None:
    """The better response is the longer one, in `train` as in `test`."""
    for name, count in (("train", 40), ("test", 21)):
        rows = [
            {
                "prompt": f"How many {name} for {number}?\n",
                "chosen": "7" * (number % 9 + 4),
                "rejected": "7" * (number % 3 + 1),
                "margin": 1.0,
                "chosen_features": [number % 4, 0.5],
                "rejected_features": [number % 3, 0.5],
            }
            for number in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = start(
        "reward_model",
        "data.train=[{type: file, path: train.jsonl}]",
        "data.eval=[{type: file, path: test.jsonl}]",
        "data.prompts_per_step=8",
        "data.max_prompt_tokens=64",
        "max_response_tokens=16",
        "loss.margin_scale=0.5",
        "epochs=2",
        "evaluation.every=5",
        "checkpoint.keep_best=eval/accuracy",
        "placement.trainer_ranks=2",
        "placement.device=cpu",
        "trainer.learning_rate=0.003",
        f"model.path={model}",
        "run_dir=scored",
        cwd=tmp_path,
    )
    output = finish(run)
    assert run.returncode == 0, output
    assert f"model: {tmp_path}/scored/export" in output
    run_dir = tmp_path / "scored"
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]
    assert [row["step"] for row in metrics] == list(range(11))
    assert metrics[0]["eval/accuracy"] == 0.5
    assert metrics[-1]["eval/accuracy"] > 0.9
    assert metrics[-1]["eval/score_length_correlation"] > 0.5
    assert metrics[-1]["reward_model/accuracy"] > 0.9
    head = json.loads((run_dir / "export/feature_head.json").read_text())
    assert head["stds"][1] == 1.0  # this feature says nothing
    assert head["weights"][1] == 0.0
    assert head["weights"][0] > 0.0
    assert "Accuracy by confidence" in (run_dir / "report.html").read_text()


CONVERSATIONS = [
    [
        {"role": "user", "content": f"What is {number} and 1?"},
        {"role": "assistant", "content": f"It is {number + 1}."},
        {"role": "user", "content": "Are you sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    for number in range(21)
]
SFT = [
    "data.train=[{type: file, path: train.jsonl}]",
    "data.eval=[{type: file, path: test.jsonl}]",
    "data.prompts_per_step=4",
    "data.max_prompt_tokens=128",
    "max_response_tokens=12",
    "epochs=5",
    "evaluation.every=3",
    "checkpoint.every=2",
    "placement.trainer_ranks=2",
    "placement.device=cpu",
    "trainer.learning_rate=0.001",
    "trainer.schedule.name=linear",
    "trainer.max_tokens_per_microbatch=150",
]
STEPS = 20  # 5 epochs of 16 rows, 4 at a time


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data, and in `whole` a run of `sft` that nothing interrupted."""
    folder = tmp_path_factory.mktemp("sft")
    for name, rows in (("train", CONVERSATIONS[:16]), ("test", CONVERSATIONS[16:])):
        lines = [json.dumps({"messages": turns}) for turns in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    run = start("sft", *SFT, f"model.path={model}", "run_dir=whole", cwd=folder)
    output = finish(run)
    assert run.returncode == 0, output
    assert f"model: {folder}/whole/export" in output
    return folder


def test_sft_evaluates_learns_and_knows_its_schedule(folder: Path) -> None:
    metrics = [json.loads(line) for line in (folder / "whole/metrics.jsonl").open()]
    assert [row["step"] for row in metrics] == list(range(STEPS + 1))
    assert {row["step"]: "eval/loss" in row for row in metrics} == {
        step: step % 3 == 0 or step == STEPS for step in range(STEPS + 1)
    }
    assert metrics[-1]["eval/loss"] < metrics[0]["eval/loss"]
    assert metrics[-1]["eval/token_accuracy"] > metrics[0]["eval/token_accuracy"]
    # The schedule knows how many steps the epochs make.
    rates = [row["policy/learning_rate"] for row in metrics[1:]]
    assert rates == pytest.approx([0.001 * (STEPS - step) / STEPS for step in range(STEPS)])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs to mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def resize(disk: Path, num_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(disk)], check=True)


def test_a_full_disk_keeps_what_is_whole_and_the_same_command_goes_on(
    model: Path, folder: Path, small_disk: Path
) -> None:
    run_dir, saved = small_disk / "run", folder / "whole/checkpoints/step_000020"
    size = sum(file.stat().st_size for file in saved.rglob("*"))
    resize(small_disk, int(2.5 * size))
    given = ["sft", *SFT, "checkpoint.keep_last=99", f"model.path={model}"]
    given += [f"run_dir={run_dir}", "resume=auto"]
    run = start(*given, cwd=folder)
    output = finish(run)
    assert run.returncode == 2, output
    assert "Traceback" not in output
    assert re.search(r"could not write .*/step_000006: .*newest whole one is .*/step_0+4", output)
    assert [damage(path) for path in (run_dir / "checkpoints").glob("step_*")] == [None, None]

    resize(small_disk, 30 * size)
    run = start(*given, cwd=folder)
    output = finish(run)
    assert run.returncode == 0, output
    assert "resuming from" in output
    assert logged_steps(run_dir) == list(range(STEPS + 1))
    weights = "export/model.safetensors"
    assert (run_dir / weights).read_bytes() == (folder / "whole" / weights).read_bytes()


def test_a_killed_pipeline_goes_on_and_then_has_nothing_to_do(model: Path, folder: Path) -> None:
    """Its first stage is the same `sft`, and ends with the same bits."""
    stages = [
        {"name": "warm", "command": "sft", "arguments": [*SFT, f"model.path={model}"]},
        {"name": "halfway", "command": "merge", "arguments": [str(model), "${stage:warm}"]},
    ]
    (folder / "own/experiment").mkdir(parents=True)
    (folder / "own/experiment/short.yaml").write_text(
        f"# @package _global_\nstages: {json.dumps(stages)}\n"
    )
    own = ("--config-dir", str(folder / "own"), "experiment=short")
    run = start("pipeline", *own, "run_dir=run", cwd=folder)
    warm = folder / "run/warm"
    wait_until(lambda: any(warm.glob("checkpoints/step_*")), run)
    kill(run)
    done_before = max(int(path.name[5:]) for path in (warm / "checkpoints").glob("step_*"))
    assert done_before < STEPS, "it was to be killed on the way"

    run = start("pipeline", "resume=run", cwd=folder)
    output = finish(run)
    assert run.returncode == 0, output
    assert "pipeline 1/2: warm (sft): resume" in output
    assert logged_steps(warm) == list(range(STEPS + 1))
    weights = "export/model.safetensors"
    assert (warm / weights).read_bytes() == (folder / "whole" / weights).read_bytes()
    ours, theirs, both = (
        load_file(folder / "model.safetensors")
        for folder in (warm / "export", model, folder / "run/halfway/export")
    )
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, (ours[name] + theirs[name]) / 2)

    run = start("pipeline", *own, "run_dir=run", cwd=folder)
    output = finish(run)
    assert run.returncode == 0, output
    assert "pipeline 1/2: warm (sft): done already" in output
    assert "pipeline 2/2: halfway (merge): done already" in output
