"""Every example of the documentation works: it is run, or composed and checked, as it stands."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewards.combination import Component
from rewards.environments.registry import ENVIRONMENTS
from rewards.load import RewardSpec, load_reward
from rewards.registry import REWARDS
from rlstack.commands.command_line import hydra_arguments, resume_target
from rlstack.commands.merge import chosen_method, parser
from rlstack.commands.pipeline import prepare
from rlstack.config.load import dump, parse
from rlstack.config.pipeline import PipelineConfig
from rlstack.config.run import RLConfig
from rlstack.types import RewardRequest
from tests.config.test_load import APPS, CONF, composed
from tests.docs.pages import COMMANDS, PAGES, ROOT, Page, page

README = page("README.md")
MAX_README_LINES = 150
RUN = ("rlstack rewards ", "rlstack algorithms", "python ", "echo ")
"""Beginnings of the commands that are run in an empty folder, with the page's files."""
SET_UP = (["source", ".venv/bin/activate"], [".venv/bin/pre-commit", "install"])
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
KINDS = {"bash", "python", "jsonl", "yaml", "toml", "text"}
"""Of these, text is a drawing."""


def is_resumed(words: list[str]) -> bool:
    return words[0] == "rlstack" and resume_target(words[2:]) is not None


def unique(commands: list[list[str]]) -> list[list[str]]:
    return [words for i, words in enumerate(commands) if words not in commands[:i]]


COMPOSED = unique([w for w in COMMANDS if w[0] == "rlstack" and w[1] in APPS and not is_resumed(w)])
YAML = [(page, text) for page in PAGES for text in page.of_kind("yaml")]


def test_examples_were_found() -> None:
    assert ["make", "quickstart"] in README.commands()
    assert ["make", "test"] in README.commands()
    assert {words[1] for words in COMPOSED} == set(APPS)
    assert len(COMPOSED) >= 25
    assert len(YAML) == 4


def test_the_readme_keeps_to_its_length() -> None:
    assert len(README.text.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_checked(page: Page) -> None:
    assert {block.kind for block in page.blocks} <= KINDS


@pytest.mark.parametrize("words", unique(COMMANDS), ids=" ".join)
def test_every_command_is_one_that_is_checked(words: list[str]) -> None:
    if words[0] == "make":
        assert words[1] in TARGETS
    elif is_resumed(words):
        assert words[1] in set(APPS) - {"eval"}
    elif words[:2] == ["rlstack", "merge"]:
        assert callable(chosen_method(parser().parse_args(words[2:])))
    elif words not in SET_UP and words[:2] != ["rlstack", "report"]:
        assert words in COMPOSED or shlex.join(words).startswith(RUN)


@pytest.mark.parametrize("words", COMPOSED, ids=" ".join)
def test_a_training_command_is_valid(words: list[str]) -> None:
    _, name, *overrides = words
    parse(APPS[name], composed(name, *hydra_arguments(overrides, schema=APPS[name])))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_commands_of_a_page_work_in_their_order(page: Page, tmp_path: Path) -> None:
    errors: list[str] = []
    for block in page.blocks:
        if block.kind in ("python", "jsonl"):
            (tmp_path / block.file_name()).write_text(block.text)
        elif block.kind == "bash":
            for line in block.lines():
                if line.startswith(RUN):
                    output = run_line(line, tmp_path)
                    errors += re.findall(r"^error in .*", output, re.MULTILINE)
    # The row without an answer is beyond two functions that were written for rows with one.
    assert all("their_rewards" in error or "verifiers" in error for error in errors), errors


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


@pytest.mark.parametrize(("page", "text"), YAML, ids=[page.name for page, _ in YAML])
def test_configuration_is_valid(page: Page, text: str, tmp_path: Path) -> None:
    if text.startswith("# @package _global_\n"):
        check_experiment(text, tmp_path)
        return
    values: dict[str, Any] = composed("rl", "model.path=m", "experiment=gsm8k_grpo")
    ((group, written),) = yaml.safe_load(text).items()
    values[{"components": "reward", "train": "data"}[group]][group] = written
    checked = parse(RLConfig, values)
    if group == "components":
        assert len(checked.reward.components) == 6


def check_experiment(text: str, folder: Path) -> None:
    """Write the file that the second line names, and compose the command beside it."""
    path, command = text.splitlines()[1].removeprefix("# ").split(":  ")
    file = folder / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    _, name, *overrides, option, config_dir = shlex.split(command)
    assert option == "--config-dir"
    values = composed(name, *overrides, f"hydra.searchpath=[file://{folder / config_dir}]")
    if name == "pipeline":
        check_stages(values)
    else:
        assert parse(APPS[name], values)


def check_stages(values: Any) -> None:
    config = parse(PipelineConfig, values)
    ready = prepare(config)
    assert len(ready) == len(config.stages) >= 2


@pytest.mark.parametrize("name", ["rlhf_quickstart", "domain_experts"])
def test_a_shipped_pipeline_is_valid_and_every_stage_of_it(name: str) -> None:
    check_stages(composed("pipeline", f"experiment={name}"))


@pytest.mark.parametrize(("name", "stage"), [("pipelines", "policy"), ("results", "ppo")])
def test_what_is_added_to_a_stage_is_valid(name: str, stage: str) -> None:
    prose = page(f"docs/{name}.md").prose()
    (added,) = re.findall(r"`'(more={.*?})'`", " ".join(prose.split()))
    assert f"{stage}:" in added
    shipped = added.replace(f"{stage}:", "ppo:")
    check_stages(composed("pipeline", "experiment=rlhf_quickstart", shipped))


def test_the_plugin_scores(tmp_path: Path) -> None:
    (text,) = README.of_kind("python")
    plugin = tmp_path / "my_rewards.py"
    plugin.write_text(text)
    component = Component("short_enough", 0.1, {"limit": 200})
    reward = load_reward(RewardSpec(components=(component,), plugins=(str(plugin),)))
    short = reward(RewardRequest(prompt="p", response="r", response_tokens=10))
    long = reward(RewardRequest(prompt="p", response="r", response_tokens=201))
    assert short.value == pytest.approx(0.1)
    assert long.value == 0.0


def test_every_reward_recipe_is_named() -> None:
    paragraphs = page("docs/rewards.md").text.split("\n\n")
    (line,) = (paragraph for paragraph in paragraphs if paragraph.startswith("Recipes:"))
    recipes = {path.stem for path in (CONF / "reward").glob("*.yaml")} - {"row"}
    assert set(re.findall(r"\w+", line.replace("reward=", ""))) - {"Recipes"} == recipes


def test_the_entry_point_groups_are_those_that_are_read() -> None:
    (text,) = (text for page in PAGES for text in page.of_kind("toml"))
    groups = list(tomllib.loads(text)["project"]["entry-points"])
    assert groups == [REWARDS.entry_point_group, ENVIRONMENTS.entry_point_group]


def test_every_command_is_named_in_the_readme() -> None:
    usage = run_line("rlstack --help", ROOT)
    commands = set(re.findall(r"^  (\w+)", usage, re.MULTILINE))
    assert {"rl", "merge", "rewards"} <= commands
    assert set(re.findall(r"^\| `rlstack (\w+)` ", README.text, re.MULTILINE)) == commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    anchors = {other.path: other.anchors() for other in PAGES}
    for target in re.findall(r"\]\(([^)]+)\)", page.prose()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.path.parent / name).resolve() if name else page.path
        assert path.exists(), target
        assert not anchor or anchor in anchors[path], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Page) -> None:
    rooms = r"(?:rlstack|workers|rewards|conf|tests|tools|benchmarks|docs)"
    for path in re.findall(rf"`({rooms}/[\w/.]*)`", page.prose()):
        assert (ROOT / path).exists() or path == "tests/x/test_y.py", path


def test_named_keys_and_options_exist() -> None:
    keys = known_keys()
    options = {path.parent.name: set[str]() for path in CONF.glob("*/*.yaml")}
    for path in CONF.glob("*/*.yaml"):
        options[path.parent.name].add(path.stem)
    groups = {name.partition(".")[0] for name in keys}
    wrong: list[str] = []
    num_checked = 0
    for shown in PAGES:
        for code in re.findall(r"`([\w./]+(?:=[\w./-]+)?)`", shown.prose()):
            key, _, value = code.partition("=")
            is_option = key in options and value[:1].islower()  # not NAME, not ...
            is_key = "." in key and key.partition(".")[0] in groups and not key.endswith(".json")
            num_checked += is_option or is_key
            if (is_option and value not in options[key]) or (is_key and key not in keys):
                wrong.append(f"{shown.name}: {code}")
    assert wrong == []
    assert num_checked >= 50


def known_keys() -> set[str]:
    """Dotted names of all keys of the commands, with the roles that they may have."""
    source = "data.train=[{type: file, path: rows.jsonl}]"
    model = ("model.path=m", source)
    roles = ("algorithm=pf_ppo", "reward=model", "reward.model.checkpoints=[m]", "trainer=lora")
    commands: list[tuple[str, ...]] = [("rl", *model, *roles, "environment=python_tool")]
    commands += [(name, *model) for name in ("sft", "reward_model", "dpo", "rejection_sampling")]
    found = set[str]()
    for name, *overrides in commands:
        checked = parse(APPS[name], composed(name, *overrides, "evaluation.every=0"))
        found |= set(dotted(yaml.safe_load(dump(checked))))
    return found


def dotted(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")


def test_every_page_is_reached_from_the_index() -> None:
    index = page("docs/index.md")
    linked = {(ROOT / "docs" / t).resolve() for t in re.findall(r"\]\(([^)#]+)", index.prose())}
    assert {other.path for other in PAGES if other.path != index.path} <= linked
