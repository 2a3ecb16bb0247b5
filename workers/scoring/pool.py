"""Processes that run the configured rewards: isolated, with time-outs, replaced when they die."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast

from rewards.combination import Component, WeightSchedule, combine
from rewards.load import RewardSpec, load_reward
from rewards.registry import REWARD_MODEL
from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.types import RewardRequest, Score
from workers.scoring.processes import ScorerProcesses, reason

PendingRequests = Sequence["asyncio.Future[RewardRequest]"]
"""The rollouts of one prompt, some of which may still be generated."""
_Scores = dict[str, Score]
"""Of one rollout, by component label."""


class ModelScorer(Protocol):
    """Who judges the component `reward_model`: `workers.groups.model_scorer.ModelGroupScorer`."""

    async def judge(
        self, pending: PendingRequests, *, applies: Callable[[RewardRequest], bool]
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
        self._models: ModelScorer | None = None
        indices = [index for index in range(len(components)) if index not in self._served]
        self._stateful = [index for index in indices if reward.is_stateful(index)]
        others = [index for index in indices if index not in self._stateful]
        self._batched = [index for index in others if reward.is_batched(index)]
        self._single = [index for index in others if not reward.is_batched(index)]
        # The rewards that remember judge groups in the order in which they were asked to.
        self._last_turns: dict[int, asyncio.Future[None]] = {}
        self._processes = ScorerProcesses(
            self._spec, reward, config, stateful=self._stateful, others=others
        )

    def serve(self, models: ModelScorer) -> None:
        """Let `models` judge the component `reward_model`; before anything is judged."""
        self._models = models

    async def ready(self) -> None:
        """Wait until every process has built its rewards.

        Raises:
            WorkerError: if one cannot start; the message says why.
        """
        await self._processes.ready()

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
        pending: list[asyncio.Future[RewardRequest]] = []
        for request in requests:
            pending.append(loop.create_future())
            pending[-1].set_result(request)
        return await self.score_group(pending, step=step)

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
        pending = [asyncio.ensure_future(request) for request in requests]
        parts: list[Awaitable[list[_Scores]]] = [
            self._judge_in_turn(index, pending) for index in self._stateful
        ]
        if self._batched:
            parts.append(self._judge_together(pending))
        if self._served:
            parts.append(self._judge_by_models(pending))
        parts.append(asyncio.gather(*(self._judge_alone(request) for request in pending)))
        columns = await asyncio.gather(*parts)
        return [
            combine(self._spec.components, request.result(), _joined(found), step=step)
            for request, *found in zip(pending, *columns, strict=True)
        ]

    async def state(self) -> dict[str, bytes]:
        """What the rewards that remember do remember, by label.

        One that fails to say is logged, and stands with what it last said, if anything.
        """
        states = await self._processes.state()
        if self._models is not None:
            states[REWARD_MODEL] = self._models.state()
        return states

    async def restore(self, states: Mapping[str, bytes]) -> None:
        """Let the rewards go on from what `state` gave; one without a state there begins anew.

        Raises:
            RewardError: if one cannot.
        """
        await self._processes.restore(states)
        if self._models is not None and REWARD_MODEL in states:
            self._models.restore(states[REWARD_MODEL])

    def close(self) -> None:
        """End all processes at once; scores under way raise WorkerError.

        An idle process tears its rewards down first, within a few seconds. Closing again does
        nothing.
        """
        self._processes.close()

    async def _judge_alone(self, request: "asyncio.Future[RewardRequest]") -> _Scores:
        return (await self._judge(self._single, [await request]))[0]

    async def _judge_together(self, pending: PendingRequests) -> list[_Scores]:
        return await self._judge(self._batched, [await request for request in pending])

    async def _judge_by_models(self, pending: PendingRequests) -> list[_Scores]:
        assert self._models is not None, "serve comes first"
        components = [self._spec.components[index] for index in self._served]

        def applies(request: RewardRequest) -> bool:
            return any(component.applies(request) for component in components)

        scores = await self._models.judge(pending, applies=applies)
        if not scores:
            return [{} for _ in pending]
        return [
            {c.key: score for c in components if c.applies(request.result())}
            for request, score in zip(pending, scores, strict=True)
        ]

    async def _judge_in_turn(self, index: int, pending: PendingRequests) -> list[_Scores]:
        """Judge in the order in which groups were asked for, which a resumed run repeats."""
        turn_before = self._last_turns.get(index)
        turn = self._last_turns[index] = asyncio.get_running_loop().create_future()
        judging: list[asyncio.Future[list[_Scores]]] = []
        try:
            if turn_before is not None:
                await turn_before
            if self._reward.is_batched(index):
                requests = [await request for request in pending]
                return await self._judge([index], requests, on_sent=turn)
            for request in pending:
                judged = self._judge([index], [await request])
                judging.append(asyncio.ensure_future(judged))
                await asyncio.sleep(0)  # it is sent before the next
        finally:
            if not turn.done():
                turn.set_result(None)
        return [found[0] for found in await asyncio.gather(*judging)]

    async def _judge(
        self,
        indices: Sequence[int],
        requests: Sequence[RewardRequest],
        *,
        on_sent: "asyncio.Future[None] | None" = None,
    ) -> list[_Scores]:
        """For each request the scores of the components that apply to its prompt."""
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
            self._processes.judge(index, requests[0], payload, num_requests=len(requests))
            for index in applicable
        ]
        if on_sent is not None:
            on_sent.set_result(None)
        rows: list[_Scores] = [{} for _ in requests]
        for index, future in zip(applicable, futures, strict=True):
            result = await future
            if not isinstance(result, list):
                failure = Score(value=None, errors=(self._prefix(index) + reason(result),))
                result = [failure] * len(requests)
            for row, score in zip(rows, cast(list[Score], result), strict=True):
                row[components[index].key] = score
        return rows

    def _prefix(self, index: int) -> str:
        """Which component an error is of, where there are several."""
        components = self._spec.components
        return f"{components[index].key}: " if len(components) > 1 else ""


def _joined(columns: Iterable[_Scores]) -> _Scores:
    return {label: score for found in columns for label, score in found.items()}


def _component(config: RewardComponent) -> Component:
    weight = config.weight
    return Component(
        config.name,
        weight if isinstance(weight, int | float) else WeightSchedule(**weight.model_dump()),
        config.params,
        label=config.label,
        gate=config.gate,
        gate_min=config.gate_min,
        data_sources=config.data_sources,
        on_error=config.on_error,
        timeout_s=config.timeout_s,
    )
