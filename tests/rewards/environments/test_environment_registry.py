"""Environments are plain classes: registered by name, bound with checked parameters, playable."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rewards.environments.registry import (
    ENVIRONMENTS,
    EnvironmentSpec,
    build,
    checked_turn,
    load_environment,
    register_environment,
)
from rlstack.errors import EnvironmentSetupError
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
    make = ENVIRONMENTS.bind("test_countdown", {"turns": 1})
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
    with pytest.raises(EnvironmentSetupError, match=message):
        ENVIRONMENTS.bind(name, params)


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
    with pytest.raises(EnvironmentSetupError, match=message):
        register_environment("test_countdown")(target)


def test_a_package_that_is_missing_is_named_before_anything_starts() -> None:
    register_environment("test_needy", requires=("no_such_package",))(Needy)
    with pytest.raises(EnvironmentSetupError, match="pip install no-such-package"):
        ENVIRONMENTS.bind("test_needy", {"turns": 1})


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


INSTALLED = """
import sys
sys.path.insert(0, {site!r})
from rewards.environments.registry import ENVIRONMENTS, EnvironmentSpec, build, load_environment
from rlstack.errors import EnvironmentSetupError
from rlstack.types import Turn
print(sorted(ENVIRONMENTS.installed), "game.environments" in sys.modules)
print(load_environment(EnvironmentSpec(name="game_registered", params={{}}))().step("x") == Turn())
print(build("game_plain", {{"turns": 2}}).turns, ENVIRONMENTS.info("game_plain").summary)
for name in ("game_broken", "game_empty", "game_plane"):
    try:
        build(name, {{}})
    except EnvironmentSetupError as error:
        print(error)
"""
GAMES = '''
from rewards.environments.registry import register_environment
from rlstack.types import Turn

class Plain:
    """Plain."""
    def __init__(self, *, turns: int) -> None:
        self.turns = turns
    def reset(self, task): ...
    def step(self, action):
        return Turn()

@register_environment("game_registered")
class Registered(Plain):
    def __init__(self) -> None: ...
'''


def test_installed_packages_declare_environments(tmp_path: Path) -> None:
    package = tmp_path / "game"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "environments.py").write_text(GAMES)
    (package / "broken.py").write_text("import no_such_module")
    metadata = tmp_path / "game_rewards-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: game\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[rlstack.environments]\ngame_registered = game.environments\n"
        "game_plain = game.environments:Plain\ngame_broken = game.broken\ngame_empty = game\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED.format(site=str(tmp_path))],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    names, registered, plain, broken, empty, unknown = done.stdout.splitlines()
    assert names == "['game_broken', 'game_empty', 'game_plain', 'game_registered'] False"
    assert (registered, plain) == ("True", "2 Plain.")
    assert broken.startswith(
        "environment 'game_broken' of the installed package 'game' cannot be imported from "
        "'game.broken': ModuleNotFoundError: No module named 'no_such_module'."
    )
    assert empty.startswith("environment 'game_empty': 'game' registers no environment of that")
    assert "Did you mean 'game_plain'?" in unknown


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
    with pytest.raises((TypeError, ValueError), match=message):
        checked_turn(make())
