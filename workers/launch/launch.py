"""From what a run needs to its running roles: join Ray, place, start; in the end stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import ray

from rlstack.planning.phases import DeviceState
from rlstack.planning.placement import Placement, needed_cpus, place
from rlstack.planning.spec import RunSpec
from workers.groups.engines import EngineGroup
from workers.groups.ranks import (
    BaseOfPolicy,
    CriticGroup,
    PolicyGroup,
    ReferenceGroup,
    RewardTrainerGroup,
    TrainerGroup,
)
from workers.groups.reallocator import Reallocator
from workers.groups.reward_models import RewardModelGroup
from workers.launch.actors import Actors
from workers.launch.cluster import describe, join
from workers.launch.engines import load_engines, start_engines
from workers.launch.ranks import RankStarter


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGroups:
    """The running roles; None where the run has no such role."""

    policy: PolicyGroup | None
    reward_trainer: RewardTrainerGroup | None
    critic: CriticGroup | None
    reference: ReferenceGroup | BaseOfPolicy | None
    reward_models: RewardModelGroup | None
    engines: EngineGroup | None
    reallocator: Reallocator | None


@asynccontextmanager
async def launch(spec: RunSpec) -> AsyncIterator[WorkerGroups]:
    """Start the roles side by side; on leaving, end every process that was started.

    Raises:
        PlacementError: if the cluster cannot be reached or does not hold the roles.
    """
    join(spec.ray_address, cpus=ceil(needed_cpus(spec)))
    try:
        async with started(place(spec, describe()), spec) as groups:
            yield groups
    finally:
        ray.shutdown()


@asynccontextmanager
async def started(placement: Placement, spec: RunSpec) -> AsyncIterator[WorkerGroups]:
    """Carry out `placement` on the cluster that was joined; on leaving, end its processes.

    Raises:
        PlacementError: if others hold the resources.
    """
    actors = Actors(placement, spec.faults)
    try:
        await actors.reserve()
        yield await _start(actors, spec)
    finally:
        actors.stop()


async def _start(actors: Actors, spec: RunSpec) -> WorkerGroups:
    """Start every role; those that do not wait for a GPU start at the same time."""
    placement = actors.placement
    starter = RankStarter(actors, spec)
    policy = starter.policy(spec.policy) if spec.policy else None
    if policy is not None and placement.device == "gpu":
        actors.policy_gpus = await policy.visible_devices()
    critic = starter.critic(spec.critic) if spec.critic else None
    reference = None
    if spec.reference is not None and not spec.reference_in_policy:
        reference = starter.reference(spec.reference)
    reward_models = starter.reward_models(spec.reward_models) if spec.reward_models else None
    reward_trainer = starter.reward_trainer(spec.reward_trainer) if spec.reward_trainer else None
    roles = (policy, reward_trainer, critic, reference, reward_models)
    starting = [group.start() for group in roles if group is not None]
    resident: list[TrainerGroup[Any]] = [policy] if policy else []
    if critic is not None and placement.layouts["critic"].with_policy:
        resident.append(critic)
    if placement.time_shared:
        # An engine takes what memory it finds: the trainers must have left before.
        await asyncio.gather(*starting)
        await asyncio.gather(*(group.offload() for group in resident))
        starting = []
    engines = None
    if spec.rollout is not None:
        engines = start_engines(actors, spec, spec.rollout)
        starting.append(load_engines(engines))
    await asyncio.gather(*starting)
    reallocator = None
    if policy is not None and engines is not None:
        reallocator = await _reallocator(placement, policy, engines, resident)
    return WorkerGroups(
        policy=policy,
        reward_trainer=reward_trainer,
        critic=critic,
        reference=BaseOfPolicy(policy) if policy and spec.reference_in_policy else reference,
        reward_models=reward_models,
        engines=engines,
        reallocator=reallocator,
    )


async def _reallocator(
    placement: Placement,
    policy: PolicyGroup,
    engines: EngineGroup,
    resident: list[TrainerGroup[Any]],
) -> Reallocator:
    reallocator = Reallocator(
        policy,
        engines,
        resident=resident,
        transport=placement.transport,
        workers_per_engine=placement.layouts["engines"].tensor_parallel,
        state=DeviceState(
            time_shared=placement.time_shared,
            trainer_loaded=not placement.time_shared,
            engines_awake=True,
        ),
    )
    await reallocator.connect()
    return reallocator
