"""Starting the ranks of every role but the engines."""

import asyncio
from collections.abc import Callable
from typing import Any

from ray.actor import ActorHandle

from rlstack.planning.layouts import RoleName
from rlstack.planning.spec import FrozenRole, RewardModelRole, RunSpec, TrainedRole
from workers import actors as make
from workers.actors import RankActor
from workers.groups.ranks import CriticGroup, PolicyGroup, ReferenceGroup, RewardTrainerGroup
from workers.groups.reward_models import RewardModelGroup
from workers.launch.actors import Actors
from workers.launch.environment import trainer_environment
from workers.specs import RankSpec, ReferenceSpec, RewardModelSpec, TrainerSpec


class RankStarter:
    """Starts the ranks of a role as its layout says; none of them has loaded a model yet."""

    def __init__(self, actors: Actors, spec: RunSpec) -> None:
        self._actors = actors
        self._placement = actors.placement
        self._spec = spec
        self._policy_turn = asyncio.Lock()
        """Held by whoever uses the policy's devices."""

    def policy(self, role: TrainedRole) -> PolicyGroup:
        """The ranks of the policy."""
        ranks = self._trained("policy", make.policy, role)
        return PolicyGroup(ranks, **self._named("policy"))

    def reward_trainer(self, role: TrainedRole) -> RewardTrainerGroup:
        """The ranks that train a reward model."""
        ranks = self._trained("reward_trainer", make.reward_trainer, role)
        return RewardTrainerGroup(ranks, **self._named("reward_trainer"))

    def critic(self, role: TrainedRole) -> CriticGroup:
        """The ranks of the critic."""
        return CriticGroup(self._trained("critic", make.critic, role), **self._named("critic"))

    def reference(self, role: FrozenRole) -> ReferenceGroup:
        """The ranks of the reference."""
        layout = self._placement.layouts["reference"]
        spec = ReferenceSpec(
            role=role,
            temperature=self._spec.logprob_temperature,
            device=self._placement.device,
            data_parallel=layout.data_parallel,
            threads=self._placement.threads["reference"],
        )
        sharded = layout.zero_stage == 3
        ranks = self._ranks("reference", make.reference, spec)
        return ReferenceGroup(ranks, **self._named("reference"), sharded=sharded)

    def reward_models(self, role: RewardModelRole) -> RewardModelGroup:
        """The ranks of the reward models."""
        layout = self._placement.layouts["reward_model"]
        spec = RewardModelSpec(
            role=role,
            device=self._placement.device,
            data_parallel=layout.data_parallel,
            threads=self._placement.threads["reward_model"],
        )
        sharded = layout.zero_stage == 3
        ranks = self._ranks("reward_model", make.reward_model, spec)
        return RewardModelGroup(ranks, **self._named("reward_model"), sharded=sharded)

    def _trained(
        self, name: RoleName, make_rank: Callable[..., Any], role: TrainedRole
    ) -> list[ActorHandle]:
        layout = self._placement.layouts[name]
        spec = TrainerSpec(
            model=role.model,
            trainer=role.trainer,
            temperature=self._spec.logprob_temperature,
            total_updates=role.total_updates,
            features=role.features,
            seed=self._spec.seed,
            device=self._placement.device,
            data_parallel=layout.data_parallel,
            threads=self._placement.threads[name],
            feeds_engines=name == "policy" and self._spec.rollout is not None,
        )
        return self._ranks(name, make_rank, spec)

    def _ranks(
        self, name: RoleName, make_rank: Callable[..., Any], spec: RankSpec
    ) -> list[ActorHandle]:
        environment = trainer_environment(device=spec.device, threads=spec.threads)
        return [
            self._actors.start(
                name, rank, RankActor, make_rank, spec, rank=rank, environment=environment
            )
            for rank in range(spec.world_size)
        ]

    def _named(self, name: RoleName) -> dict[str, Any]:
        """What every group is given beside its ranks."""
        with_policy = name == "policy" or self._placement.layouts[name].with_policy
        return {
            "role": name,
            "obituary": self._actors.watch.obituary,
            "turn": self._policy_turn if with_policy else asyncio.Lock(),
        }
