"""`rlstack rewards new`: the files that a reward of one's own starts from."""

import keyword
import shlex
from importlib.util import find_spec
from pathlib import Path

from rewards.load import register_rewards
from rewards.registry import REWARDS, ROW
from rlstack.errors import RewardError

PLUGIN = '''"""Reward `{name}`."""

from rewards.registry import register
from rlstack.types import RewardRequest


@register("{name}")
def {name}(request: RewardRequest, *, mark: float = 1.0) -> float | None:
    """`mark` if the response holds the reference answer, else 0.0; None without an answer."""
    if request.answer is None:
        return None  # cannot be judged, which is not 0
    return mark if request.answer in request.response else 0.0
'''

PLUGIN_TEST = '''"""Reward `{name}` on responses that are right, wrong and impossible to judge."""

from {name} import {name}
from rlstack.types import RewardRequest


def test_right() -> None:
    assert {name}(RewardRequest(prompt="2+3=", response="It is 5.", answer="5")) == 1.0


def test_wrong() -> None:
    assert {name}(RewardRequest(prompt="2+3=", response="It is 6.", answer="5"), mark=2.0) == 0.0


def test_no_reference_answer() -> None:
    assert {name}(RewardRequest(prompt="2+3=", response="It is 5.")) is None
'''


def write_new_reward(name: str, *, directory: Path) -> None:
    """Write a plugin called `name` and its test, and print what to do next.

    Raises:
        RewardError: if the name is taken or cannot be one, or a file is there already.
    """
    register_rewards([])
    if not name.isidentifier() or keyword.iskeyword(name) or name == ROW:
        raise RewardError(
            f"{name!r} cannot be the name of a new reward: choose a Python name, like short_enough."
        )
    if name in REWARDS.known_names():
        raise RewardError(f"there is a reward {name!r} already. Choose another name.")
    if find_spec(name) is not None:
        raise RewardError(f"{name}.py would hide the Python module {name!r}. Choose another name.")
    files = {directory / f"{name}.py": PLUGIN, directory / f"test_{name}.py": PLUGIN_TEST}
    for path in files:
        if path.exists():
            raise RewardError(f"{path} exists already. Choose another name or --directory.")
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text.format(name=name), encoding="utf-8")
    plugin, test = files
    print(f"wrote {plugin} and {test}. Next:")
    print(f"  python -m pytest {shlex.quote(str(test))}")
    print(f"  rlstack rewards test {name} --plugin {shlex.quote(str(plugin))} --rows ROWS.jsonl")
    print(
        f"  rlstack rl ... 'reward.plugins=[{plugin}]' "
        f"'reward.components=[{{name: {name}, params: {{mark: 1.0}}}}]'"
    )
