"""Environments by name: register them, find them, bind their parameters.

An environment is a plain class; one instance plays one episode:

    __init__(self, *, <named params>)           what a configuration may set
    reset(self, task) -> str | None             the first observation, if the prompt is not all
    step(self, action) -> Turn                  the answer to what the policy wrote
    close(self)                                 optional: the episode is over

`reset` and `step` may be async. Given the task and the actions an environment should answer the
same again: if its process ends because of another episode, the actions are played to a new one.

It knows nothing of tokens, processes or time-outs, and can be played by hand.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from rewards.parameters import check_installed, checked_parameters, origin, place
from rewards.sources import import_plugin, installed, load_installed
from rlstack.errors import RewardError
from rlstack.types import Task, Turn

BUILTIN = "rewards.environments.builtin"


class Environment(Protocol):
    """One episode. Both methods may be coroutine functions."""

    def reset(self, task: Task, /) -> Any:
        """Begin; the first observation, or None. It is put behind the prompt's last user turn."""
        ...

    def step(self, action: str, /) -> Any:
        """The `Turn` that answers `action`, the text of what the policy wrote."""
        ...


@dataclass(frozen=True, slots=True)
class EnvironmentInfo:
    """A registered environment."""

    name: str
    target: type[Any]
    requires: tuple[str, ...]

    @property
    def place(self) -> str:
        """`file:line` of its definition."""
        return place(self.target)

    @property
    def signature(self) -> inspect.Signature:
        """Its parameters; a class without an __init__ of its own takes nothing."""
        return inspect.signature(self.target)

    @property
    def summary(self) -> str:
        """First line of its documentation, or nothing."""
        return (inspect.getdoc(self.target) or "").partition("\n")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What a process needs to build environments itself; plain data, picklable."""

    name: str
    params: Mapping[str, Any]
    plugins: tuple[str, ...] = ()


_Class = TypeVar("_Class", bound=type[Any])

# Filled while modules are imported, only read afterwards; each process fills its own.
_registry: dict[str, EnvironmentInfo] = {}


def register_environment(
    name: str, *, requires: tuple[str, ...] = ()
) -> Callable[[_Class], _Class]:
    """Make an environment class known as `name`; it is returned unchanged.

    requires: importable names of optional packages; they are checked before anything starts.

    Raises:
        RewardError: if the name is taken by another class, or the class is no environment.
    """

    def decorate(target: _Class) -> _Class:
        _check_class(name, target)
        known = _registry.get(name)
        if known is not None and origin(known.target) != origin(target):
            raise RewardError(
                f"environment {name!r} is registered twice: {known.place} and {place(target)}. "
                "Rename one of them."
            )
        _registry[name] = EnvironmentInfo(name, target, requires)
        return target

    return decorate


def registered_names() -> tuple[str, ...]:
    """All names registered so far, sorted."""
    return tuple(sorted(_registry))


def load_environment(spec: EnvironmentSpec) -> Callable[[], Environment]:
    """What makes one environment of `spec` per call; plugins are imported, parameters checked.

    Raises:
        RewardError: if a plugin, the environment or a parameter is wrong.
    """
    register_environments(spec.plugins)
    return bind(spec.name, spec.params)


def register_environments(plugins: Sequence[str] = ()) -> None:
    """Register the shipped environments and those of `plugins`, modules or .py files.

    Raises:
        RewardError: if one of them cannot be imported.
    """
    for plugin in (BUILTIN, *plugins):
        import_plugin(plugin)


def info(name: str) -> EnvironmentInfo:
    """The environment called `name`; one that an installed package declares is imported first.

    Raises:
        RewardError: if the environment is unknown or its package cannot be imported.
    """
    if name not in _registry and name in installed("environment"):
        found = load_installed("environment", name)
        # Its module may have registered it; a plain class has not.
        if name not in _registry and inspect.isclass(found):
            register_environment(name)(found)
        if name not in _registry:
            raise RewardError(
                f"environment {name!r}: {installed('environment')[name].value!r} registers no "
                f"environment of that name. It needs @register_environment({name!r}) there."
            )
    if name in _registry:
        return _registry[name]
    known = sorted({*_registry, *installed("environment")})
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise RewardError(
        f"environment {name!r} is unknown.{hint} Known: {', '.join(known)}. "
        "One of your own needs its module or file in reward.plugins."
    )


def bind(name: str, params: Mapping[str, Any]) -> Callable[[], Environment]:
    """What makes environments called `name` with checked `params`.

    Raises:
        RewardError: if it is unknown, a package it needs is not installed, or a parameter is
            unknown, missing or of the wrong type.
    """
    entry = info(name)
    subject = f"environment {name!r}"
    check_installed(subject, entry.requires)
    declared = list(entry.signature.parameters.values())
    hinted = cast(Any, entry.target).__init__
    return partial(entry.target, **checked_parameters(subject, hinted, declared, params))


def build(name: str, params: Mapping[str, Any]) -> Environment:
    """One environment, to be played by hand or in a test; shipped ones are registered first.

    Raises:
        RewardError: as `bind`; making one may raise anything.
    """
    register_environments()
    return bind(name, params)()


def _check_class(name: str, target: type[Any]) -> None:
    where = f"environment {name!r} in {place(target)}"
    if not name:
        raise RewardError(f"{where} has no name. Give it one.")
    for method, argument in (("reset", "task"), ("step", "action")):
        function = getattr(target, method, None)
        parameters = list(inspect.signature(function).parameters) if callable(function) else []
        if len(parameters) != 2:
            raise RewardError(f"{where} needs a method {method}(self, {argument}).")
    for param in inspect.signature(target).parameters.values():
        if param.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise RewardError(
                f"{where} has the signature {inspect.signature(target)}; expected "
                "__init__(self, *, <named params>). Put a * after self."
            )


def checked_turn(answer: object) -> Turn:
    """What `step` returned, if it is a turn.

    Raises:
        RewardError: saying what is wrong with it.
    """
    if not isinstance(answer, Turn):
        raise RewardError(f"step returned {type(answer).__name__}; expected a rlstack.types.Turn")
    if not isinstance(answer.observation, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RewardError("Turn.observation is no text; expected str")
    reward: Any = answer.reward
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise RewardError(f"Turn.reward is {reward!r}; expected a number")
    if not -float("inf") < reward < float("inf"):
        raise RewardError(f"Turn.reward is {reward}; expected a finite number")
    return answer
