"""Several rewards as one: each judges by itself, and no failure of one stops the others."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, cast

from rewards.checked_score import checked_score, failed_score
from rewards.combination import Component, check, combine, with_retries
from rewards.registry import (
    REWARDS,
    ROW,
    BoundReward,
    Reward,
    Stateful,
    bind,
)
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

_logger = logging.getLogger(__name__)


class ComposedReward:
    """The components of a configuration, ready to judge; made by `compose`.

    A class-based reward is set up by `set_up`, or else when it first judges. Not thread-safe.
    """

    def __init__(self, components: Sequence[Component], bound: Sequence[BoundReward]) -> None:
        """`bound`: the reward of each component."""
        self.components = tuple(components)
        self._bound = tuple(bound)
        self._rewards: dict[int, Reward] = {}
        # Of one loop for its whole life: a connection that a reward keeps belongs to its loop.
        self._runner: asyncio.Runner | None = None

    def __call__(self, request: RewardRequest, *, step: int = 0) -> Score:
        """Judge one rollout, `step` updates into a run; a batched component sees a group of one.

        A component that returns None, raises or returns something that is not finite leaves the
        sum, unless its error policy says otherwise; the last two are named in `errors`. `value` is
        None if no component is left. A `Score` from a component contributes its value, its parts as
        `component/part`, its turn_rewards, its errors and its extracted answer; the first extracted
        answer wins.

        Raises:
            RewardError: if a component failed whose error policy is `raise`.
        """
        return self.judge_group([request], step=step)[0]

    def judge_group(self, requests: Sequence[RewardRequest], *, step: int = 0) -> list[Score]:
        """Judge the rollouts of one prompt.

        Raises:
            RewardError: as `__call__`.
        """
        scores: list[dict[str, Score]] = [{} for _ in requests]
        for index, component in enumerate(self.components):
            rows = [row for row, request in enumerate(requests) if component.applies(request)]
            batches = [rows] if self.is_batched(index) and rows else [[row] for row in rows]
            for batch in batches:
                attempt = partial(self.judge, index, [requests[row] for row in batch])
                for row, score in zip(batch, with_retries(component, attempt), strict=True):
                    scores[row][component.key] = score
        return [
            combine(self.components, request, score, step=step)
            for request, score in zip(requests, scores, strict=True)
        ]

    def is_batched(self, index: int) -> bool:
        """Whether component `index` judges the rollouts of a prompt together."""
        return self._bound[index].batched

    def is_stateful(self, index: int) -> bool:
        """Whether component `index` remembers what it judged: it has `state` and `restore`."""
        return self._bound[index].stateful

    def is_concurrent(self, index: int, row_reward: str | None = None) -> bool:
        """Whether component `index` is async; `row` is what `row_reward`, the row's reward, is."""
        if self.components[index].name == ROW:
            known = row_reward in REWARDS.registered_names()
            return known and REWARDS.info(row_reward or "").is_concurrent({})
        return self._bound[index].concurrent

    def set_up(self, indices: Iterable[int] | None = None) -> None:
        """Set up these class-based rewards, or all.

        Raises:
            RewardError: naming the reward and the cause, if one fails.
        """
        for index in range(len(self.components)) if indices is None else indices:
            try:
                self._reward(index)
            except (Exception, SystemExit) as error:
                raise RewardError(
                    f"reward {self.components[index].key!r} cannot be set up: "
                    f"{type(error).__name__}: {error}"
                ) from error

    def state(self, index: int) -> bytes:
        """What component `index` remembers.

        Raises:
            TypeError: if it gives something else than bytes; and whatever it raises.
        """
        state = self._resolve(cast(Stateful, self._reward(index)).state())
        if not isinstance(state, bytes):
            raise TypeError(f"state() gave {type(state).__name__}; expected bytes")
        return state

    def restore(self, index: int, state: bytes) -> None:
        """Let component `index` remember what `state` says; raises whatever it raises."""
        self._resolve(cast(Stateful, self._reward(index)).restore(state))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in the event loop that the async rewards live in."""
        self._resolve(work)

    def judge(self, index: int, requests: Sequence[RewardRequest]) -> list[Score]:
        """The scores of component `index` alone; its parts and errors carry its label.

        Never raises for what the reward does. A component that is not batched is given one request.
        """
        try:
            result = self._resolve(self._call(index, requests))
            return self._scores(index, requests, result)
        # A reward is a user's code running on a model's text: whatever it raises, sys.exit
        # included, costs what it judges only and is counted.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return [failed_score(self.components[index], error)] * len(requests)

    async def judge_async(self, index: int, requests: Sequence[RewardRequest]) -> list[Score]:
        """`judge` inside `run`, beside others."""
        try:
            result = self._call(index, requests)
            result = await result if inspect.isawaitable(result) else result
            return self._scores(index, requests, result)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return [failed_score(self.components[index], error)] * len(requests)

    def _call(self, index: int, requests: Sequence[RewardRequest]) -> Any:
        return self._reward(index)(requests if self.is_batched(index) else requests[0])

    def _scores(self, index: int, requests: Sequence[RewardRequest], result: Any) -> list[Score]:
        results = list(result) if self.is_batched(index) else [result]
        if len(results) != len(requests):
            raise ValueError(
                f"{len(results)} results for {len(requests)} rollouts; "
                "a batched reward returns one for each, in their order"
            )
        component = self.components[index]
        return [
            checked_score(component, result, num_turns=len(request.turns))
            for request, result in zip(requests, results, strict=True)
        ]

    def close(self) -> None:
        """Tear down what was set up; a reward that fails at it does not keep the others from it."""
        if self._rewards:
            self._resolve(_tear_down(self._rewards.values()))
        self._rewards.clear()
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _reward(self, index: int) -> Reward:
        if index not in self._rewards:
            self._rewards[index] = self._bound[index].make()
        return self._rewards[index]

    def _resolve(self, result: Any) -> Any:
        if not inspect.isawaitable(result):
            return result
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(_awaited(result))


def compose(components: Sequence[Component]) -> ComposedReward:
    """Check every component and bind its parameters; nothing is set up yet.

    Raises:
        RewardError: if there is no component, two share a label, a weight is not finite, a gate is
            no component, or a reward or one of its parameters is wrong.
    """
    check(components)
    return ComposedReward(components, [_bind(component) for component in components])


def bind_row_reward(name: str) -> BoundReward:
    """The reward that a dataset row names, without parameters.

    Raises:
        RewardError: if it is unknown, needs parameters, or judges whole groups.
    """
    bound = bind(name, {})
    if bound.batched:
        raise RewardError(
            f"reward {name!r} judges whole groups, so no row can name it. List it as a component, "
            "with data_sources if it is for some rows only."
        )
    if bound.stateful:
        raise RewardError(
            f"reward {name!r} keeps a state, so no row can name it. List it as a component, with "
            "data_sources if it is for some rows only."
        )
    return bound


def _bind(component: Component) -> BoundReward:
    if component.name != ROW:
        return bind(component.name, component.params)
    if component.params:
        raise RewardError(
            f"reward component {ROW!r} takes no params, got {', '.join(component.params)}: the row "
            "chooses the reward. Remove them, or name that reward as a component of its own."
        )
    return BoundReward(ROW, batched=False, concurrent=False, stateful=False, make=_RowReward)


class _RowReward:
    """Whichever reward the row names, each set up when it is first named."""

    def __init__(self) -> None:
        self._rewards: dict[str, Reward] = {}

    def __call__(self, request: RewardRequest) -> Any:
        name = request.reward
        if name is None:
            raise RewardError(
                f"the row (data source {request.data_source!r}) names no reward. Set the `reward` "
                f"of its data source, or replace the component {ROW!r} by a reward's name."
            )
        if name not in self._rewards:
            self._rewards[name] = bind_row_reward(name).make()
        return self._rewards[name](request)

    async def close(self) -> None:
        await _tear_down(self._rewards.values())


async def _tear_down(rewards: Iterable[Reward]) -> None:
    for reward in rewards:
        close: Callable[[], Any] | None = getattr(reward, "close", None)
        if close is None:
            continue
        try:
            result = close()
            if inspect.isawaitable(result):
                await result
        # What is left behind is the reward's; its samples are judged.
        except Exception:
            _logger.exception("reward %s could not be torn down", type(reward).__qualname__)


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result
