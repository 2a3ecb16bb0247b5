"""Environments by name: register them, find them, bind their parameters.

An environment is a plain class; one instance plays one episode:

    __init__(self, *, <named params>)           what a configuration may set
    reset(self, task) -> str | None             the first observation, if the prompt is not all
    step(self, action) -> Turn                  the answer to what the policy wrote
    close(self)                                 optional: the episode is over

The methods may be async. If `step` is, the episodes of a process are played at once, in one event
loop; otherwise one step is taken after the other.

Given the task and the actions an environment should answer the same again: if its process ends
because of another episode, the actions are played to a new one.

It knows nothing of tokens, processes or time-outs, and can be played by hand.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rlstack.errors import EnvironmentSetupError
from rlstack.registry import Registration, Registry
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
class EnvironmentInfo(Registration):
    """A registered environment."""

    @property
    def concurrent(self) -> bool:
        """Whether steps of many episodes may be under way at once in a process: `step` is async."""
        return inspect.iscoroutinefunction(getattr(self.target, "step", None))

    def check_signature(self) -> None:
        """Check that the target is a class with the methods of an environment.

        Raises:
            EnvironmentSetupError: if it is not.
        """
        where = f"environment {self.name!r} in {self.location}"
        if not self.name:
            raise EnvironmentSetupError(f"{where} has no name. Give it one.")
        for method, argument in (("reset", "task"), ("step", "action")):
            function = getattr(self.target, method, None)
            parameters = inspect.signature(function).parameters if callable(function) else ()
            if len(parameters) != 2:
                raise EnvironmentSetupError(f"{where} needs a method {method}(self, {argument}).")
        signature = inspect.signature(self.target)
        if any(p.kind is not p.KEYWORD_ONLY for p in signature.parameters.values()):
            raise EnvironmentSetupError(
                f"{where} has the signature {signature}; expected "
                "__init__(self, *, <named params>). Put a * after self."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What a process needs to build environments itself; plain data, picklable."""

    name: str
    params: Mapping[str, Any]
    plugins: tuple[str, ...] = ()


_Class = TypeVar("_Class", bound=type[Any])

ENVIRONMENTS = Registry(
    EnvironmentInfo,
    noun="environment",
    error=EnvironmentSetupError,
    decorator="register_environment",
    plugins_key="reward.plugins",
    entry_point_group="rlstack.environments",
)
"""Every environment of this process."""


def register_environment(
    name: str, *, requires: tuple[str, ...] = ()
) -> Callable[[_Class], _Class]:
    """Make an environment class known as `name`; it is returned unchanged.

    requires: importable names of optional packages; they are checked before anything starts.

    Raises:
        EnvironmentSetupError: if the name is taken, or the class is no environment.
    """

    def decorate(target: _Class) -> _Class:
        ENVIRONMENTS.register(EnvironmentInfo(name, target, requires))
        return target

    return decorate


def load_environment(spec: EnvironmentSpec) -> Callable[[], Environment]:
    """What makes one environment of `spec` per call; plugins are imported, parameters checked.

    Raises:
        EnvironmentSetupError: if a plugin, the environment or a parameter is wrong.
    """
    register_environments(spec.plugins)
    return ENVIRONMENTS.bind(spec.name, spec.params)


def register_environments(plugins: Sequence[str] = ()) -> None:
    """Register the shipped environments and those of `plugins`, modules or .py files.

    Raises:
        EnvironmentSetupError: if one of them cannot be imported.
    """
    for plugin in (BUILTIN, *plugins):
        ENVIRONMENTS.load_plugin(plugin)


def build(name: str, params: Mapping[str, Any]) -> Environment:
    """One environment, to be played by hand or in a test; shipped ones are registered first.

    Raises:
        EnvironmentSetupError: as `load_environment`; making one may raise anything.
    """
    register_environments()
    return ENVIRONMENTS.build(name, params)


def checked_observation(answer: object) -> str | None:
    """What `reset` returned, if it is an observation or None.

    Raises:
        TypeError: if it is something else.
    """
    if answer is None or isinstance(answer, str):
        return answer
    raise TypeError(f"reset returned {type(answer).__name__}; expected text or None")


def checked_turn(answer: object) -> Turn:
    """What `step` returned, if it is a turn.

    Raises:
        TypeError, ValueError: saying what is wrong with it.
    """
    if not isinstance(answer, Turn):
        raise TypeError(f"step returned {type(answer).__name__}; expected a rlstack.types.Turn")
    if not isinstance(answer.observation, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("Turn.observation is no text; expected str")
    reward: Any = answer.reward
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise TypeError(f"Turn.reward is {reward!r}; expected a number")
    if not -float("inf") < reward < float("inf"):
        raise ValueError(f"Turn.reward is {reward}; expected a finite number")
    return answer
