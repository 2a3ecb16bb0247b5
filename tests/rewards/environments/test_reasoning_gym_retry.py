import pytest
import reasoning_gym

from rewards.environments.registry import build
from rewards.shipped.reasoning_gym_task import METADATA_KEY
from rlstack.errors import DataError
from rlstack.types import Task


def task() -> Task:
    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=0)[0]
    return Task(
        prompt=entry["question"], metadata={METADATA_KEY: {"task": "chain_sum", "entry": entry}}
    )


def right(task: Task) -> str:
    return str(task.metadata[METADATA_KEY]["entry"]["answer"])


def test_a_wrong_answer_may_be_corrected_for_less() -> None:
    row = task()
    environment = build("reasoning_gym_retry", {"decay": 0.5})
    assert environment.reset(row) is None
    wrong = environment.step("wrong")
    assert not wrong.done
    assert "wrong is not correct" in wrong.observation
    corrected = environment.step(right(row))
    assert corrected.done
    assert wrong.reward + corrected.reward == pytest.approx(
        wrong.reward + 0.5 * (1.0 - wrong.reward)
    )


def test_the_first_try_earns_the_full_mark() -> None:
    row = task()
    environment = build("reasoning_gym_retry", {})
    environment.reset(row)
    turn = environment.step(right(row))
    assert (turn.done, turn.reward) == (True, 1.0)


def test_repeating_a_half_right_answer_earns_nothing_more() -> None:
    row = task()
    environment = build("reasoning_gym_retry", {"decay": 1.0})
    environment.reset(row)
    rewards = [environment.step(f"{right(row)} or so").reward for _ in range(3)]
    assert rewards[1:] == [0.0, 0.0]
    assert sum(rewards) + environment.step(right(row)).reward == pytest.approx(1.0)


def test_an_answer_in_another_form_is_asked_for_again() -> None:
    row = task()
    environment = build("reasoning_gym_retry", {"answer_pattern": "<answer>(.*?)</answer>"})
    environment.reset(row)
    assert "expected form" in environment.step(right(row)).observation
    assert environment.step(f"<answer>{right(row)}</answer>").done


def test_other_rows_are_refused() -> None:
    with pytest.raises(DataError, match="type=reasoning_gym"):
        build("reasoning_gym_retry", {}).reset(Task(prompt="p"))
