"""Every shipped recipe of rewards can be built, parameters and all."""

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from rewards.combination import Component
from rewards.load import RewardSpec, load_reward
from rewards.registry import ROW, build
from rlstack.config.reward import RewardConfig
from tests.config.test_load import CONF

NEEDED = {"model": ["reward.model.checkpoints=[m]"]}
RECIPES = sorted(path.stem for path in (CONF / "reward").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete(name: str) -> None:
    with initialize_config_module(version_base="1.3", config_module="conf"):
        composed = compose("rl", overrides=[f"reward={name}", *NEEDED.get(name, [])])
    config = RewardConfig.model_validate(OmegaConf.to_container(composed.reward, resolve=True))
    assert not config.problems()
    plain = tuple(Component(name=c.name, params=c.params, label=c.key) for c in config.components)
    load_reward(RewardSpec(components=plain, plugins=config.plugins))
    for component in config.components:
        if component.name != ROW:
            assert callable(build(component.name, component.params))
