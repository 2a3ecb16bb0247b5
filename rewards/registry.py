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
from functools import partial
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from rlstack.errors import RewardError
from rlstack.registry import Registration, Registry
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
class RewardInfo(Registration):
    """A registered reward."""

    batched: bool = False
    """Whether it judges the rollouts of one prompt at once."""
    concurrent: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether, with these parameters, many calls may be under way at once; None: if it is async."""

    @property
    def stateful(self) -> bool:
        """Whether it is a class with `state` and `restore`."""
        return inspect.isclass(self.target) and issubclass(self.target, Stateful)

    def is_concurrent(self, params: Mapping[str, Any]) -> bool:
        """Whether, with these parameters, many of its calls may be under way at once."""
        if self.concurrent is not None:
            return self.concurrent(params)
        is_class = inspect.isclass(self.target)
        return inspect.iscoroutinefunction(
            cast(Any, self.target).__call__ if is_class else self.target
        )

    def check_signature(self) -> None:
        """Check that the target has one of the forms of a reward.

        Raises:
            RewardError: if it has not, or the name is reserved.
        """
        target = self.target
        if not self.name or self.name == ROW:
            raise RewardError(
                f"reward name {self.name!r} in {self.location} is reserved. Choose another name."
            )
        where = f"reward {self.name!r} in {self.location}"
        is_class = inspect.isclass(target)
        if is_class and "__call__" not in dir(target):
            raise RewardError(f"{where} is a class without __call__(self, request).")
        # Without self, which an instance binds.
        judge = partial(cast(Any, target).__call__, None) if is_class else target
        first, *rest = _parameters(judge) or (None,)
        takes_request = first is not None and first.kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
        # A class takes its parameters when it is set up, and none when it judges.
        named, unwanted = (_parameters(target), rest) if is_class else (rest, [])
        if (
            takes_request
            and not unwanted
            and all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in named)
        ):
            return
        expected = (
            "__init__(self, *, <named params>) and __call__(self, request)"
            if is_class
            else "(request, *, <named params>). Put a * after the first argument"
        )
        signatures = [str(inspect.signature(f)) for f in dict.fromkeys((target, judge))]
        raise RewardError(
            f"{where} has the signature {' and '.join(signatures)}; expected {expected}."
        )


@dataclass(frozen=True, slots=True)
class BoundReward:
    """A reward with checked parameters that has not been set up yet."""

    name: str
    batched: bool
    concurrent: bool
    stateful: bool
    make: Callable[[], Reward]
    """Sets up: calls the class; a function needs nothing."""


REWARDS = Registry(
    RewardInfo,
    noun="reward",
    error=RewardError,
    decorator="register",
    plugins_key="reward.plugins",
    entry_point_group="rlstack.rewards",
)
"""Every reward of this process."""


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
        REWARDS.register(RewardInfo(name, target, requires, batched, concurrent))
        return target

    return decorate


def bind(name: str, params: Mapping[str, Any]) -> BoundReward:
    """Reward `name` with `params` validated against its annotations; nothing is set up yet.

    Raises:
        RewardError: if the reward is unknown, a package it needs is not installed, or a parameter
            is unknown, missing or of the wrong type.
    """
    entry, bound = REWARDS.info(name), REWARDS.bind(name, params)
    return BoundReward(
        name,
        batched=entry.batched,
        concurrent=entry.is_concurrent(bound.keywords),
        stateful=entry.stateful,
        make=bound if inspect.isclass(entry.target) else lambda: bound,
    )


def build(name: str, params: Mapping[str, Any]) -> Reward:
    """Reward `name` with `params` bound and set up: a function, or an object that is one.

    Raises:
        RewardError: as `bind`; setting up a class may raise anything.
    """
    return bind(name, params).make()


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())
