"""From plain configuration to a reward that can be called."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.compose import Component, ComposedReward, compose
from rewards.registry import ROW, build, load_plugin, required_modules

_BUILTIN = "rewards.builtin"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """What a process needs to build the reward itself; plain data, picklable."""

    components: tuple[Component, ...]
    plugins: tuple[str, ...] = ()
    row_rewards: tuple[str, ...] = ()
    """Names that dataset rows give for the component `row`."""


def load_reward(spec: RewardSpec) -> ComposedReward:
    """Register the shipped rewards and the plugins, then compose.

    Raises:
        RewardError: if a plugin, a reward or a parameter is wrong.
    """
    for plugin in (_BUILTIN, *spec.plugins):
        load_plugin(plugin)
    for name in spec.row_rewards:
        build(name, {})
    return compose(spec.components)


def import_requirements(spec: RewardSpec) -> None:
    """Import the optional packages of every reward in `spec`, ahead of the first request."""
    for name in _reward_names(spec):
        for module in required_modules(name):
            importlib.import_module(module)


def _reward_names(spec: RewardSpec) -> Sequence[str]:
    named = [component.name for component in spec.components if component.name != ROW]
    return [*named, *spec.row_rewards]
