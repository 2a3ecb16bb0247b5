"""From a configuration to running roles: Ray, placement, actors."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlstack.config.rollout import RolloutConfig
from rlstack.errors import PlacementError
from rlstack.planning.phases import DeviceState, choose_transport
from workers import actors
from workers.actors import EngineActor, RankActor
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
from workers.launch.cluster import join
from workers.launch.environment import engine_environment, trainer_environment
from workers.launch.spec import LaunchSpec
from workers.specs import (
    EngineSpec,
    FrozenRole,
    RankSpec,
    ReferenceSpec,
    RewardModelRole,
    RewardModelSpec,
    TrainedRole,
    TrainerSpec,
)

PLACEMENT_TIMEOUT_S = 120.0
SHUTDOWN_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The running worker groups."""

    policy: PolicyGroup | None
    reward_trainer: RewardTrainerGroup | None
    critic: CriticGroup | None
    reference: ReferenceGroup | BaseOfPolicy | None
    reward_models: RewardModelGroup | None
    engines: EngineGroup | None
    reallocator: Reallocator | None


@asynccontextmanager
async def launch(spec: LaunchSpec) -> AsyncIterator[Roles]:
    """Start the roles side by side; on leaving, end every process that was started.

    Raises:
        PlacementError: if the cluster cannot be reached or does not hold the roles.
    """
    join(spec.ray_address, cpus=ceil(spec.place(device="cpu").total("CPU")))
    try:
        launcher = _Launcher(spec)
        try:
            yield await launcher.start()
        finally:
            await launcher.stop()
    finally:
        ray.shutdown()


class _Launcher:
    """Places and starts the actors of one run."""

    def __init__(self, spec: LaunchSpec) -> None:
        self.spec = spec
        placement = spec.placement
        resources = ray.cluster_resources()
        num_gpus = int(resources.get("GPU", 0))
        self.device = placement.device
        if self.device == "auto":
            self.device = "gpu" if num_gpus else "cpu"
        self.time_shared = self.device == "gpu" and placement.mode == "colocated"
        self.placed = spec.place(device=self.device)
        for kind in ("GPU", "CPU"):
            needed = self.placed.total(kind)
            if needed > resources.get(kind, 0.0):
                raise PlacementError(
                    f"placement: the roles need {needed:g} {kind}s but the cluster has "
                    f"{resources.get(kind, 0.0):g}; lower placement.trainer_ranks, "
                    "placement.num_engines, placement.tensor_parallel or placement.cpus_per_worker"
                )
        shared_ranks = placement.num_engines * placement.tensor_parallel
        shares = self.time_shared and spec.policy is not None and spec.rollout is not None
        if shares and shared_ranks > placement.trainer_ranks:
            raise PlacementError(
                f"placement: colocated engines need {shared_ranks} GPUs (num_engines x "
                f"tensor_parallel) but the trainer has {placement.trainer_ranks}; raise "
                "placement.trainer_ranks or use placement.mode=disaggregated"
            )
        self.transport = choose_transport(
            device=self.device,
            colocated=placement.mode == "colocated",
            num_nodes=len([node for node in ray.nodes() if node["Alive"]]),
        )
        self.actors: list[ActorHandle] = []
        self.engines: list[ActorHandle] = []
        self.group = placement_group(self.placed.bundles, strategy="PACK")
        self.policy_turn = asyncio.Lock()
        """Whose turn it is on the policy's devices."""
        self.shared_devices: list[str] = []
        """The GPU of each policy rank."""

    async def start(self) -> Roles:
        """Start every role; those that do not wait for a GPU start at the same time."""
        spec = self.spec
        try:
            await asyncio.wait_for(self.group.ready(), PLACEMENT_TIMEOUT_S)
        except TimeoutError:
            raise PlacementError(
                f"placement: the cluster could not place {self.placed.bundles} within "
                f"{PLACEMENT_TIMEOUT_S:.0f} s; is it busy with another job?"
            ) from None
        policy = self._policy(spec.policy) if spec.policy else None
        if policy is not None and self.device == "gpu":
            self.shared_devices = await policy.visible_devices()
        critic = self._critic(spec.critic) if spec.critic else None
        reference = None
        if spec.reference is not None and not spec.reference_in_policy:
            reference = self._reference(spec.reference)
        reward_models = self._reward_models(spec.reward_models) if spec.reward_models else None
        reward_trainer = self._reward_trainer(spec.reward_trainer) if spec.reward_trainer else None
        roles = (policy, reward_trainer, critic, reference, reward_models)
        groups = [group for group in roles if group is not None]
        starting = [group.start() for group in groups]
        resident: list[TrainerGroup[Any]] = [policy] if policy else []
        if critic is not None and spec.placement.critic.devices == "policy":
            resident.append(critic)
        if self.time_shared and resident:
            # An engine takes what memory it finds: the trainers must have left before.
            await asyncio.gather(*starting)
            await asyncio.gather(*(group.offload() for group in resident))
            starting = []
        engines = None
        if spec.rollout is not None:
            engines, engine_starts = self._engines(spec.rollout)
            starting += engine_starts
        await asyncio.gather(*starting)
        reallocator = None
        if policy is not None and engines is not None:
            reallocator = await self._reallocator(policy, engines, resident)
        return Roles(
            policy=policy,
            reward_trainer=reward_trainer,
            critic=critic,
            reference=BaseOfPolicy(policy) if policy and spec.reference_in_policy else reference,
            reward_models=reward_models,
            engines=engines,
            reallocator=reallocator,
        )

    async def _reallocator(
        self, policy: PolicyGroup, engines: EngineGroup, resident: list[TrainerGroup[Any]]
    ) -> Reallocator:
        reallocator = Reallocator(
            policy,
            engines,
            resident=resident,
            transport=self.transport,
            workers_per_engine=self.spec.placement.tensor_parallel,
            state=DeviceState(
                time_shared=self.time_shared,
                trainer_loaded=not self.time_shared,
                engines_awake=True,
            ),
        )
        await reallocator.connect()
        return reallocator

    async def stop(self) -> None:
        """End every actor and give the resources back."""
        # A killed actor cannot end the processes that vLLM has started for it.
        for ending in [engine.shutdown.remote() for engine in self.engines]:
            with suppress(RayActorError, RayTaskError, GetTimeoutError):  # dead already, or stuck
                ray.get(ending, timeout=SHUTDOWN_TIMEOUT_S)
        for actor in self.actors:
            ray.kill(actor)
        remove_placement_group(self.group)

    # --- actors

    def _strategy(self, bundle: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)

    def _threads(self, num_workers: int) -> int:
        return max(1, (os.cpu_count() or 1) // num_workers)

    def _policy(self, role: TrainedRole) -> PolicyGroup:
        return PolicyGroup(
            self._trained(actors.policy, role, name="trainer"), turn=self.policy_turn
        )

    def _reward_trainer(self, role: TrainedRole) -> RewardTrainerGroup:
        return RewardTrainerGroup(self._trained(actors.reward_trainer, role, name="trainer"))

    def _critic(self, role: TrainedRole) -> CriticGroup:
        ranks = self._trained(actors.critic, role, name="critic")
        return CriticGroup(ranks, turn=self._turn("critic"))

    def _reference(self, role: FrozenRole) -> ReferenceGroup:
        num_ranks = len(self.placed.ranks["reference"])
        spec = ReferenceSpec(
            role=role,
            temperature=self.spec.logprob_temperature,
            device=self.device,
            data_parallel=num_ranks,
            threads=self._threads(num_ranks),
        )
        sharded = role.config.zero_stage == 3
        ranks = self._ranks(actors.reference, spec, name="reference")
        return ReferenceGroup(ranks, turn=self._turn("reference"), sharded=sharded)

    def _reward_models(self, role: RewardModelRole) -> RewardModelGroup:
        num_ranks = len(self.placed.ranks["reward_model"])
        threads = self._threads(num_ranks)
        spec = RewardModelSpec(
            role=role, device=self.device, data_parallel=num_ranks, threads=threads
        )
        sharded = role.zero_stage == 3
        ranks = self._ranks(actors.reward_model, spec, name="reward_model")
        return RewardModelGroup(ranks, turn=self._turn("reward_model"), sharded=sharded)

    def _trained(
        self, make: Callable[..., Any], role: TrainedRole, *, name: str
    ) -> list[ActorHandle]:
        num_ranks = len(self.placed.ranks[name])
        spec = TrainerSpec(
            model=role.model,
            trainer=role.trainer,
            temperature=self.spec.logprob_temperature,
            total_updates=role.total_updates,
            features=role.features,
            seed=self.spec.seed,
            device=self.device,
            data_parallel=num_ranks,
            threads=self._threads(num_ranks),
            feeds_engines=role is self.spec.policy and self.spec.rollout is not None,
        )
        return self._ranks(make, spec, name=name)

    def _ranks(self, make: Callable[..., Any], spec: RankSpec, *, name: str) -> list[ActorHandle]:
        environment = trainer_environment(device=self.device, threads=spec.threads)
        return [
            self._rank(name=name, rank=rank, environment=environment)(make, spec, rank=rank)
            for rank in range(spec.world_size)
        ]

    def _turn(self, name: Literal["critic", "reference", "reward_model"]) -> asyncio.Lock:
        """Of the role's devices."""
        return self.policy_turn if self._is_guest(name) else asyncio.Lock()

    def _is_guest(self, name: str) -> bool:
        """Whether a role lives on the policy's devices."""
        where = self.spec.others().get(name)
        return where is not None and where.devices == "policy" and self.spec.policy is not None

    def _rank(
        self, *, name: str, rank: int, environment: dict[str, str]
    ) -> Callable[..., ActorHandle]:
        """What makes the actor of a rank from its arguments."""
        guest = self._is_guest(name)
        if guest and self.device == "gpu":
            environment = environment | {"CUDA_VISIBLE_DEVICES": self.shared_devices[rank]}
        options: Any = ray.remote(RankActor).options(
            num_cpus=self.spec.placement.cpus_per_worker,
            num_gpus=1 if self.device == "gpu" and not guest else 0,
            scheduling_strategy=self._strategy(self.placed.ranks[name][rank]),
            runtime_env={"env_vars": environment},
        )

        def make(*arguments: Any, **named: Any) -> ActorHandle:
            handle = options.remote(*arguments, **named)
            self.actors.append(handle)
            return handle

        return make

    def _engines(self, rollout: RolloutConfig) -> tuple[EngineGroup, list[asyncio.Future[None]]]:
        width = self.spec.placement.tensor_parallel
        devices: list[str | None] = [None] * self.spec.placement.num_engines
        if self.time_shared and self.spec.policy is not None:
            devices = [
                ",".join(self.shared_devices[index * width : (index + 1) * width])
                for index in range(len(devices))
            ]

        async def start_engine(index: int) -> ActorHandle:
            actor = self._engine_actor(rollout, index=index, shared_devices=devices[index])
            await actor.start.remote()
            return actor

        actors = [
            self._engine_actor(rollout, index=index, shared_devices=shared)
            for index, shared in enumerate(devices)
        ]
        group = EngineGroup(actors, start_engine=start_engine, max_restarts=rollout.max_restarts)
        return group, [asyncio.ensure_future(_ready(actor)) for actor in actors]

    def _engine_actor(
        self, rollout: RolloutConfig, *, index: int, shared_devices: str | None
    ) -> ActorHandle:
        spec, placement = self.spec, self.spec.placement
        engine = EngineSpec(
            model=spec.model,
            rollout=rollout,
            max_model_tokens=spec.max_prompt_tokens + spec.max_response_tokens,
            tensor_parallel=placement.tensor_parallel,
            transport=self.transport,
            device=self.device,
            seed=spec.seed,
            adapter_rank=spec.adapter_rank,
        )
        threads = self._threads(placement.num_engines * placement.tensor_parallel)
        environment = engine_environment(engine, threads=threads, shared_devices=shared_devices)
        own_gpus = self.device == "gpu" and shared_devices is None
        actor = (
            ray.remote(EngineActor)
            .options(
                num_cpus=placement.cpus_per_worker * placement.tensor_parallel,
                num_gpus=placement.tensor_parallel if own_gpus else 0,
                scheduling_strategy=self._strategy(self.placed.ranks["engines"][index]),
                runtime_env={"env_vars": environment},
                max_concurrency=64,
            )
            .remote(engine)
        )
        self.actors.append(actor)
        self.engines.append(actor)
        return actor


async def _ready(actor: ActorHandle) -> None:
    await actor.start.remote()
