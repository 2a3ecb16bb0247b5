"""Every rollout is one readable object, whatever the model wrote."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rlstack.config.tracking import TrackingConfig
from rlstack.run import jsonl
from rlstack.run.rollout_log import RolloutLog, write_rollouts
from rlstack.types import FinishReason, Group, Prompt, Rollout, Score, Turn, TurnRecord

PROMPT = Prompt(
    prompt_id="sums:7",
    data_source="sums",
    text="3 + 4 = ?\n> ",
    token_ids=np.array([1, 2]),
    answer="7",
    reward=None,
    metadata={},
)


def rollout(index: int, text: str, *, versions: list[int], mask: list[bool]) -> Rollout:
    return Rollout(
        prompt=PROMPT,
        sample_index=index,
        text=text,
        response_ids=np.arange(len(mask)),
        logprobs=np.array([-1.0, -2.0, -9.0][: len(mask)], dtype=np.float32),
        loss_mask=np.array(mask, dtype=np.bool_),
        finish_reason=FinishReason.STOP,
        policy_versions=np.array(versions, dtype=np.int32),
    )


def test_a_record_says_everything_about_its_rollout(tmp_path: Path) -> None:
    group = Group(
        number=0,
        prompt=PROMPT,
        rollouts=(
            rollout(0, "é\u2028\x00 7", versions=[4, 5, 5], mask=[True, True, False]),
            rollout(1, "", versions=[], mask=[]),
        ),
        scores=(
            Score(value=1.0, parts={"exact_match": 1.0}, extracted_answer="7"),
            Score(value=None, errors=("exact_match: timed out after 2 s",)),
        ),
    )
    write_rollouts([group], run_dir=tmp_path, step=12)
    first, empty = jsonl.read(tmp_path / "rollouts" / "step_000012.jsonl")
    assert first == {
        "step": 12,
        "prompt_id": "sums:7",
        "data_source": "sums",
        "prompt": "3 + 4 = ?\n> ",
        "response": "é\u2028\x00 7",
        "turns": [],
        "answer": "7",
        "extracted_answer": "7",
        "reward": 1.0,
        "parts": {"exact_match": 1.0},
        "turn_rewards": [],
        "errors": [],
        "finish_reason": "stop",
        "response_tokens": 3,
        "policy_version_first": 4,
        "policy_version_last": 5,
        "mean_logprob": -1.5,  # the token that the policy did not write is left out
    }
    assert empty["reward"] is None
    assert empty["errors"] == ["exact_match: timed out after 2 s"]
    assert empty["policy_version_first"] is None
    assert empty["mean_logprob"] is None


def test_the_turns_of_an_episode_are_kept(tmp_path: Path) -> None:
    answer = Turn(observation="4", role="tool", reward=0.5, tool_calls=1)
    played = replace(
        rollout(0, "7", versions=[1, 1, 1], mask=[True, False, True]),
        turns=(
            TurnRecord(action="calculate", end=1, answer=answer),
            TurnRecord(action="7", end=3, answer=None),
        ),
    )
    group = Group(number=0, prompt=PROMPT, rollouts=(played,), scores=(Score(value=1.0),))
    write_rollouts([group], run_dir=tmp_path, step=1)
    (record,) = jsonl.read(tmp_path / "rollouts" / "step_000001.jsonl")
    first, last = record["turns"]
    assert (first["action"], first["end"], first["answer"]["observation"]) == ("calculate", 1, "4")
    assert (first["answer"]["role"], first["answer"]["reward"]) == ("tool", 0.5)
    assert last == {"action": "7", "end": 3, "answer": None}


def test_a_step_done_again_replaces_its_file(tmp_path: Path) -> None:
    group = Group(
        number=0,
        prompt=PROMPT,
        rollouts=(rollout(0, "7", versions=[1], mask=[True]),),
        scores=(Score(value=1.0),),
    )
    write_rollouts([group, group], run_dir=tmp_path, step=3)
    write_rollouts([group], run_dir=tmp_path, step=3)
    write_rollouts([group], run_dir=tmp_path, step=3, evaluation=True)
    files = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert files == ["eval_000003.jsonl", "step_000003.jsonl"]
    assert len(jsonl.read(tmp_path / "rollouts" / "step_000003.jsonl")) == 1


def log(run_dir: Path, *, save_rollouts: bool = True, max_bytes: int = 2**30) -> RolloutLog:
    config = TrackingConfig(
        console=False,
        tensorboard=False,
        wandb_project=None,
        mlflow_experiment=None,
        save_rollouts=save_rollouts,
        max_rollouts_gib=max_bytes / 2**30,
    )
    return RolloutLog(run_dir, config)


ONE = Group(
    number=0,
    prompt=PROMPT,
    rollouts=(rollout(0, "7", versions=[1], mask=[True]),),
    scores=(Score(value=1.0),),
)


def test_beyond_the_limit_the_oldest_of_training_are_removed(tmp_path: Path) -> None:
    write_rollouts([ONE], run_dir=tmp_path, step=1)
    size = (tmp_path / "rollouts/step_000001.jsonl").stat().st_size
    rollouts = log(tmp_path, max_bytes=4 * size)
    rollouts.write([ONE], step=0, evaluation=True)
    for step in range(1, 7):
        rollouts.write([ONE], step=step, evaluation=False)
    kept = sorted(path.stem for path in (tmp_path / "rollouts").iterdir())
    assert kept == ["eval_000000", "step_000004", "step_000005", "step_000006"]
    log(tmp_path, max_bytes=1).write([ONE], step=7, evaluation=False)
    kept = sorted(path.stem for path in (tmp_path / "rollouts").iterdir())
    assert kept == ["eval_000000", "step_000007"]


def test_rollouts_that_nobody_wants_are_not_written(tmp_path: Path) -> None:
    log(tmp_path, save_rollouts=False).write([ONE], step=1, evaluation=False)
    assert list(tmp_path.iterdir()) == []
