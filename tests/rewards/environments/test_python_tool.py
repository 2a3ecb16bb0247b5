"""The Python tool, run in the real sandbox."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from rewards.environments.python_tool import MAX_CALLS
from rewards.environments.registry import ENVIRONMENTS, build
from rlstack.errors import EnvironmentSetupError
from rlstack.types import Task, Turn


def call(name: str, arguments: Mapping[str, object]) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def python(code: str) -> str:
    return call("python", {"code": code})


def answered(action: str, **params: object) -> Turn:
    environment = build("python_tool", params)
    environment.reset(Task(prompt="p"))
    return environment.step(action)


def test_a_program_runs_and_the_answer_without_a_call_ends_the_episode() -> None:
    environment = build("python_tool", {})
    assert environment.reset(Task(prompt="What is 17 * 23?")) is None
    turn = environment.step(python("print(17 * 23)"))
    assert turn == Turn(observation="391", role="tool", tool_calls=1)
    assert environment.step(r"\boxed{391}") == Turn(done=True)


def test_several_calls_of_an_action_are_answered_in_their_order() -> None:
    turn = answered(python("print(1)") + call("calculator", {"expression": "1 + 1"}))
    assert turn == Turn(observation="1\n\n2", role="tool", tool_calls=2)


@pytest.mark.parametrize(
    ("action", "observation"),
    [
        (python("1 / 0"), "ZeroDivisionError: division by zero"),
        (python("print('so far')\nraise SystemExit(3)"), "It printed:\nso far"),
        (python("raise SystemExit(3)"), "Error: the program ended with exit code 3"),
        (call("calculator", {"expression": "1 / 0"}), "Error: division by zero"),
        (call("browser", {}), "Error: no tool 'browser'; the tools are python, calculator"),
        (call("python", {"source": "1"}), 'Error: python takes {"code": "text"} and nothing else'),
        (call("python", {"code": 1}), 'Error: python takes {"code": "text"}'),
        ("<tool_call>1 + 1</tool_call>", "Error: not JSON"),
    ],
)
def test_what_fails_is_explained_and_counted(action: str, observation: str) -> None:
    turn = answered(action)
    assert observation in turn.observation
    assert (turn.done, turn.tool_calls, turn.tool_errors) == (False, 1, 1)


def test_a_program_that_prints_nothing_is_no_error() -> None:
    turn = answered(python("x = 1"))
    assert turn.observation == "The program printed nothing."
    assert turn.tool_errors == 0


def test_an_endless_program_is_stopped_and_the_next_one_runs() -> None:
    environment = build("python_tool", {"time_limit_s": 0.5})
    assert "stopped after 0.5 s" in environment.step(python("while True: pass")).observation
    assert environment.step(python("print(2)")).observation == "2"


def test_too_many_calls_are_not_carried_out() -> None:
    turn = answered(call("calculator", {"expression": "1"}) * (MAX_CALLS + 2))
    assert (turn.tool_calls, turn.tool_errors) == (MAX_CALLS + 2, 2)
    assert turn.observation.endswith(f"only the first {MAX_CALLS} calls were carried out")


def test_fenced_blocks_are_calls_if_asked() -> None:
    turn = answered("```python\nprint(5)\n```", tools=["python"], calls="fenced")
    assert turn.observation == "5"
    assert answered("```python\nprint(5)\n```").done


def test_fenced_blocks_cannot_name_a_calculator() -> None:
    with pytest.raises(EnvironmentSetupError, match="calls=fenced knows no tool but python"):
        ENVIRONMENTS.bind("python_tool", {"calls": "fenced"})()


def test_the_calls_that_the_experiment_shows_the_model_work() -> None:
    experiment = Path(__file__).parents[3] / "conf" / "experiment" / "python_tool_math.yaml"
    prompt = yaml.safe_load(experiment.read_text())["data"]["system_prompt"]
    turn = answered(prompt)
    assert turn == Turn(observation="391\n\n391", role="tool", tool_calls=2)
