"""What reaches Hydra, what reaches us, and what a shell is offered."""

import pytest

from rlstack.commands.command_line import completion, hydra_arguments, resume_target
from rlstack.config.run import RLConfig
from rlstack.errors import ConfigError


def arguments(*given: str) -> list[str]:
    return hydra_arguments(list(given), schema=RLConfig)


def test_groups_flags_and_known_keys_pass_as_they_are() -> None:
    given = ["experiment=quickstart", "seed=1", "--cfg", "job", "~hydra.x"]
    assert arguments(*given) == given


@pytest.mark.parametrize("typo", ["learning_rate=1", "trainer.rate=2", "trainr.seed=2", "alg=grpo"])
def test_a_key_that_may_not_exist_is_left_to_validation(typo: str) -> None:
    assert arguments(typo) == [f"++{typo}"]


def test_a_group_of_the_users_own_is_not_a_typo() -> None:
    assert arguments("--config-dir", "mine", "team=red") == ["--config-dir", "mine", "team=red"]


def test_run_dir_moves_hydras_own_files_too() -> None:
    assert arguments("run_dir=a b") == ["run_dir=a b", "hydra.run.dir=a b"]


def test_a_sweep_does_not_share_a_run_directory() -> None:
    with pytest.raises(ConfigError, match=r"run_dir: .*hydra\.sweep\.dir=x"):
        arguments("-m", "run_dir=x", "seed=1,2")


def test_resume_target() -> None:
    assert resume_target(["resume=runs/a"]) == "runs/a"
    assert resume_target(["resume=runs/a", "resume=auto"]) == "auto"
    assert resume_target(["resume=null"]) is None
    assert resume_target([]) is None


COMMANDS, APPS = ("quickstart", "rl", "sft"), ("rl", "sft")


def complete(line: str) -> object:
    return completion(["-sc", "query=bash"], line=line, commands=COMMANDS, apps=APPS)


def test_the_first_word_is_a_command() -> None:
    found = complete("rlstack q")
    assert found
    assert found.words == COMMANDS  # type: ignore[attr-defined]


def test_hydra_completes_an_app_and_never_sees_its_name() -> None:
    found = completion(
        ["rl", "-sc", "query=bash"], line="rlstack rl algorithm=", commands=COMMANDS, apps=APPS
    )
    assert found is not None
    assert (found.app, found.line) == ("rl", "rlstack algorithm=")
    assert found.arguments == ("-sc", "query=bash")


def test_no_completion_was_asked_for() -> None:
    assert completion(["rl", "seed=1"], line="", commands=COMMANDS, apps=APPS) is None
