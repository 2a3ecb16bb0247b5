"""PPO with all roles, and a reference that moves: whole runs as subprocesses."""

import json
import shutil
from pathlib import Path

import pytest

from tests.rewards.models.test_preference_model import write_reward_model
from tests.test_cli_runs import OVERRIDES, finish, logged_steps, model, start

__all__ = ["model"]

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]

PPO = [
    *OVERRIDES,
    "algorithm=pf_ppo",
    "algorithm.updates_per_epoch=2",
    "algorithm.kl.target=0.01",
    "algorithm.reward.clip=3",
    "critic.warmup_steps=1",
    "critic.trainer.learning_rate=0.001",
    "critic.trainer.zero_stage=2",
    "placement.critic.devices=own",
    "reward=model",
    "reward.model.scale=running",
    "reward.model.ensemble=mean_minus_std",
    "placement.reward_model.devices=own",
    "placement.trainer_ranks=1",
    "evaluation.every=0",
    "total_steps=3",
]


def test_ppo_resumed_equals_uninterrupted(model: Path, tmp_path: Path) -> None:
    checkpoints = [write_reward_model(tmp_path / f"rm{seed}", seed=seed) for seed in (0, 1)]
    chosen = [f"model.path={model}", f"reward.model.checkpoints=[{','.join(checkpoints)}]"]
    run = start("rl", *PPO, *chosen, f"critic.path={checkpoints[0]}", "run_dir=whole", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    metrics = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    assert [row["policy/version"] for row in metrics if "policy/version" in row][-1] == 2
    for row in metrics:
        assert row["critic/grad_norm"] > 0
        assert ("policy/grad_norm" in row) == (row["step"] > 1)  # first only the critic learns
        assert row["reward/judged_fraction"] == 1
    assert metrics[-1]["policy/ref_kl"] > 0
    spans = [json.loads(line) for line in (tmp_path / "whole/timeline.jsonl").open()]
    names = {span["name"] for span in spans}
    assert {"reference forward", "critic forward", "critic update", "policy update"} <= names
    assert overlap(spans, "critic update", "policy update")  # on devices of their own

    # As if it had been killed before the last step.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoints/step_000003", "export", "export_critic"):
        shutil.rmtree(tmp_path / "cut" / name)
    run = start("rl", "resume=cut", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    assert logged_steps(tmp_path / "cut") == [1, 2, 3]
    for name in ("export", "export_critic"):
        whole, cut = (tmp_path / run / name / "model.safetensors" for run in ("whole", "cut"))
        assert cut.read_bytes() == whole.read_bytes(), name


MOVING = [
    *OVERRIDES,
    "algorithm.kl.coef=0.05",
    "algorithm.entropy_coef=0.01",  # moves the policy also where no answer was right by chance
    "algorithm.updates_per_epoch=1",  # the KL is measured before the policy moves
    "reference.update.every=2",
    "evaluation.every=0",
    "checkpoint.every=1",
    "checkpoint.keep_last=3",
    "total_steps=5",
]


def test_a_reference_that_moves_is_the_policy_at_its_steps_and_resumes(
    model: Path, tmp_path: Path
) -> None:
    run = start("rl", *MOVING, f"model.path={model}", "run_dir=whole", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    metrics = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    kls = [row["policy/ref_kl"] for row in metrics]
    # It is the policy of the start in steps 1 and 2, that after step 2 in 3 and 4, after 4 in 5.
    assert [kl < 1e-8 for kl in kls] == [True, False, True, False, True], kls
    spans = [json.loads(line) for line in (tmp_path / "whole/timeline.jsonl").open()]
    assert [s["step"] for s in spans if s["name"] == "reference update"] == [2, 4]

    # As if it had been killed in step 4, whose reference is neither the first policy nor the last.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoints/step_000004", "checkpoints/step_000005", "export"):
        shutil.rmtree(tmp_path / "cut" / name)
    run = start("rl", "resume=cut", cwd=tmp_path)
    output = finish(run)
    assert run.returncode == 0, output
    assert logged_steps(tmp_path / "cut") == [1, 2, 3, 4, 5]
    for name in ("export", "checkpoints/step_000005/trainer/reference"):
        whole, cut = (tmp_path / run / name / "model.safetensors" for run in ("whole", "cut"))
        assert cut.read_bytes() == whole.read_bytes(), name


def overlap(spans: list[dict[str, float | str]], one: str, other: str) -> bool:
    """Whether the two ever run at the same time."""

    def times(name: str) -> list[tuple[float, float, float]]:
        keys = ("step", "start_s", "end_s")
        return [tuple(float(s[k]) for k in keys) for s in spans if s["name"] == name]  # type: ignore[misc]

    return any(
        a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in times(one) for b in times(other)
    )
