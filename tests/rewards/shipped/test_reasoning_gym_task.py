"""The tasks' own verifiers, on entries that the package itself generates."""

import pytest
import reasoning_gym as gym

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rewards.shipped.reasoning_gym_task import METADATA_KEY, reasoning_gym
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

TASKS = ("chain_sum", "countdown", "letter_counting", "simple_equations")


def request(task: str, response: str) -> RewardRequest:
    entry = gym.create_dataset(task, size=1, seed=3)[0]
    return RewardRequest(
        prompt=entry["question"],
        response=response.format(answer=entry["answer"]),
        answer=entry["answer"],
        metadata={METADATA_KEY: {"task": task, "entry": entry}},
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_tasks_own_answer_is_right_and_nonsense_is_not(task: str) -> None:
    right = request(task, " {answer}\n")
    assert reasoning_gym(right) == Score(value=1.0, extracted_answer=right.answer)
    wrong = reasoning_gym(request(task, "no idea")).value
    assert wrong is not None
    assert wrong < 0.1


def test_a_verifier_accepts_answers_other_than_the_stored_one() -> None:
    task = request("countdown", "({answer})")
    assert task.response != task.answer
    assert reasoning_gym(task).value == 1.0


def test_answer_pattern() -> None:
    reward = build("reasoning_gym", {"answer_pattern": "<answer>(.*?)</answer>"})
    tagged = request("chain_sum", "hm <answer> {answer} </answer>")
    assert reward(tagged) == Score(value=1.0, extracted_answer=tagged.answer)
    assert reward(request("chain_sum", "{answer}")) == Score(value=0.0)


def test_rows_of_another_source() -> None:
    with pytest.raises(RewardError, match=r"\(data source 'gsm8k'\) has no metadata\['reasoning"):
        reasoning_gym(RewardRequest(prompt="", response="5", data_source="gsm8k"))


def test_unknown_task() -> None:
    metadata = {METADATA_KEY: {"task": "chain_sums", "entry": {}}}
    with pytest.raises(RewardError, match="reasoning-gym has no task 'chain_sums'"):
        reasoning_gym(RewardRequest(prompt="", response="5", metadata=metadata))
