"""Clusters and runs that a test describes; none of them need exist."""

from pathlib import Path
from typing import Any

from rlstack.config.placement import RolePlacement
from rlstack.config.trainer import LoRAConfig
from rlstack.planning.cluster import Cluster, Node
from rlstack.planning.spec import RewardModelRole, RunSpec, TrainedRole
from tests.workers.conftest import (
    faults_config,
    frozen_role,
    model_config,
    placement_config,
    rollout_config,
    trainer_config,
)

MODEL = model_config(Path("m"))


def cluster(num_nodes: int = 1, *, gpus: int = 8, cpus: float = 64, cores: int = 64) -> Cluster:
    """Equal nodes."""
    return Cluster(
        nodes=tuple(
            Node(name=f"node{index}", cpus=cpus, gpus=gpus, cores=cores)
            for index in range(num_nodes)
        )
    )


LAPTOP = cluster(gpus=0, cpus=12, cores=4)
"""Roles take turns on its cores: Ray is told of more CPUs."""


def trained(**changes: Any) -> TrainedRole:
    """A role that is trained."""
    return TrainedRole(model=MODEL, trainer=trainer_config(**changes), total_updates=1)


REWARD_MODELS = RewardModelRole(
    checkpoints=("a", "b"), max_tokens=64, max_tokens_per_batch=64, dtype="float32", zero_stage=3
)


def run(
    *,
    policy: bool = True,
    engines: bool = True,
    critic: RolePlacement | None = None,
    reference: RolePlacement | None = None,
    reward_model: RolePlacement | None = None,
    lora: LoRAConfig | None = None,
    **placement: Any,
) -> RunSpec:
    """A run with these roles, those beside the policy where they are given a place.

    placement: keys of `placement`; the device is whatever there is.
    """
    beside = {"critic": critic, "reference": reference, "reward_model": reward_model}
    places = {name: place for name, place in beside.items() if place is not None}
    return RunSpec(
        faults=faults_config(),
        placement=placement_config(**{"device": "auto"} | places | placement),
        model=MODEL,
        seed=0,
        policy=trained(zero_stage=2, lora=lora) if policy else None,
        critic=trained(zero_stage=3) if critic else None,
        reference=frozen_role(Path("m"), zero_stage=0) if reference else None,
        reward_models=REWARD_MODELS if reward_model else None,
        rollout=rollout_config() if engines else None,
    )
