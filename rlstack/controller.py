"""The RL loop: the file a newcomer reads first.

    step:  prompts -> rollouts -> scores -> groups -> batch
           -> old and reference logprobs, values -> advantages -> updates -> weights to the engines

The controller talks to roles through `protocols` alone. It does not know where they run, who shares
devices, or which algorithm is configured.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from torch import Tensor

from rlstack.algorithms import measurements
from rlstack.algorithms.catalog import AdvantageEstimate, estimate_advantages, next_kl_coef
from rlstack.batch import TokenBatch, collate
from rlstack.config.run import RLConfig
from rlstack.data.sampler import PromptSampler
from rlstack.evaluation import evaluation_metrics, rollout_metrics
from rlstack.metrics import Metrics, merge
from rlstack.minibatches import (
    Forward,
    critic_batch,
    filtered,
    minibatch_rows,
    policy_batch,
    row_multiple,
)
from rlstack.protocols import (
    Critic,
    Filtration,
    PolicyTrainer,
    Reallocator,
    Reference,
    Role,
    RolloutEngines,
    Scorer,
)
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

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Everything a step talks to."""

    engines: RolloutEngines
    scorer: Scorer
    policy: PolicyTrainer
    reference: Reference | None
    critic: Critic | None
    filtration: Filtration | None
    reallocator: Reallocator


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step leaves behind: its metrics and its rollouts."""

    metrics: Metrics
    groups: Sequence[Group]


class Controller:
    """One policy in training. `step` may be called until `total_steps`.

    State is that of the sampler, `policy_version` and `kl_coef`.
    """

    def __init__(
        self,
        config: RLConfig,
        roles: Roles,
        *,
        sampler: PromptSampler[Prompt],
        pad_token_id: int,
        timeline: Timeline,
    ) -> None:
        self.config = config
        self.roles = roles
        self.sampler = sampler
        self.pad_token_id = pad_token_id
        self.timeline = timeline
        self.policy_version = 0
        self.kl_coef = config.algorithm.kl.coef

    async def step(self, step: int) -> StepResult:
        """Generate, score, estimate, update."""
        algorithm = self.config.algorithm
        metrics = await self._enter(Phase.GENERATE)
        groups = await self._collect_groups()
        if algorithm.needs_baseline:
            groups = await self._with_baselines(groups)
        metrics += rollout_metrics(
            groups, max_response_tokens=self.config.rollout.max_response_tokens
        )
        metrics += self._staleness(groups)
        sampled = collate(groups, pad_token_id=self.pad_token_id)
        metrics += measurements.of_rewards(sampled)
        batch = self._chosen(sampled, groups, step)
        metrics += measurements.of_training(sampled, batch)

        metrics += await self._enter(Phase.TRAIN)
        with self.timeline.span("logprobs"):
            forward = await self._forward(batch)
        with self.timeline.span("advantages"):
            estimate = estimate_advantages(
                batch,
                forward.old_logprobs,
                forward.ref_logprobs,
                forward.values,
                config=algorithm,
                kl_coef=self.kl_coef,
            )
        metrics += estimate.metrics

        learns = self.config.critic is None or step > self.config.critic.warmup_steps
        with self.timeline.span("update"):
            for rows in minibatch_rows(self.config, step=step, num_rows=batch.num_rows):
                metrics += await self._update(batch, forward, estimate, rows, policy=learns)
        if algorithm.needs_reference:
            metrics += Metrics.of({"policy/kl_coef": self.kl_coef})
        self.kl_coef = next_kl_coef(
            self.kl_coef, metrics, num_rollouts=batch.num_rows, config=algorithm
        )
        self.policy_version += learns
        metrics += await self._enter(Phase.GENERATE)
        return StepResult(metrics=metrics, groups=groups)

    async def evaluate(self, prompts: Sequence[Prompt]) -> StepResult:
        """Sample every held-out prompt from the current policy and score it."""
        settings = self.config.evaluation
        metrics = await self._enter(Phase.GENERATE)
        with self.timeline.span("evaluation"):
            groups = await sample_groups(
                prompts,
                engines=self.roles.engines,
                scorer=self.roles.scorer,
                num_samples=settings.num_samples,
                sampling=SamplingSettings(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_response_tokens=settings.max_response_tokens,
                    stop=self.config.rollout.stop,
                ),
                seed=self.config.seed,
                domain=Domain.EVALUATION,
                numbers=range(len(prompts)),
                step=self.policy_version,
            )
        metrics += evaluation_metrics(groups)
        return StepResult(metrics=metrics, groups=groups)

    def _staleness(self, groups: Sequence[Group]) -> Metrics:
        """Updates between the policy that wrote a token and the one that is trained on it."""
        versions = np.concatenate([r.policy_versions for g in groups for r in g.rollouts])
        ages = self.policy_version - versions
        return Metrics.mean("policy/staleness", float(ages.sum()), len(ages))

    async def _enter(self, phase: Phase) -> Metrics:
        with self.timeline.span("reallocation"):
            return await self.roles.reallocator.enter(phase, version=self.policy_version)

    async def _collect_groups(self) -> list[Group]:
        """`prompts_per_step` scored groups; with dynamic sampling, those with signal first."""
        config = self.config
        wanted = config.data.prompts_per_step
        dynamic = config.algorithm.dynamic_sampling
        kept: list[Group] = []
        without_signal: list[Group] = []
        for _ in range(dynamic.max_rounds if dynamic.enabled else 1):
            missing = wanted - len(kept)
            first = self.sampler.num_taken
            with self.timeline.span("rollout"):
                groups = await sample_groups(
                    self.sampler.take(missing),
                    engines=self.roles.engines,
                    scorer=self.roles.scorer,
                    num_samples=config.rollout.num_samples,
                    sampling=self._sampling(config.rollout.temperature),
                    seed=config.seed,
                    domain=Domain.ROLLOUT,
                    numbers=range(first, first + missing),
                    step=self.policy_version,
                )
            for group in groups:
                keep = group.has_signal or not dynamic.enabled
                (kept if keep else without_signal).append(group)
            if len(kept) == wanted:
                break
        # Out of rounds: a batch of constant size is worth more than a few idle rows.
        return (kept + without_signal)[:wanted]

    async def _with_baselines(self, groups: Sequence[Group]) -> list[Group]:
        """The groups, each with the score of the greedy response to its prompt."""
        with self.timeline.span("baseline"):
            greedy = await sample_groups(
                [group.prompt for group in groups],
                engines=self.roles.engines,
                scorer=self.roles.scorer,
                num_samples=1,
                sampling=self._sampling(temperature=0.0),
                seed=self.config.seed,
                domain=Domain.BASELINE,
                numbers=[group.number for group in groups],
                step=self.policy_version,
            )
        return [
            replace(group, baseline=answer.scores[0])
            for group, answer in zip(groups, greedy, strict=True)
        ]

    def _sampling(self, temperature: float) -> SamplingSettings:
        return SamplingSettings(
            temperature=temperature,
            max_response_tokens=self.config.rollout.max_response_tokens,
            stop=self.config.rollout.stop,
        )

    def _chosen(self, sampled: TokenBatch, groups: Sequence[Group], step: int) -> TokenBatch:
        """The rollouts to train on."""
        filtration = self.roles.filtration
        if filtration is None:
            return sampled
        seed = derived_seed(self.config.seed, Domain.FILTRATION, step)
        multiple = row_multiple(self.config)
        return filtered(sampled, groups, filtration=filtration, multiple=multiple, seed=seed)

    async def _forward(self, batch: TokenBatch) -> Forward:
        """What policy, reference and critic say of the rollouts, at once where devices allow."""
        policy, reference, critic = self.roles.policy, self.roles.reference, self.roles.critic
        old_logprobs, ref_logprobs, values = await asyncio.gather(
            self._run("policy forward", policy, lambda: policy.logprobs(batch)),
            self._run("reference forward", reference, lambda: reference.logprobs(batch))
            if reference
            else _nothing(),
            self._run("critic forward", critic, lambda: critic.values(batch))
            if critic
            else _nothing(),
        )
        return Forward(
            old_logprobs=old_logprobs,
            ref_logprobs=old_logprobs if ref_logprobs is None else ref_logprobs,
            values=values,
        )

    async def _update(
        self,
        batch: TokenBatch,
        forward: Forward,
        estimate: AdvantageEstimate,
        rows: Tensor,
        *,
        policy: bool,
    ) -> Metrics:
        """One optimizer step of the critic and, unless it is warming up, of the policy."""
        roles, config = self.roles, self.config
        calls: list[Awaitable[Metrics]] = []
        if policy:
            own = policy_batch(batch, forward, estimate, rows, kl_coef=self.kl_coef)
            update = partial(roles.policy.update, own, config.algorithm)
            calls.append(self._run("policy update", roles.policy, update))
        if roles.critic is not None and config.critic is not None:
            lesson = critic_batch(batch, forward, estimate, rows)
            update = partial(roles.critic.update, lesson, config.critic)
            calls.append(self._run("critic update", roles.critic, update))
        return merge(await asyncio.gather(*calls))

    async def _run(self, name: str, role: Role, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """`call` when it is the role's turn on its devices, as a span of the timeline."""
        async with role.turn:
            with self.timeline.span(name):
                return await call()


async def _nothing() -> None:
    return None


async def sample_groups(
    prompts: Sequence[Prompt],
    *,
    engines: RolloutEngines,
    scorer: Scorer,
    num_samples: int,
    sampling: SamplingSettings,
    seed: int,
    domain: Domain,
    numbers: Sequence[int],
    step: int,
) -> list[Group]:
    """Sample and score `num_samples` responses of every prompt; rewards run while others generate.

    Each response has its own seed, derived from the run's `seed`, the number of its prompt in the
    run and its sample index. numbers: those of the prompts.
    step: updates of the policy so far, for rewards whose weights change.
    """
    requests = [
        GenerationRequest(
            request_id=row * num_samples + sample_index,
            prompt=prompt,
            sample_index=sample_index,
            seed=derived_seed(seed, domain, numbers[row], sample_index),
        )
        for row, prompt in enumerate(prompts)
        for sample_index in range(num_samples)
    ]
    loop = asyncio.get_running_loop()
    arrivals: list[list[asyncio.Future[RewardRequest]]] = [
        [loop.create_future() for _ in range(num_samples)] for _ in prompts
    ]
    scoring = [
        asyncio.ensure_future(scorer.score_group(members, step=step)) for members in arrivals
    ]
    rollouts: dict[int, Rollout] = {}
    try:
        async for request_id, rollout in engines.generate(requests, sampling):
            row, sample_index = divmod(request_id, num_samples)
            rollouts[request_id] = rollout
            arrivals[row][sample_index].set_result(
                reward_request(rollout, max_response_tokens=sampling.max_response_tokens)
            )
        scores = await asyncio.gather(*scoring)
    finally:
        # If generation or one group failed, the other groups would wait for ever.
        for task in scoring:
            task.cancel()
        await asyncio.gather(*scoring, return_exceptions=True)
    return [
        _group(
            numbers[row],
            prompt,
            [rollouts[row * num_samples + i] for i in range(num_samples)],
            scores[row],
        )
        for row, prompt in enumerate(prompts)
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
