"""rewards/README.md from top to bottom: its files are written and its commands run, in order."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewards.environments.registry import ENVIRONMENTS
from rewards.registry import REWARDS
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from tests.config.test_load import CONF, composed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "rewards" / "README.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line)
    for kind, text in BLOCKS
    if kind == "bash"
    for line in text.splitlines()
    if line.startswith("rlstack rl ")
]


def run_line(line: str, folder: Path) -> str:
    python = shlex.quote(sys.executable)
    line = re.sub(r"^rlstack ", f"{python} -m rlstack.cli ", line)
    line = re.sub(r"^python ", f"{python} ", line)
    done = subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python", "jsonl", "yaml", "toml"}
    assert len(COMMANDS) == 2


def test_files_and_commands_work_in_their_order(tmp_path: Path) -> None:
    errors: list[str] = []
    for kind, text in BLOCKS:
        if kind == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            (tmp_path / name).write_text(text)
        elif kind == "jsonl":
            (tmp_path / "rows.jsonl").write_text(text)
        elif kind == "bash":
            for line in text.splitlines():
                if not line.startswith("rlstack rl "):
                    output = run_line(line, tmp_path)
                    errors += re.findall(r"^error in .*", output, re.MULTILINE)
    # The row without an answer is beyond two functions that were written for rows with one.
    assert all("their_rewards" in error or "verifiers" in error for error in errors), errors


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_training_commands_are_valid(words: list[str]) -> None:
    parse(RLConfig, composed("rl", *words[2:]))


def test_the_composition_is_valid() -> None:
    (text,) = (text for kind, text in BLOCKS if kind == "yaml")
    values: dict[str, Any] = composed("rl", "model.path=m", "experiment=gsm8k_grpo")
    values["reward"] |= yaml.safe_load(text)
    assert len(parse(RLConfig, values).reward.components) == 6


def test_every_recipe_is_named() -> None:
    (line,) = (paragraph for paragraph in PAGE.split("\n\n") if paragraph.startswith("Recipes:"))
    recipes = {path.stem for path in (CONF / "reward").glob("*.yaml")} - {"row"}
    assert set(re.findall(r"\w+", line.replace("reward=", ""))) - {"Recipes"} == recipes


def test_the_entry_point_groups_are_those_that_are_read() -> None:
    (text,) = (text for kind, text in BLOCKS if kind == "toml")
    groups = list(tomllib.loads(text)["project"]["entry-points"])
    assert groups == [REWARDS.entry_point_group, ENVIRONMENTS.entry_point_group]
