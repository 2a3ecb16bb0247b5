"""Processes that run the configured rewards: isolated, with time-outs, replaced when they die."""

import asyncio
import logging
import pickle
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Literal, Protocol, cast

from rewards.combination import RETRY_ATTEMPTS, Component, WeightSchedule, combine
from rewards.load import RewardSpec, load_reward
from rewards.registry import REWARD_MODEL
from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score
from workers.scoring.dispatcher import Dispatcher
from workers.scoring.lane import Call, Lane
from workers.scoring.messages import Setup

Arrivals = Sequence["asyncio.Future[RewardRequest]"]
_logger = logging.getLogger(__name__)
_Verdicts = dict[str, Score]
"""By component label."""


class GroupJudge(Protocol):
    """Who judges the component `reward_model`: `workers.groups.served_models.ServedModels`."""

    async def judge(
        self, arrivals: Arrivals, *, applies: Callable[[RewardRequest], bool]
    ) -> list[Score]: ...

    def state(self) -> bytes: ...

    def restore(self, state: bytes) -> None: ...


class ScorerPool:
    """A `rlstack.protocols.Scorer` over processes.

    `config.num_workers` processes share the components that compute; one has those that wait (async
    rewards), many calls at once; each one that remembers has a process of its own.

    Returns from construction while the processes are still starting; `ready` waits for them.
    """

    def __init__(self, config: RewardConfig, *, row_rewards: Iterable[str] = ()) -> None:
        """Start the processes and check the configuration.

        row_rewards: the rewards that dataset rows name, for the component `row`; they are checked
            and their packages imported now instead of at their first request.

        Raises:
            RewardError: if a plugin, a reward or a parameter is wrong.
        """
        names = tuple(sorted(set(row_rewards)))
        components = tuple(_component(c) for c in config.components)
        self._spec = RewardSpec(components=components, plugins=config.plugins, row_rewards=names)
        self._reward = reward = load_reward(self._spec)
        # Judged by the worker group that `serve` is given.
        self._served = [i for i, c in enumerate(components) if c.name == REWARD_MODEL]
        self._models: GroupJudge | None = None
        indices = [index for index in range(len(components)) if index not in self._served]
        stateful = [index for index in indices if reward.is_stateful(index)]
        others = [index for index in indices if index not in stateful]
        self._batched = [index for index in others if reward.is_batched(index)]
        self._single = [index for index in others if not reward.is_batched(index)]
        row_names = names or (None,)
        concurrent = [i for i in others if any(reward.is_concurrent(i, row) for row in row_names)]
        plain = [i for i in others if not all(reward.is_concurrent(i, row) for row in row_names)]
        setup = Setup(
            self._spec,
            components=tuple(plain),
            timeouts_s=tuple(c.timeout_s or config.timeout_s for c in config.components),
            memory_bytes=int(config.memory_gib * 2**30),
            concurrent=False,
        )
        self._plain = Lane(setup, config.num_workers if plain else 0, 1)
        at_once = setup._replace(components=tuple(concurrent), concurrent=True)
        self._concurrent = Lane(at_once, 1 if concurrent else 0, config.max_concurrent)
        self._stateful = {
            index: Lane(setup._replace(components=(index,)), 1, 1, stateful=True)
            for index in stateful
        }
        # The rewards that remember judge groups in the order in which they were asked to.
        self._turns: dict[int, asyncio.Future[None]] = {}
        self._numbers = count(len(components))
        lanes = (self._plain, self._concurrent, *self._stateful.values())
        self._dispatcher = Dispatcher([lane for lane in lanes if lane.num_processes], Path.cwd())

    def serve(self, models: GroupJudge) -> None:
        """Let `models` judge the component `reward_model`; before anything is judged."""
        self._models = models

    async def ready(self) -> None:
        """Wait until every process has built its rewards.

        Raises:
            WorkerError: if one cannot start; the message says why.
        """
        await asyncio.gather(*map(asyncio.wrap_future, self._dispatcher.started))

    async def score(self, request: RewardRequest, *, step: int = 0) -> Score:
        """Judge one rollout as a group of its own.

        Raises:
            RewardError, WorkerError: as `score_group`.
        """
        return (await self.score_arrived([request], step=step))[0]

    async def score_arrived(self, requests: Sequence[RewardRequest], *, step: int) -> list[Score]:
        """`score_group` of rollouts that nobody has to wait for.

        Raises:
            RewardError, WorkerError: as `score_group`.
        """
        loop = asyncio.get_running_loop()
        arrivals: list[asyncio.Future[RewardRequest]] = []
        for request in requests:
            arrivals.append(loop.create_future())
            arrivals[-1].set_result(request)
        return await self.score_group(arrivals, step=step)

    async def score_group(
        self, requests: Sequence[Awaitable[RewardRequest]], *, step: int
    ) -> list[Score]:
        """Judge the rollouts of one prompt, each as soon as it arrives.

        A batched component judges when all have arrived, one that remembers when all groups that
        were asked for earlier have been judged. A failure, a time-out or a dead process is in
        `Score.errors` and does what the component's `on_error` says.

        Raises:
            RewardError: if a component failed whose `on_error` is `raise`.
            WorkerError: if no process can be started, or the pool was closed.
        """
        arrivals = [asyncio.ensure_future(request) for request in requests]
        parts: list[Awaitable[list[_Verdicts]]] = [
            self._judge_in_turn(index, arrivals) for index in self._stateful
        ]
        if self._batched:
            parts.append(self._judge_together(arrivals))
        if self._served:
            parts.append(self._judge_by_models(arrivals))
        parts.append(asyncio.gather(*(self._judge_alone(arrival) for arrival in arrivals)))
        columns = await asyncio.gather(*parts)
        return [
            combine(self._spec.components, arrival.result(), _joined(verdicts), step=step)
            for arrival, *verdicts in zip(arrivals, *columns, strict=True)
        ]

    async def state(self) -> dict[str, bytes]:
        """What the rewards that remember do remember, by label.

        One that fails to say is logged, and stands with what it last said, if anything.
        """
        for index, lane in self._stateful.items():
            try:
                await self._ask("snapshot", lane, index)
            except RewardError as error:
                _logger.error("%s; the checkpoint has an older one, or none", error)
        states = {
            self._label(index): state
            for lane in self._stateful.values()
            for index, state in lane.snapshots.items()
        }
        if self._models is not None:
            states[REWARD_MODEL] = self._models.state()
        return states

    async def restore(self, states: Mapping[str, bytes]) -> None:
        """Let the rewards go on from what `state` gave; one without a state there begins anew.

        Raises:
            RewardError: if one cannot.
        """
        for index, lane in self._stateful.items():
            if self._label(index) in states:
                state = states[self._label(index)]
                await self._ask("restore", lane, index, state)
                lane.snapshots[index] = state
        if self._models is not None and REWARD_MODEL in states:
            self._models.restore(states[REWARD_MODEL])

    def close(self) -> None:
        """End all processes at once; scores under way raise WorkerError.

        An idle process tears its rewards down first, within a few seconds. Closing again does
        nothing.
        """
        self._dispatcher.close()

    async def _judge_alone(self, arrival: "asyncio.Future[RewardRequest]") -> _Verdicts:
        return (await self._judge(self._single, [await arrival]))[0]

    async def _judge_together(self, arrivals: Arrivals) -> list[_Verdicts]:
        return await self._judge(self._batched, [await arrival for arrival in arrivals])

    async def _judge_by_models(self, arrivals: Arrivals) -> list[_Verdicts]:
        assert self._models is not None, "serve comes first"
        components = [self._spec.components[index] for index in self._served]

        def applies(request: RewardRequest) -> bool:
            return any(component.applies(request) for component in components)

        scores = await self._models.judge(arrivals, applies=applies)
        if not scores:
            return [{} for _ in arrivals]
        return [
            {c.key: score for c in components if c.applies(arrival.result())}
            for arrival, score in zip(arrivals, scores, strict=True)
        ]

    async def _judge_in_turn(self, index: int, arrivals: Arrivals) -> list[_Verdicts]:
        """In the order in which groups were asked for, which a resumed run repeats."""
        before = self._turns.get(index)
        ours = self._turns[index] = asyncio.get_running_loop().create_future()
        judging: list[asyncio.Future[list[_Verdicts]]] = []
        try:
            if before is not None:
                await before
            if self._reward.is_batched(index):
                requests = [await arrival for arrival in arrivals]
                return await self._judge([index], requests, on_sent=ours)
            for arrival in arrivals:
                judged = self._judge([index], [await arrival])
                judging.append(asyncio.ensure_future(judged))
                await asyncio.sleep(0)  # it is sent before the next
        finally:
            if not ours.done():
                ours.set_result(None)
        return [found[0] for found in await asyncio.gather(*judging)]

    async def _judge(
        self,
        indices: Sequence[int],
        requests: Sequence[RewardRequest],
        *,
        on_sent: "asyncio.Future[None] | None" = None,
    ) -> list[_Verdicts]:
        """For each request the verdicts of the components that apply to its prompt."""
        components = self._spec.components
        applicable = [index for index in indices if components[index].applies(requests[0])]
        if not applicable:
            return [{} for _ in requests]
        try:
            payload = pickle.dumps(requests, protocol=pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            text = f"the request cannot be sent to a scorer process: {error}"
            failure = Score(value=None, errors=(text,))
            return [{components[index].key: failure for index in applicable} for _ in requests]
        futures = [
            self._submit("judge", self._lane(index, requests[0]), index, payload, len(requests))
            for index in applicable
        ]
        if on_sent is not None:
            on_sent.set_result(None)
        verdicts: list[_Verdicts] = [{} for _ in requests]
        for index, future in zip(applicable, futures, strict=True):
            result = await future
            if isinstance(result, str):
                failure = Score(value=None, errors=(self._blame(index) + result,))
                result = [failure] * len(requests)
            for row, score in zip(verdicts, cast(Sequence[Score], result), strict=True):
                row[components[index].key] = score
        return verdicts

    def _lane(self, index: int, request: RewardRequest) -> Lane:
        if index in self._stateful:
            return self._stateful[index]
        concurrent = self._reward.is_concurrent(index, request.reward)
        wanted, other = self._plain, self._concurrent
        if concurrent:
            wanted, other = other, wanted
        # A row may name a reward that nobody announced.
        return wanted if wanted.num_processes else other

    async def _ask(
        self, kind: Literal["snapshot", "restore"], lane: Lane, index: int, state: bytes = b""
    ) -> None:
        result = await self._submit(kind, lane, index, state, 0)
        if isinstance(result, str):
            verb = "give its state" if kind == "snapshot" else "go on from its state"
            raise RewardError(f"reward {self._label(index)!r} cannot {verb}: {result}")

    def _submit(
        self,
        kind: Literal["judge", "snapshot", "restore"],
        lane: Lane,
        index: int,
        payload: bytes,
        num_results: int,
    ) -> "asyncio.Future[object]":
        loop = asyncio.get_running_loop()
        retried = kind == "judge" and self._spec.components[index].on_error == "retry"
        call = Call(
            next(self._numbers),
            kind,
            index,
            payload,
            num_results,
            loop=loop,
            future=loop.create_future(),
            attempts_left=RETRY_ATTEMPTS - 1 if retried else 0,
        )
        self._dispatcher.submit(lane, call)
        assert call.future is not None
        return call.future

    def _blame(self, index: int) -> str:
        """Which component an error is of, where there are several."""
        return f"{self._label(index)}: " if len(self._spec.components) > 1 else ""

    def _label(self, index: int) -> str:
        return self._spec.components[index].key


def _joined(verdicts: Iterable[_Verdicts]) -> _Verdicts:
    return {label: score for found in verdicts for label, score in found.items()}


def _component(config: RewardComponent) -> Component:
    weight = config.weight
    return Component(
        config.name,
        weight if isinstance(weight, float) else WeightSchedule(**weight.model_dump()),
        config.params,
        label=config.label,
        gate=config.gate,
        gate_min=config.gate_min,
        data_sources=config.data_sources,
        on_error=config.on_error,
        timeout_s=config.timeout_s,
    )
