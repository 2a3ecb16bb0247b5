"""The actors of one run, in the bundles that its placement reserves."""

import asyncio
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlstack.config.faults import FaultsConfig
from rlstack.errors import PlacementError
from rlstack.planning.cluster import Bundle
from rlstack.planning.layouts import RoleName
from rlstack.planning.placement import Placement
from workers.actors import WATCH
from workers.launch.environment import shared_gpus
from workers.launch.watch import Watch

RESERVE_TIMEOUT_S = 120.0


class Actors:
    """Reserves the bundles of a placement, starts actors in them and ends them all."""

    def __init__(self, placement: Placement, faults: FaultsConfig) -> None:
        self.placement = placement
        self.watch = Watch(faults)
        self.policy_gpus: list[str] = []
        """Of each policy rank, as CUDA_VISIBLE_DEVICES names it on its node."""
        self._reservation = placement_group(
            [_resources(bundle) for bundle in placement.bundles], strategy="PACK"
        )
        self._started: list[ActorHandle] = []

    async def reserve(self) -> None:
        """Wait for the resources.

        Raises:
            PlacementError: if somebody else holds them.
        """
        try:
            await asyncio.wait_for(self._reservation.ready(), RESERVE_TIMEOUT_S)
        except TimeoutError:
            bundles = [_resources(bundle) for bundle in self.placement.bundles]
            raise PlacementError(
                f"placement: the cluster could not place {bundles} within "
                f"{RESERVE_TIMEOUT_S:.0f} s; is it busy with another job?"
            ) from None

    def start(
        self,
        role: RoleName,
        index: int,
        actor: type,
        *arguments: Any,
        environment: dict[str, str],
        max_concurrency: int | None = None,
        **named: Any,
    ) -> ActorHandle:
        """The process `index` of a role, as `actor(*arguments, **named)`."""
        layout = self.placement.layouts[role]
        devices = layout.devices[index]
        if layout.with_policy and devices:
            environment = environment | shared_gpus([self.policy_gpus[i] for i in devices])
        # The group answers the watch while other calls are under way.
        remote: Any = ray.remote  # Ray does not type this option
        options = remote(concurrency_groups={WATCH: 1})(actor).options(
            num_cpus=layout.cpus,
            num_gpus=0 if layout.with_policy else len(devices),
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._reservation, placement_group_bundle_index=layout.bundles[index]
            ),
            runtime_env={"env_vars": environment},
            max_concurrency=max_concurrency,
        )
        handle: ActorHandle = options.remote(*arguments, **named)
        self._started.append(handle)
        self.watch.add(f"{role} {index}", handle)
        return handle

    def end(self, actor: ActorHandle) -> None:
        """End one actor, dead or alive; its place is free for another."""
        self.watch.leave(actor)
        if actor in self._started:
            self._started.remove(actor)
            ray.kill(actor)

    def stop(self) -> None:
        """End every actor and give the resources back."""
        self.watch.stop()
        # What an actor has started dies with it: see `workers.engine.vllm_extension`.
        for actor in self._started:
            ray.kill(actor)
        remove_placement_group(self._reservation)


def _resources(bundle: Bundle) -> dict[str, float]:
    """As Ray names them, which does not take 0 of anything."""
    return {"CPU": bundle.cpus} | ({"GPU": float(bundle.gpus)} if bundle.gpus else {})
