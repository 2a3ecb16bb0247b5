"""The README's examples work: commands give valid configurations, the plugin scores."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from rewards.combination import Component
from rewards.load import RewardSpec, load_reward
from rlstack.commands.merge import chosen_method, parser
from rlstack.commands.pipeline import prepare
from rlstack.config.load import parse
from rlstack.config.pipeline import PipelineConfig
from rlstack.types import RewardRequest
from tests.config.test_load import APPS, SCHEMAS, composed

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
HYDRA_COMMANDS = [
    words
    for words in COMMANDS
    if words[0] == "rlstack" and words[1] in APPS and not words[2].startswith("resume=")
]
PLUGIN = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


def test_examples_were_found() -> None:
    assert ["make", "quickstart"] in COMMANDS
    assert ["make", "test"] in COMMANDS
    assert {words[1] for words in HYDRA_COMMANDS} == set(APPS)


@pytest.mark.parametrize("words", HYDRA_COMMANDS, ids=" ".join)
def test_a_command_is_valid(words: list[str]) -> None:
    _, name, *overrides = words
    parse(APPS[name], composed(name, *overrides))


def test_the_merge_command_is_valid() -> None:
    (words,) = (words for words in COMMANDS if words[:2] == ["rlstack", "merge"])
    assert callable(chosen_method(parser().parse_args(words[2:])))


def test_the_pipeline_is_valid_and_every_stage_of_it() -> None:
    (text,) = (b for b in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "stages:" in b)
    values = OmegaConf.create({**composed("pipeline", "stages=[]"), **yaml.safe_load(text)})
    check_stages(OmegaConf.to_container(values, resolve=True))


@pytest.mark.parametrize("name", ["rlhf_quickstart", "domain_experts"])
def test_a_shipped_pipeline_is_valid_and_every_stage_of_it(name: str) -> None:
    check_stages(composed("pipeline", f"experiment={name}"))


def check_stages(values: Any) -> None:
    config = parse(PipelineConfig, values)
    ready = prepare(config, schemas=SCHEMAS, run_stage=lambda *_: True)
    assert len(ready) == len(config.stages)


def test_what_is_added_to_a_stage_is_valid() -> None:
    experiment = ("pipeline", "experiment=rlhf_quickstart")
    added = [" ".join(text.split()) for text in re.findall(r"`'(more={.*?})'`", README, re.DOTALL)]
    assert len(added) == 2
    check_stages(composed(*experiment, added[0].replace("policy:", "ppo:")))
    check_stages(composed(*experiment, added[1]))


@pytest.mark.parametrize("target", ["quickstart", "test", "setup", "lint", "bench"])
def test_make_targets_exist(target: str) -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_plugin_scores(tmp_path: Path) -> None:
    plugin = tmp_path / "my_rewards.py"
    plugin.write_text(PLUGIN)
    component = Component("short_enough", 0.1, {"limit": 200})
    reward = load_reward(RewardSpec(components=(component,), plugins=(str(plugin),)))
    short = reward(RewardRequest(prompt="p", response="r", response_tokens=10))
    long = reward(RewardRequest(prompt="p", response="r", response_tokens=201))
    assert short.value == pytest.approx(0.1)
    assert long.value == 0.0


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (Path(__file__).parents[1] / target).exists(), target
