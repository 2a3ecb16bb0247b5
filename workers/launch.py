"""From a configuration to running roles: Ray, placement, actors."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import ceil

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlstack.config.model import ModelConfig
from rlstack.config.placement import PlacementConfig
from rlstack.config.rollout import RolloutConfig
from rlstack.config.trainer import TrainerConfig
from rlstack.errors import PlacementError
from rlstack.planning.phases import DeviceState, choose_transport
from workers.actors import EngineActor, PolicyActor, ReferenceActor
from workers.engines import EngineGroup
from workers.group import PolicyGroup, ReferenceGroup
from workers.reallocator import Reallocator
from workers.runtime_env import engine_environment, trainer_environment
from workers.specs import EngineSpec, TrainerSpec

CONNECT_TIMEOUT_S = 5.0
PLACEMENT_TIMEOUT_S = 120.0
SHUTDOWN_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """Which roles to start, and how. A role that is None is left out."""

    placement: PlacementConfig
    model: ModelConfig
    seed: int
    trainer: TrainerConfig | None = None
    total_updates: int = 1
    reference: bool = False
    rollout: RolloutConfig | None = None
    max_prompt_tokens: int = 0
    max_response_tokens: int = 0
    ray_address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The running worker groups."""

    policy: PolicyGroup | None
    reference: ReferenceGroup | None
    engines: EngineGroup | None
    reallocator: Reallocator | None


@asynccontextmanager
async def launch(spec: LaunchSpec) -> AsyncIterator[Roles]:
    """Start the roles side by side; on leaving, end every process that was started.

    Raises:
        PlacementError: if the cluster cannot be reached or does not hold the roles.
    """
    _join_cluster(spec)
    try:
        launcher = _Launcher(spec)
        try:
            yield await launcher.start()
        finally:
            await launcher.stop()
    finally:
        ray.shutdown()


def _join_cluster(spec: LaunchSpec) -> None:
    if spec.ray_address is not None:
        try:
            check_reachable(spec.ray_address)
            ray.init(address=spec.ray_address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise PlacementError(
                f"ray_address: no Ray cluster answers at {spec.ray_address!r}; start one with "
                f"`ray start --head`, or leave ray_address=null to run inside this command: {error}"
            ) from error
        return
    bundles = _bundles(spec, device="cpu")
    cpus = ceil(sum(bundle["CPU"] for bundle in bundles))
    # Phases take turns, so more logical CPUs than cores is no overload.
    ray.init(
        num_cpus=max(cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )


def check_reachable(address: str) -> None:
    """Raise OSError at once if nothing listens at host:port; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def _bundles(spec: LaunchSpec, *, device: str) -> list[dict[str, float]]:
    """Resources of each trainer rank, then each engine (no GPUs where it shares the trainer's).

    Reference ranks live beside the trainer ranks, in the same bundles.
    """
    placement = spec.placement
    cpus = placement.cpus_per_worker
    gpu = {"GPU": 1.0} if device == "gpu" else {}
    roles_per_rank = 2 if spec.reference else 1
    bundles: list[dict[str, float]] = []
    if spec.trainer is not None:
        bundles += [{"CPU": cpus * roles_per_rank, **gpu}] * placement.trainer_ranks
    if spec.rollout is not None:
        width = placement.tensor_parallel
        own = gpu and (placement.mode == "disaggregated" or spec.trainer is None)
        gpus = {"GPU": float(width)} if own else {}
        bundles += [{"CPU": cpus * width, **gpus}] * placement.num_engines
    return bundles


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
        self.bundles = _bundles(spec, device=self.device)
        for kind in ("GPU", "CPU"):
            needed = sum(bundle.get(kind, 0.0) for bundle in self.bundles)
            if needed > resources.get(kind, 0.0):
                raise PlacementError(
                    f"placement: the roles need {needed:g} {kind}s but the cluster has "
                    f"{resources.get(kind, 0.0):g}; lower placement.trainer_ranks, "
                    "placement.num_engines, placement.tensor_parallel or placement.cpus_per_worker"
                )
        shared_ranks = placement.num_engines * placement.tensor_parallel
        shares = self.time_shared and spec.trainer is not None and spec.rollout is not None
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
        self.group: PlacementGroup = placement_group(self.bundles, strategy="PACK")

    async def start(self) -> Roles:
        """Start every role; those that do not wait for a GPU start at the same time."""
        spec = self.spec
        try:
            await asyncio.wait_for(self.group.ready(), PLACEMENT_TIMEOUT_S)
        except TimeoutError:
            raise PlacementError(
                f"placement: the cluster could not place {self.bundles} within "
                f"{PLACEMENT_TIMEOUT_S:.0f} s; is it busy with another job?"
            ) from None
        policy = PolicyGroup(self._policy_actors()) if spec.trainer else None
        reference = ReferenceGroup(self._reference_actors()) if spec.reference else None
        engines = None
        starting = [group.start() for group in (policy, reference) if group is not None]
        if self.time_shared and policy is not None:
            # An engine takes what memory it finds: the trainer must have left before.
            await asyncio.gather(*starting)
            await policy.offload()
            starting = []
        if spec.rollout is not None:
            engines, engine_starts = await self._engines(spec.rollout, policy)
            starting += engine_starts
        await asyncio.gather(*starting)
        reallocator = None
        if policy is not None and engines is not None:
            reallocator = Reallocator(
                policy,
                engines,
                transport=self.transport,
                workers_per_engine=spec.placement.tensor_parallel,
                state=DeviceState(
                    time_shared=self.time_shared,
                    trainer_loaded=not self.time_shared,
                    engines_awake=True,
                ),
            )
            await reallocator.connect()
        return Roles(policy=policy, reference=reference, engines=engines, reallocator=reallocator)

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

    def _trainer_spec(self) -> TrainerSpec:
        spec = self.spec
        assert spec.trainer is not None
        return TrainerSpec(
            model=spec.model,
            trainer=spec.trainer,
            temperature=spec.rollout.temperature if spec.rollout else 1.0,
            total_updates=spec.total_updates,
            seed=spec.seed,
            device=self.device,
            num_ranks=spec.placement.trainer_ranks,
            threads=self._threads(spec.placement.trainer_ranks),
        )

    def _policy_actors(self) -> list[ActorHandle]:
        spec, trainer = self.spec, self._trainer_spec()
        actors = [
            ray.remote(PolicyActor)
            .options(
                num_cpus=spec.placement.cpus_per_worker,
                num_gpus=1 if self.device == "gpu" else 0,
                scheduling_strategy=self._strategy(rank),
                runtime_env={"env_vars": trainer_environment(trainer)},
            )
            .remote(trainer, rank=rank)
            for rank in range(trainer.num_ranks)
        ]
        self.actors += actors
        return actors

    def _reference_actors(self) -> list[ActorHandle]:
        trainer = self._trainer_spec()
        actors = [
            ray.remote(ReferenceActor)
            .options(
                num_cpus=self.spec.placement.cpus_per_worker,
                scheduling_strategy=self._strategy(rank),
                runtime_env={"env_vars": trainer_environment(trainer)},
            )
            .remote(trainer, rank=rank)
            for rank in range(trainer.num_ranks)
        ]
        self.actors += actors
        return actors

    async def _engines(
        self, rollout: RolloutConfig, policy: PolicyGroup | None
    ) -> tuple[EngineGroup, list[asyncio.Future[None]]]:
        width = self.spec.placement.tensor_parallel
        devices: list[str | None] = [None] * self.spec.placement.num_engines
        if self.time_shared and policy is not None:
            visible = await policy.visible_devices()
            devices = [
                ",".join(visible[index * width : (index + 1) * width])
                for index in range(len(devices))
            ]

        async def replace(index: int) -> ActorHandle:
            actor = self._engine_actor(rollout, index=index, shared_devices=devices[index])
            await actor.start.remote()
            return actor

        actors = [
            self._engine_actor(rollout, index=index, shared_devices=shared)
            for index, shared in enumerate(devices)
        ]
        group = EngineGroup(actors, start_engine=replace, max_restarts=rollout.max_restarts)
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
        )
        threads = self._threads(placement.num_engines * placement.tensor_parallel)
        environment = engine_environment(engine, threads=threads, shared_devices=shared_devices)
        num_trainers = placement.trainer_ranks if spec.trainer else 0
        own_gpus = self.device == "gpu" and shared_devices is None
        actor = (
            ray.remote(EngineActor)
            .options(
                num_cpus=placement.cpus_per_worker * placement.tensor_parallel,
                num_gpus=placement.tensor_parallel if own_gpus else 0,
                scheduling_strategy=self._strategy(num_trainers + index),
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
