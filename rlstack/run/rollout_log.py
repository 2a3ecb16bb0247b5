"""Rollouts as readable JSONL, one object a rollout."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rlstack.config.tracking import TrackingConfig
from rlstack.run import jsonl
from rlstack.types import Group, Rollout, Score


def write_rollouts(
    groups: Sequence[Group], *, run_dir: Path, step: int, evaluation: bool = False
) -> None:
    """Write RUN_DIR/rollouts/step_000012.jsonl (or eval_000012.jsonl), replacing an earlier one.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    folder = run_dir / "rollouts"
    folder.mkdir(exist_ok=True)
    name = f"{'eval' if evaluation else 'step'}_{step:06d}.jsonl"
    records = [
        _record(rollout, score, step=step)
        for group in groups
        for rollout, score in zip(group.rollouts, group.scores, strict=True)
    ]
    jsonl.write(folder / name, records)


class RolloutLog:
    """The rollouts of a run on disk, the newest up to `tracking.max_rollouts_gib`."""

    def __init__(self, run_dir: Path, config: TrackingConfig) -> None:
        self.run_dir = run_dir
        self.config = config

    def write(self, groups: Sequence[Group], *, step: int, evaluation: bool) -> None:
        """Write them, if they are wanted, and remove the oldest of training for their sake.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        if not self.config.save_rollouts:
            return
        write_rollouts(groups, run_dir=self.run_dir, step=step, evaluation=evaluation)
        sizes = {file: file.stat().st_size for file in (self.run_dir / "rollouts").glob("*.jsonl")}
        excess = sum(sizes.values()) - self.config.max_rollouts_gib * 2**30
        training = sorted(file for file in sizes if file.name.startswith("step_"))
        for file in training[:-1]:
            if excess <= 0:
                break
            file.unlink()
            excess -= sizes[file]


def _record(rollout: Rollout, score: Score, *, step: int) -> jsonl.Record:
    prompt, versions = rollout.prompt, rollout.policy_versions
    sampled = rollout.logprobs[rollout.loss_mask]
    return {
        "step": step,
        "prompt_id": prompt.prompt_id,
        "data_source": prompt.data_source,
        "prompt": prompt.text,
        "response": rollout.text,
        "turns": [asdict(turn) for turn in rollout.turns],
        "answer": prompt.answer,
        "extracted_answer": score.extracted_answer,
        "reward": score.value,
        "parts": dict(score.parts),
        "turn_rewards": list(score.turn_rewards),
        "errors": list(score.errors),
        "finish_reason": rollout.finish_reason.value,
        "response_tokens": len(rollout.response_ids),
        # A response without tokens has no version and no logprob.
        "policy_version_first": int(versions[0]) if len(versions) else None,
        "policy_version_last": int(versions[-1]) if len(versions) else None,
        "mean_logprob": float(sampled.mean()) if len(sampled) else None,
    }
