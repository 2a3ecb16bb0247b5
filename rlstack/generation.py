"""Where the groups of a step come from: prompts sampled, scored and grouped.

    prompts -> rollouts (engines) -> scores (rewards, while others generate) -> groups

The controller takes groups from a `GroupSource` and publishes weights to it. It does not know when
they were sampled, by which policy version, or who else uses the engines.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from rlstack.config.run import RLConfig
from rlstack.data.sampler import PromptSampler, SamplerState
from rlstack.metrics import Metrics
from rlstack.protocols import Reallocator, RolloutEngines, Scorer
from rlstack.run.timeline import Timeline
from rlstack.seeds import Domain, derived_seed
from rlstack.types import (
    GenerationRequest,
    Group,
    Phase,
    Prompt,
    RewardRequest,
    Rollout,
    SamplingSettings,
    Score,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSampler:
    """Samples responses and has them scored; rewards run while others generate."""

    engines: RolloutEngines
    scorer: Scorer
    seed: int
    """Of the run. Each response has its own, derived from it."""

    async def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        domain: Domain,
        numbers: Sequence[int],
        num_samples: int,
        sampling: SamplingSettings,
        version: int,
    ) -> list[Group]:
        """Sample and score `num_samples` responses of every prompt, in the order of `prompts`.

        numbers: of each prompt in the run, or among the held-out ones. They give the seeds with
        `domain` and the index of the sample. version: updates of the policy so far, for rewards
        whose weights change.

        Raises:
            RewardError: if a component failed that is configured to stop the run.
            WorkerError: if engines died more often than they may.
        """
        requests = [
            GenerationRequest(
                request_id=row * num_samples + sample_index,
                prompt=prompt,
                sample_index=sample_index,
                seed=derived_seed(self.seed, domain, number, sample_index),
            )
            for row, (number, prompt) in enumerate(zip(numbers, prompts, strict=True))
            for sample_index in range(num_samples)
        ]
        rollouts, scores = await self._scored(
            requests, sampling, num_samples=num_samples, version=version
        )
        return [
            _group(
                number,
                prompt,
                [rollouts[row * num_samples + index] for index in range(num_samples)],
                scores[row],
            )
            for row, (number, prompt) in enumerate(zip(numbers, prompts, strict=True))
        ]

    async def _scored(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        num_samples: int,
        version: int,
    ) -> tuple[dict[int, Rollout], Sequence[Sequence[Score]]]:
        """Get the rollout of every request, by its id, and the scores of every group, in order."""
        loop = asyncio.get_running_loop()
        arrivals: list[asyncio.Future[RewardRequest]] = [loop.create_future() for _ in requests]
        scoring = [
            asyncio.ensure_future(
                self.scorer.score_group(arrivals[first : first + num_samples], step=version)
            )
            for first in range(0, len(requests), num_samples)
        ]
        rollouts: dict[int, Rollout] = {}

        async def generate() -> None:
            async for request_id, rollout in self.engines.generate(requests, sampling):
                rollouts[request_id] = rollout
                arrivals[request_id].set_result(
                    reward_request(rollout, max_response_tokens=sampling.max_response_tokens)
                )

        generating = asyncio.ensure_future(generate())
        try:
            # Beside each other: a failure of either is told at once, not when the other has ended.
            _, scores = await asyncio.gather(generating, asyncio.gather(*scoring))
            return rollouts, scores
        finally:
            # If generation or one group failed, the other groups would wait for ever.
            for task in (generating, *scoring):
                task.cancel()
            await asyncio.gather(generating, *scoring, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a source gives for a step: its groups, and what getting them cost."""

    groups: Sequence[Group]
    metrics: Metrics


class GroupSource(Protocol):
    """Between the controller and generation."""

    async def take(self, num_groups: int) -> Taken:
        """The groups of the next step; then the devices are the trainer's."""
        ...

    async def publish(self, version: int) -> Metrics:
        """The trainer's weights, `version` updates old, are in the engines: generation goes on.

        Raises:
            WeightSyncError: if an engine does not hold what was sent.
        """
        ...

    def paused(self) -> AbstractAsyncContextManager[GroupSampler]:
        """Inside, the engines hold the published weights and sample for nobody else."""
        ...

    def state(self) -> Mapping[str, Any]:
        """What `restore` needs, as JSON: with it no group is lost or taken twice."""
        ...

    def restore(self, state: Mapping[str, Any], *, version: int) -> None:
        """Go on where the source that gave `state` stood, with weights `version` updates old.

        Raises:
            CheckpointError: if it had other prompts or settings.
        """
        ...


class OnDemand:
    """Samples a step's groups when they are asked for, and waits for all of them.

    So every token is of the policy that is trained on it. A `GroupSource`.
    """

    def __init__(
        self,
        config: RLConfig,
        sampler: GroupSampler,
        *,
        prompts: PromptSampler[Prompt],
        reallocator: Reallocator,
        timeline: Timeline,
    ) -> None:
        self.config = config
        self.sampler = sampler
        self.prompts = prompts
        self.reallocator = reallocator
        self.timeline = timeline
        self.version = 0

    async def take(self, num_groups: int) -> Taken:
        """See `GroupSource`; with dynamic sampling, groups with signal come first."""
        metrics = await self._enter(Phase.GENERATE)
        groups = await self._sampled(num_groups)
        if self.config.algorithm.needs_baseline:
            groups = await self._with_baselines(groups)
        return Taken(groups=groups, metrics=metrics + await self._enter(Phase.TRAIN))

    async def publish(self, version: int) -> Metrics:
        """See `GroupSource`."""
        self.version = version
        return await self._enter(Phase.GENERATE)

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[GroupSampler]:
        """See `GroupSource`; between two steps nobody samples anyway."""
        await self._enter(Phase.GENERATE)
        yield self.sampler

    def state(self) -> Mapping[str, Any]:
        """See `GroupSource`: the order of the prompts and where it stands."""
        return asdict(self.prompts.state())

    def restore(self, state: Mapping[str, Any], *, version: int) -> None:
        """See `GroupSource`."""
        self.prompts.restore(SamplerState(**state))
        self.version = version

    async def _enter(self, phase: Phase) -> Metrics:
        with self.timeline.span("reallocation"):
            return await self.reallocator.enter(phase, version=self.version)

    async def _sampled(self, num_groups: int) -> list[Group]:
        config, dynamic = self.config, self.config.algorithm.dynamic_sampling
        kept: list[Group] = []
        without_signal: list[Group] = []
        for _ in range(dynamic.max_rounds if dynamic.enabled else 1):
            first, missing = self.prompts.num_taken, num_groups - len(kept)
            with self.timeline.span("rollout"):
                groups = await self.sampler.sample(
                    self.prompts.take(missing),
                    domain=Domain.ROLLOUT,
                    numbers=range(first, first + missing),
                    num_samples=config.rollout.num_samples,
                    sampling=config.rollout.sampling(),
                    version=self.version,
                )
            for group in groups:
                keep = group.has_signal or not dynamic.enabled
                (kept if keep else without_signal).append(group)
            if len(kept) == num_groups:
                break
        # Out of rounds: a batch of constant size is worth more than a few idle rows.
        return (kept + without_signal)[:num_groups]

    async def _with_baselines(self, groups: Sequence[Group]) -> list[Group]:
        """The groups, each with the score of the greedy response to its prompt."""
        with self.timeline.span("baseline"):
            greedy = await self.sampler.sample(
                [group.prompt for group in groups],
                domain=Domain.BASELINE,
                numbers=[group.number for group in groups],
                num_samples=1,
                sampling=self.config.rollout.sampling(temperature=0.0),
                version=self.version,
            )
        return [
            replace(group, baseline=answer.scores[0])
            for group, answer in zip(groups, greedy, strict=True)
        ]


def _group(
    number: int, prompt: Prompt, rollouts: Sequence[Rollout], scores: Sequence[Score]
) -> Group:
    """An episode that its environment broke off has no reward, whatever is said of the rest."""
    judged = [
        score
        if rollout.error is None
        else replace(
            score,
            value=None,
            turn_rewards=(),
            errors=(rollout.error, *score.errors),
            num_errors={**score.num_errors, "environment": 1},
        )
        for rollout, score in zip(rollouts, scores, strict=True)
    ]
    return Group(number=number, prompt=prompt, rollouts=tuple(rollouts), scores=tuple(judged))


def reward_request(rollout: Rollout, *, max_response_tokens: int) -> RewardRequest:
    """What the rewards see of a rollout."""
    prompt = rollout.prompt
    return RewardRequest(
        prompt=prompt.text,
        response=rollout.text,
        answer=prompt.answer,
        data_source=prompt.data_source,
        reward=prompt.reward,
        metadata=prompt.metadata,
        messages=prompt.messages,
        response_tokens=len(rollout.response_ids),
        max_response_tokens=max_response_tokens,
        finish_reason=rollout.finish_reason,
        turns=rollout.turns,
    )
