"""Registering, loading and building rewards; every message a plugin author may see."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import REWARDS, build, register
from rlstack.errors import RewardError
from rlstack.types import RewardRequest

REQUEST = RewardRequest(prompt="2+3=", response="five", answer="5")


@register("test_length")
def length_reward(
    request: RewardRequest,
    *,
    scale: float,
    limit: Annotated[int, Field(gt=0)] = 3,
    pattern: re.Pattern[str] | None = None,
) -> float:
    return scale * min(len(request.response), limit)


def test_a_registered_function_is_still_a_plain_function() -> None:
    assert length_reward(REQUEST, scale=0.5) == 1.5


def test_build_binds_parameters_and_leaves_defaults() -> None:
    assert build("test_length", {"scale": 2})(REQUEST) == 6.0
    assert build("test_length", {"scale": 2, "limit": 1})(REQUEST) == 2.0


def test_shipped_rewards_are_registered_by_importing_builtin() -> None:
    shipped = {"exact_match", "format", "math_answer", "overlong", "reasoning_gym"}
    assert shipped <= set(REWARDS.registered_names())
    assert REWARDS.info("math_answer").requires == ("math_verify",)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "math_anwser",
            {},
            r"reward 'math_anwser' is unknown\. Did you mean 'math_answer'\? "
            r"Known: .*exact_match, .*reward\.plugins",
        ),
        ("zzzzzz", {}, r"reward 'zzzzzz' is unknown\. Known: "),
        (
            "test_length",
            {"scale": 1, "limits": 2},
            r"reward 'test_length' has no parameter 'limits': did you mean 'limit'\? "
            r"Its parameters: scale, limit, pattern\.",
        ),
        ("test_length", {"scale": 1, "zz": 2}, r"has no parameter 'zz': remove it\."),
        (
            "test_length",
            {},
            r"reward 'test_length' needs the parameter 'scale' \(float\)\. Add it",
        ),
        (
            "test_length",
            {"scale": "much"},
            r"reward 'test_length', parameter 'scale': expected float, got 'much' "
            r"\(Input should be a valid number.*\)\. Correct it",
        ),
        ("test_length", {"scale": 1, "limit": 0}, r"'limit'.*got 0 .*greater than 0"),
        ("test_length", {"scale": 1, "pattern": "("}, r"'pattern'.*got '\('.*regular expression"),
    ],
)
def test_build_refuses(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        build(name, params)


def test_build_names_the_package_that_is_missing() -> None:
    @register("test_needs_package", requires=("no_such_package",))
    def needs_package(request: RewardRequest) -> float:
        return 0.0

    with pytest.raises(RewardError, match="pip install no-such-package"):
        build("test_needs_package", {})


def test_a_name_belongs_to_one_function() -> None:
    def other(request: RewardRequest) -> float:
        return 0.0

    with pytest.raises(
        RewardError, match=r"'test_length' is registered twice: .*test_registry\.py:\d+ and .*:\d+"
    ):
        register("test_length")(other)


def test_registering_the_same_function_again_is_fine() -> None:
    assert register("test_length")(length_reward) is length_reward


@pytest.mark.parametrize("name", ["", "row"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(RewardError, match=f"reward name {name!r} in .* is reserved"):
        register(name)(length_reward)


def test_signatures_that_cannot_be_bound_are_refused() -> None:
    def no_request() -> float:
        return 0.0

    def positional(request: RewardRequest, scale: float) -> float:
        return scale

    def anything(request: RewardRequest, **params: float) -> float:
        return 0.0

    for function in (no_request, positional, anything):
        with pytest.raises(RewardError, match=r"expected \(request, \*, <named params>\)"):
            register("test_bad_signature")(function)
    assert "test_bad_signature" not in REWARDS.registered_names()


PLUGIN = """
from rewards.registry import register
from rlstack.types import RewardRequest

@register("{name}")
def reward(request: RewardRequest, *, bonus: float = 0.0) -> float:
    return len(request.response) + bonus
"""


def test_plugin_file(tmp_path: Path) -> None:
    plugin = tmp_path / "my_rewards.py"
    plugin.write_text(PLUGIN.format(name="test_from_file"))
    REWARDS.load_plugin(str(plugin))
    REWARDS.load_plugin(str(plugin))
    assert build("test_from_file", {"bonus": 0.5})(REQUEST) == 4.5


def test_plugin_file_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "relative.py").write_text(PLUGIN.format(name="test_relative"))
    monkeypatch.chdir(tmp_path)
    REWARDS.load_plugin("relative.py")
    assert "test_relative" in REWARDS.registered_names()


def test_plugin_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "team_rewards"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "lengths.py").write_text(PLUGIN.format(name="test_from_module"))
    monkeypatch.syspath_prepend(str(tmp_path))
    REWARDS.load_plugin("team_rewards.lengths")
    assert build("test_from_module", {})(REQUEST) == 4


def test_two_plugins_may_share_a_file_name_but_not_a_reward_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(PLUGIN.format(name="test_contested"))
    REWARDS.load_plugin(str(tmp_path / "a/same.py"))
    with pytest.raises(RewardError, match=r"a/same\.py:\d+ and .*b/same\.py:\d+\. Rename"):
        REWARDS.load_plugin(str(tmp_path / "b/same.py"))


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_fails_is_named_with_the_cause(
    tmp_path: Path, source: str, cause: str
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(source)
    for _ in range(2):  # a failed import leaves nothing behind that would make the next one pass
        with pytest.raises(RewardError, match=rf"reward plugin '.*broken\.py' cannot .*{cause}"):
            REWARDS.load_plugin(str(plugin))


@pytest.mark.parametrize(
    ("plugin", "cause"),
    [("nowhere/absent.py", "no file .*absent.py"), ("no_such.module", "No module named 'no_such'")],
)
def test_a_plugin_that_is_absent(plugin: str, cause: str) -> None:
    with pytest.raises(RewardError, match=f"{plugin}.*{cause}"):
        REWARDS.load_plugin(plugin)


def test_rewards_import_without_heavy_packages() -> None:
    code = (
        "import sys, rewards.load, rewards.builtin\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'math_verify', 'reasoning_gym'}\n"
        "print(*(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_classes_that_cannot_be_bound_are_refused() -> None:
    class NoCall:
        pass

    class PositionalInit:
        def __init__(self, scale: float) -> None: ...

        def __call__(self, request: RewardRequest) -> float:
            return 0.0

    class CallWithMore:
        def __call__(self, request: RewardRequest, *, scale: float) -> float:
            return scale

    with pytest.raises(RewardError, match=r"test_registry\.py:\d+ is a class without __call__"):
        register("test_bad_class")(NoCall)
    for kind in (PositionalInit, CallWithMore):
        with pytest.raises(RewardError, match=r"expected __init__\(self, \*, <named params>\) and"):
            register("test_bad_class")(kind)
    assert "test_bad_class" not in REWARDS.registered_names()


def test_the_parameters_of_a_class_are_those_of_its_init() -> None:
    @register("test_class_params")
    class Scaled:
        def __init__(self, *, scale: Annotated[float, Field(gt=0)]) -> None:
            self.scale = scale

        def __call__(self, request: RewardRequest) -> float:
            return self.scale * len(request.response)

    assert build("test_class_params", {"scale": 2})(REQUEST) == 8.0
    with pytest.raises(RewardError, match=r"'test_class_params', parameter 'scale': .*got 0"):
        build("test_class_params", {"scale": 0})
    with pytest.raises(RewardError, match="has no parameter 'scales': did you mean 'scale'"):
        build("test_class_params", {"scales": 1})


INSTALLED = """
import sys
sys.path.insert(0, {site!r})
from rewards.registry import REWARDS, build
from rlstack.errors import RewardError
from rlstack.types import RewardRequest
print(sorted(REWARDS.installed), "team.rewards" in sys.modules)
request = RewardRequest(prompt="", response="four")
print(build("team_registered", {{"bonus": 1}})(request), build("team_plain", {{}})(request))
print(REWARDS.info("team_plain").summary)
for name in ("team_broken", "team_empty", "team_plane"):
    try:
        build(name, {{}})
    except RewardError as error:
        print(error)
"""


def test_installed_packages_declare_rewards(tmp_path: Path) -> None:
    package = tmp_path / "team"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rewards.py").write_text(PLUGIN.format(name="team_registered"))
    (package / "plain.py").write_text('def plain(request):\n    """Plain."""\n    return 2.0\n')
    (package / "broken.py").write_text("import no_such_module")
    metadata = tmp_path / "team_rewards-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: team-rewards\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[rlstack.rewards]\nteam_registered = team.rewards\nteam_plain = team.plain:plain\n"
        "team_broken = team.broken\nteam_empty = team\n"
        "[rlstack.environments]\nteam_elsewhere = team\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED.format(site=str(tmp_path))],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    names, scores, summary, broken, empty, unknown = done.stdout.splitlines()
    assert names == "['team_broken', 'team_empty', 'team_plain', 'team_registered'] False"
    assert (scores, summary) == ("5.0 2.0", "Plain.")
    assert broken.startswith(
        "reward 'team_broken' of the installed package 'team-rewards' cannot be imported from "
        "'team.broken': ModuleNotFoundError: No module named 'no_such_module'."
    )
    assert empty.startswith("reward 'team_empty': 'team' registers no reward of that name.")
    assert "Did you mean 'team_plain'?" in unknown
