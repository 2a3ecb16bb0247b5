"""What `rlstack rewards list` says of every reward and environment: source, parameters, meaning."""

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, get_args, get_origin

from rewards.environments.registry import ENVIRONMENTS, EnvironmentInfo, register_environments
from rewards.load import register_rewards
from rewards.registry import REWARDS, RewardInfo
from rlstack.errors import RegistrationError
from rlstack.registry import Registry


def listing(plugins: Sequence[str]) -> Iterator[str]:
    """Lines on the rewards, then on the environments, each in order of their names.

    plugins: modules or .py files that bring more of either.

    Raises:
        RegistrationError: if a plugin cannot be imported.
    """
    register_rewards(plugins)
    register_environments(plugins)
    yield from _entries(REWARDS)
    yield from _entries(ENVIRONMENTS)


def _entries(registry: Registry[RewardInfo] | Registry[EnvironmentInfo]) -> Iterator[str]:
    for name in registry.known_names():
        try:
            entry = registry.info(name)
        except RegistrationError as error:  # only whoever uses it must be stopped by it
            yield f"{name}  (broken)\n    {error}"
            continue
        notes = [_source(registry, entry)]
        if isinstance(entry, EnvironmentInfo):
            notes.insert(0, "environment")
        elif entry.batched:
            notes.append("whole groups")
        params = [_described(param) for param in entry.parameters]
        yield f"{name}  ({', '.join(notes)})"
        yield f"    {entry.summary or 'no documentation'}"
        yield f"    parameters: {', '.join(params) or 'none'}"


def _described(param: inspect.Parameter) -> str:
    """A parameter as its author wrote it, the limits of its value aside."""
    kind = param.annotation
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    text = f"{param.name}: {inspect.formatannotation(kind)}"
    text = text.replace("collections.abc.", "").replace("typing.", "")
    if param.default is inspect.Parameter.empty:
        return text
    default = param.default
    return f"{text} = {default.pattern if isinstance(default, re.Pattern) else default!r}"


def _source(
    registry: Registry[RewardInfo] | Registry[EnvironmentInfo], entry: RewardInfo | EnvironmentInfo
) -> str:
    if entry.target.__module__.split(".")[0] == "rewards":
        return "built-in"
    point = registry.installed.get(entry.name)
    if point is not None and point.dist is not None:
        return f"package {point.dist.name}"
    return entry.location
