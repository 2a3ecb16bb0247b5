"""Whole runs of the commands that learn from data alone, as subprocesses, on the real stack."""

import json
from pathlib import Path

import pytest

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
    assert "model: scored/export" in output
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
SFT_OVERRIDES = [
    "data.train=[{type: file, path: train.jsonl}]",
    "data.eval=[{type: file, path: test.jsonl}]",
    "data.prompts_per_step=4",
    "data.max_prompt_tokens=128",
    "max_response_tokens=12",
    "epochs=2",
    "evaluation.every=3",
    "checkpoint.every=2",
    "placement.trainer_ranks=2",
    "placement.device=cpu",
    "trainer.learning_rate=0.001",
    "trainer.schedule.name=linear",
    "trainer.max_tokens_per_microbatch=150",
]


def write_conversations(folder: Path) -> None:
    for name, rows in (("train", CONVERSATIONS[:16]), ("test", CONVERSATIONS[16:])):
        lines = [json.dumps({"messages": turns}) for turns in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def test_sft_killed_and_resumed_equals_uninterrupted(model: Path, tmp_path: Path) -> None:
    write_conversations(tmp_path)
    run = start("sft", *SFT_OVERRIDES, f"model.path={model}", "run_dir=whole", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    assert "model: whole/export" in output
    metrics = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    assert [row["step"] for row in metrics] == list(range(9))
    assert {row["step"]: "eval/loss" in row for row in metrics} == {
        step: step in (0, 3, 6, 8) for step in range(9)
    }
    assert metrics[-1]["eval/loss"] < metrics[0]["eval/loss"]
    assert metrics[-1]["eval/token_accuracy"] > metrics[0]["eval/token_accuracy"]
    # The schedule knows how many steps the epochs make.
    rates = [row["policy/learning_rate"] for row in metrics[1:]]
    assert rates == pytest.approx([0.001 * (8 - step) / 8 for step in range(8)])

    run = start("sft", *SFT_OVERRIDES, f"model.path={model}", "run_dir=killed", cwd=tmp_path)
    wait_until((tmp_path / "killed/checkpoints/step_000004").exists, run)
    kill(run)
    run = start("sft", "resume=killed", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    assert logged_steps(tmp_path / "killed") == list(range(9))
    weights = "export/model.safetensors"
    assert (tmp_path / "killed" / weights).read_bytes() == (
        tmp_path / "whole" / weights
    ).read_bytes()
