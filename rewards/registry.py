"""Rewards by name: register them, find them, bind their parameters.

A reward is a plain function that stays usable without any of this, in one of four forms:

    (request, *, <named params>) -> float | Score | None                  one rollout
    (requests, *, <named params>) -> sequence of those; batched=True      the rollouts of one prompt
    the same as `async def`
    a class: `__init__(self, *, <named params>)` sets up, `__call__` judges, `close` tears down

A class that remembers what it judged also has `state() -> bytes` and `restore(state)`: it then
lives in one process only, and its state in the checkpoints.

It knows nothing of processes or time-outs: those belong to the scorer.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from rewards.parameters import check_installed, checked_parameters, origin, place
from rewards.sources import import_plugin, installed, load_installed
from rlstack.errors import RewardError
from rlstack.types import Score

RewardResult = float | Score | None
"""A value in reward units, a whole `Score`, or None: "cannot be judged", which is not 0."""

Reward = Callable[[Any], Any]
"""A reward with all its parameters bound: `request -> result`, or `requests -> results` if it is
batched; an awaitable of them if it is async."""

ROW = "row"
"""The component that stands for whichever reward the dataset row names; not a reward itself."""

REWARD_MODEL = "reward_model"
"""The component that a run's worker group of reward models judges, not a scorer process."""

_Target = TypeVar("_Target", bound=Callable[..., Any])


@runtime_checkable
class Stateful(Protocol):
    """A reward that remembers what it judged."""

    def state(self) -> bytes:
        """All that a new object needs to go on as this one would."""
        ...

    def restore(self, state: bytes) -> None:
        """Go on as the one that gave `state` would; called before anything is judged."""
        ...


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """A registered reward."""

    name: str
    target: Callable[..., Any]
    """The function, or the class."""
    requires: tuple[str, ...]
    batched: bool
    """Whether it judges the rollouts of one prompt at once."""
    concurrent: Callable[[Mapping[str, Any]], bool]
    """Whether, with these parameters, many of its calls may be under way at once."""

    @property
    def stateful(self) -> bool:
        """Whether it is a class with `state` and `restore`."""
        return inspect.isclass(self.target) and issubclass(self.target, Stateful)

    @property
    def place(self) -> str:
        """`file:line` of its definition."""
        return place(self.target)

    @property
    def signature(self) -> inspect.Signature:
        """Its parameters, without the request."""
        return inspect.Signature(_declared(self.target))

    @property
    def summary(self) -> str:
        """First line of its documentation, or nothing."""
        return (inspect.getdoc(self.target) or "").partition("\n")[0]


@dataclass(frozen=True, slots=True)
class BoundReward:
    """A reward with checked parameters that has not been set up yet."""

    name: str
    batched: bool
    concurrent: bool
    stateful: bool
    make: Callable[[], Reward]
    """Sets up: calls the class; a function needs nothing."""


# A decorator can only reach a module-level table. It fills while modules are imported and is only
# read afterwards; each process fills its own.
_registry: dict[str, RewardInfo] = {}


def register(
    name: str,
    *,
    requires: tuple[str, ...] = (),
    batched: bool = False,
    concurrent: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Callable[[_Target], _Target]:
    """Make a reward function or class known as `name`; it is returned unchanged.

    requires: importable names of optional packages that the reward imports when it runs. They are
    checked when the reward is built and imported before a scorer process takes requests, so that
    the first request does not pay for them.

    batched: the reward is given the rollouts of one prompt together and returns one result for
    each, in their order.

    concurrent: whether, with these parameters, many calls may be under way at once in one event
    loop; None: if it is `async def`. For one that is, and calls what may not be.

    Raises:
        RewardError: if the name is taken by another reward, or the signature is none of the forms
            above.
    """

    def decorate(target: _Target) -> _Target:
        _check_signature(name, target)
        known = _registry.get(name)
        if known is not None and origin(known.target) != origin(target):
            raise RewardError(
                f"reward {name!r} is registered twice: {known.place} and "
                f"{place(target)}. Rename one of them."
            )
        waits = concurrent or (lambda _: _is_async(target))
        _registry[name] = RewardInfo(name, target, requires, batched, waits)
        return target

    return decorate


def _is_async(target: Callable[..., Any]) -> bool:
    judge = cast(Any, target).__call__ if inspect.isclass(target) else target
    return inspect.iscoroutinefunction(judge)


def registered_names() -> tuple[str, ...]:
    """All names registered so far, sorted."""
    return tuple(sorted(_registry))


def info(name: str) -> RewardInfo:
    """The reward called `name`; one that an installed package declares is imported first.

    Raises:
        RewardError: if the reward is unknown or its package cannot be imported.
    """
    if name not in _registry and name in installed("reward"):
        found = load_installed("reward", name)
        # Its module may have registered it; a plain function or class has not.
        if name not in _registry and (inspect.isfunction(found) or inspect.isclass(found)):
            register(name)(found)
        if name not in _registry:
            raise RewardError(
                f"reward {name!r}: {installed('reward')[name].value!r} registers no reward of that "
                f"name. It needs @register({name!r}) there."
            )
    if name in _registry:
        return _registry[name]
    known = sorted({*_registry, *installed("reward")})
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise RewardError(
        f"reward {name!r} is unknown.{hint} Known: {', '.join(known)}. "
        "A reward of your own needs its module or file in reward.plugins."
    )


def required_modules(name: str) -> tuple[str, ...]:
    """The optional packages that reward `name` imports when it runs.

    Raises:
        RewardError: if the reward is unknown.
    """
    return info(name).requires


def bind(name: str, params: Mapping[str, Any]) -> BoundReward:
    """Reward `name` with `params` validated against its annotations; nothing is set up yet.

    Raises:
        RewardError: if the reward is unknown, a package it needs is not installed, or a parameter
            is unknown, missing or of the wrong type.
    """
    entry = info(name)
    check_installed(f"reward {name!r}", entry.requires)
    is_class = inspect.isclass(entry.target)
    hinted = cast(Any, entry.target).__init__ if is_class else entry.target
    declared = _declared(entry.target)
    checked = checked_parameters(f"reward {name!r}", hinted, declared, params)
    bound = partial(entry.target, **checked)
    make = bound if is_class else lambda: bound
    return BoundReward(
        name,
        batched=entry.batched,
        concurrent=entry.concurrent(bound.keywords),
        stateful=entry.stateful,
        make=make,
    )


def build(name: str, params: Mapping[str, Any]) -> Reward:
    """Reward `name` with `params` bound and set up: a function, or an object that is one.

    Raises:
        RewardError: as `bind`; setting up a class may raise anything.
    """
    return bind(name, params).make()


def load_plugin(plugin: str) -> None:
    """Import a module (`package.module`) or a file (`path/to/file.py`) that registers rewards.

    Loading the same plugin again does nothing.

    Raises:
        RewardError: if it cannot be found or imported, or registers a name that is taken.
    """
    import_plugin(plugin)


def _check_signature(name: str, target: Callable[..., Any]) -> None:
    if not name or name == ROW:
        raise RewardError(
            f"reward name {name!r} in {place(target)} is reserved. Choose another name."
        )
    judge = target
    if inspect.isclass(target):
        if "__call__" not in dir(target):
            raise RewardError(
                f"reward {name!r} in {place(target)} is a class without __call__(self, request)."
            )
        # Without self, which an instance binds.
        judge = partial(cast(Any, target).__call__, None)
    first, *rest = _parameters(judge) or (None,)
    takes_request = first is not None and first.kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    # A class takes its parameters when it is set up.
    named = _parameters(target) if inspect.isclass(target) else rest
    unwanted = rest if inspect.isclass(target) else []
    if (
        not takes_request
        or unwanted
        or any(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in named)
    ):
        expected = (
            "__init__(self, *, <named params>) and __call__(self, request)"
            if inspect.isclass(target)
            else "(request, *, <named params>). Put a * after the first argument"
        )
        signatures = [str(inspect.signature(f)) for f in dict.fromkeys((target, judge))]
        raise RewardError(
            f"reward {name!r} in {place(target)} has the signature {' and '.join(signatures)}; "
            f"expected {expected}."
        )


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _declared(target: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters that a configuration may give."""
    return _parameters(target)[0 if inspect.isclass(target) else 1 :]
