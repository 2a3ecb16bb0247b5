"""Environments are plain classes: registered by name, bound with checked parameters, playable."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rewards.environments.registry import (
    EnvironmentSpec,
    bind,
    build,
    checked_turn,
    load_environment,
    register_environment,
)
from rlstack.errors import RewardError
from rlstack.types import Task, Turn


@register_environment("test_countdown")
class Countdown:
    """Say anything `turns` times."""

    def __init__(self, *, turns: int, hint: str = "again") -> None:
        self.left, self.hint = turns, hint

    def reset(self, task: Task) -> str:
        return f"{self.left} to go with {task.prompt}"

    def step(self, action: str) -> Turn:
        self.left -= 1
        return Turn(observation=self.hint, done=self.left == 0, reward=float(len(action)))


def test_one_is_played_by_hand() -> None:
    environment = build("test_countdown", {"turns": 2})
    assert environment.reset(Task(prompt="p")) == "2 to go with p"
    assert environment.step("abc") == Turn(observation="again", reward=3.0)
    assert environment.step("").done


def test_every_episode_has_an_environment_of_its_own() -> None:
    make = bind("test_countdown", {"turns": 1})
    first, second = make(), make()
    assert first.step("x").done
    assert second.step("x").done


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("test_countdwn", {}, "is unknown. Did you mean 'test_countdown'"),
        ("test_countdown", {}, "environment 'test_countdown' needs the parameter 'turns'"),
        ("test_countdown", {"turns": "many"}, "parameter 'turns': expected int, got 'many'"),
        ("test_countdown", {"turns": 1, "hnt": 1}, "no parameter 'hnt': did you mean 'hint'"),
    ],
)
def test_mistakes_are_named(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        bind(name, params)


class NoStep:
    def reset(self, task: Task) -> None: ...


class Positional:
    def __init__(self, turns: int) -> None: ...

    def reset(self, task: Task) -> None: ...

    def step(self, action: str) -> Turn:
        return Turn()


class Another(Countdown):
    """A second class for the name."""


class Needy(Countdown):
    """Of a package that is not there."""


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (NoStep, r"needs a method step\(self, action\)"),
        (Positional, r"expected __init__\(self, \*, <named params>\)"),
        (Another, "is registered twice"),
    ],
)
def test_what_is_no_environment_is_refused(target: type, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        register_environment("test_countdown")(target)


def test_a_package_that_is_missing_is_named_before_anything_starts() -> None:
    register_environment("test_needy", requires=("no_such_package",))(Needy)
    with pytest.raises(RewardError, match="pip install no-such-package"):
        bind("test_needy", {"turns": 1})


def test_a_plugin_file_registers_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from rewards.environments.registry import register_environment\n"
        "from rlstack.types import Turn\n"
        "@register_environment('test_from_file')\n"
        "class Mine:\n"
        "    def reset(self, task): return None\n"
        "    def step(self, action): return Turn(done=True)\n"
    )
    make = load_environment(EnvironmentSpec(name="test_from_file", params={}, plugins=(str(file),)))
    assert make().step("x").done


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "text", r"step returned str; expected a rlstack\.types\.Turn"),
        (lambda: Turn(reward=float("nan")), "finite"),
        (lambda: Turn(reward="1"), "expected a number"),  # type: ignore[arg-type]
        (lambda: Turn(observation=1), "expected str"),  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_is_no_turn_is_explained(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        checked_turn(make())
