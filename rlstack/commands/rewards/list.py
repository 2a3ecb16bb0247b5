"""What `rlstack rewards list` says of every reward and environment: source, parameters, meaning."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, get_args, get_origin

from rewards import registry
from rewards.environments import registry as environments
from rewards.environments.registry import EnvironmentInfo
from rewards.load import register_rewards
from rewards.registry import RewardInfo
from rewards.sources import Kind, installed
from rlstack.errors import RewardError


def listing(plugins: Sequence[str]) -> Iterator[str]:
    """Lines on the rewards, then on the environments, each in order of their names.

    plugins: modules or .py files that bring more of either.

    Raises:
        RewardError: if a plugin cannot be imported.
    """
    register_rewards(plugins)
    environments.register_environments(plugins)
    yield from _entries("reward", registry.registered_names(), registry.info)
    yield from _entries("environment", environments.registered_names(), environments.info)


def _entries(
    kind: Kind, registered: Sequence[str], info: Callable[[str], RewardInfo | EnvironmentInfo]
) -> Iterator[str]:
    for name in sorted({*registered, *installed(kind)}):
        try:
            entry = info(name)
        except RewardError as error:  # only whoever uses it must be stopped by it
            yield f"{name}  (broken)\n    {error}"
            continue
        notes = [_source(kind, entry)]
        if isinstance(entry, EnvironmentInfo):
            notes.insert(0, "environment")
        elif entry.batched:
            notes.append("whole groups")
        params = [_described(param) for param in entry.signature.parameters.values()]
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


def _source(kind: Kind, entry: RewardInfo | EnvironmentInfo) -> str:
    if entry.target.__module__.split(".")[0] == "rewards":
        return "built-in"
    point = installed(kind).get(entry.name)
    if point is not None and point.dist is not None:
        return f"package {point.dist.name}"
    return entry.place
