"""From plain configuration to a reward that can be called."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.combination import Component
from rewards.composed_reward import ComposedReward, bind_row_reward, compose
from rewards.registry import REWARDS, ROW

_BUILTIN = "rewards.builtin"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """What a process needs to build the reward itself; plain data, picklable."""

    components: tuple[Component, ...]
    plugins: tuple[str, ...] = ()
    row_rewards: tuple[str, ...] = ()
    """Names that dataset rows give for the component `row`."""


def load_reward(spec: RewardSpec) -> ComposedReward:
    """Register the shipped rewards and the plugins, then compose; nothing is set up yet.

    Raises:
        RewardError: if a plugin, a reward or a parameter is wrong.
    """
    register_rewards(spec.plugins)
    for name in spec.row_rewards:
        bind_row_reward(name)
    return compose(spec.components)


def register_rewards(plugins: Sequence[str]) -> None:
    """Register the shipped rewards and those of `plugins`, modules or .py files.

    Raises:
        RewardError: if one of them cannot be imported.
    """
    for plugin in (_BUILTIN, *plugins):
        REWARDS.load_plugin(plugin)


def import_requirements(spec: RewardSpec, indices: Sequence[int]) -> None:
    """Import the optional packages of these components of `spec`, ahead of the first request."""
    names = {spec.components[index].name for index in indices}
    if ROW in names:
        names = names - {ROW} | set(spec.row_rewards)
    for name in sorted(names):
        for module in REWARDS.info(name).requires:
            importlib.import_module(module)
