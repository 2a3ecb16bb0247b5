"""The RL loop: the file a newcomer reads first.

    step:  groups -> batch -> old and reference logprobs, values -> advantages -> updates -> weights

The controller talks to roles through `protocols` and to generation through a `GroupSource`. It does
not know where they run, who shares devices, when a group was sampled, or which algorithm is
configured.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from rlstack.algorithms.catalog import AdvantageEstimate, estimate_advantages, next_kl_coef
from rlstack.algorithms.reference_updates import is_update_step
from rlstack.batch import TokenBatch, collate
from rlstack.config.run import RLConfig
from rlstack.evaluation import evaluation_metrics
from rlstack.faults import SKIPPED_UPDATES, SkippedUpdates, check_bounds, skipped_step
from rlstack.generation import GroupSource
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
    MovingReference,
    PolicyTrainer,
    Reference,
    Role,
)
from rlstack.run.timeline import Timeline
from rlstack.seeds import Domain, derived_seed
from rlstack.step_metrics import step_metrics
from rlstack.types import Group, Prompt

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The models of a step, and what chooses its rollouts."""

    policy: PolicyTrainer
    reference: Reference | None
    critic: Critic | None
    filtration: Filtration | None
    moving_reference: MovingReference | None = None
    """Moves `reference` after the policy; None: it stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step leaves behind: its metrics and its rollouts."""

    metrics: Metrics
    groups: Sequence[Group]


class Controller:
    """One policy in training. `step` may be called until `total_steps`."""

    def __init__(
        self,
        config: RLConfig,
        roles: Roles,
        source: GroupSource,
        *,
        pad_token_id: int,
        timeline: Timeline,
    ) -> None:
        self.config = config
        self.roles = roles
        self.source = source
        self.pad_token_id = pad_token_id
        self.timeline = timeline
        self.skipped = SkippedUpdates(most=config.faults.max_skipped_updates)
        self.policy_version = 0
        self.kl_coef = config.algorithm.kl.coef

    async def step(self, step: int) -> StepResult:
        """Take groups, estimate advantages, update, publish.

        Raises:
            TrainingError: if too many updates in a row were skipped, or a bound stops the run.
        """
        algorithm = self.config.algorithm
        taken = await self.source.take(self.config.data.prompts_per_step)
        sampled = collate(taken.groups, pad_token_id=self.pad_token_id)
        batch = self._chosen(sampled, taken.groups, step)
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
        measured = estimate.metrics + step_metrics(
            taken.groups,
            sampled,
            batch,
            policy_version=self.policy_version,
            max_response_tokens=self.config.rollout.max_response_tokens,
            kl_coef=self.kl_coef if algorithm.needs_reference else None,
        )
        learns = self.config.critic is None or step > self.config.critic.warmup_steps
        minibatches = minibatch_rows(self.config, step=step, num_rows=batch.num_rows)
        bounds, updates = self.config.faults.bounds, Metrics()
        with self.timeline.span("update"):
            if check_bounds(bounds, measured, step=step):
                updates = self._without_updates(len(minibatches), policy=learns)
            else:
                for rows in minibatches:
                    updates += await self._update(batch, forward, estimate, rows, policy=learns)
        check_bounds(bounds, updates, step=step)
        await self._move_reference(step)
        self.kl_coef = next_kl_coef(
            self.kl_coef, updates, num_rollouts=batch.num_rows, config=algorithm
        )
        num_skipped = updates.sums.get(f"policy/{SKIPPED_UPDATES}", 0)
        self.policy_version += learns and num_skipped < len(minibatches)
        published = await self.source.publish(self.policy_version)
        metrics = merge((taken.metrics, measured, updates, published))
        return StepResult(metrics=metrics, groups=taken.groups)

    async def evaluate(self, prompts: Sequence[Prompt]) -> StepResult:
        """Sample every held-out prompt from the current policy and score it."""
        settings = self.config.evaluation
        async with self.source.paused() as sampler:
            with self.timeline.span("evaluation"):
                groups = await sampler.sample(
                    prompts,
                    domain=Domain.EVALUATION,
                    numbers=range(len(prompts)),
                    num_samples=settings.num_samples,
                    sampling=settings.sampling(stop=self.config.rollout.stop),
                    version=self.policy_version,
                )
        return StepResult(metrics=evaluation_metrics(groups), groups=groups)

    def state(self) -> dict[str, Any]:
        """What `restore` needs beside the weights, as JSON."""
        return {
            "policy_version": self.policy_version,
            "kl_coef": self.kl_coef,
            "source": self.source.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the controller that gave `state` stood.

        Raises:
            CheckpointError: if it had other prompts or settings.
        """
        self.policy_version = state["policy_version"]
        self.kl_coef = state["kl_coef"]
        self.source.restore(state["source"], version=self.policy_version)

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
        passes: dict[str, Awaitable[Tensor]] = {
            "policy": self._run("policy forward", policy, partial(policy.logprobs, batch))
        }
        if reference is not None:
            call = partial(reference.logprobs, batch)
            passes["reference"] = self._run("reference forward", reference, call)
        if critic is not None:
            passes["critic"] = self._run("critic forward", critic, partial(critic.values, batch))
        found = dict(zip(passes, await asyncio.gather(*passes.values()), strict=True))
        return Forward(
            old_logprobs=found["policy"],
            ref_logprobs=found.get("reference", found["policy"]),
            values=found.get("critic"),
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
            policy_rows = policy_batch(batch, forward, estimate, rows, kl_coef=self.kl_coef)
            update = partial(roles.policy.update, policy_rows, config.algorithm)
            calls.append(self._run("policy update", roles.policy, update))
        if roles.critic is not None and config.critic is not None:
            critic_rows = critic_batch(batch, forward, estimate, rows)
            update = partial(roles.critic.update, critic_rows, config.critic)
            calls.append(self._run("critic update", roles.critic, update))
        metrics = merge(await asyncio.gather(*calls))
        self.skipped.observe(metrics)
        return metrics

    def _without_updates(self, num_updates: int, *, policy: bool) -> Metrics:
        """What a step measures that makes none of its updates, which is one decision."""
        roles = ["policy"] * policy + ["critic"] * (self.roles.critic is not None)
        metrics = skipped_step(roles, num_updates=num_updates)
        self.skipped.observe(metrics)
        return metrics

    async def _move_reference(self, step: int) -> None:
        """Let the reference move to the policy, where its turn has come."""
        moving, update = self.roles.moving_reference, self.config.reference.update
        if moving is None or update.every is None or not is_update_step(step, every=update.every):
            return
        call = partial(moving.move, mix=update.mix)
        await self._run("reference update", self.roles.policy, call)

    async def _run(self, name: str, role: Role, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """`call` when it is the role's turn on its devices, as a span of the timeline."""
        async with role.turn:
            with self.timeline.span(name):
                return await call()
