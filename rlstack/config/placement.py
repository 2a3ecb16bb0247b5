"""Group `placement`: how many processes of each role, and whether they share devices."""

from typing import Literal

from pydantic import Field

from rlstack.config.base import Frozen


class RolePlacement(Frozen):
    """The processes of a role beside the policy."""

    ranks: int | None = Field(ge=1)
    """null: as many as `trainer_ranks`."""
    devices: Literal["policy", "own"]
    """policy: those of the policy's ranks, in turns with it; own: devices that nobody else uses."""


class PlacementConfig(Frozen):
    """Roles to devices. `colocated`: generation and training take turns on the same devices."""

    mode: Literal["colocated", "disaggregated"]
    device: Literal["auto", "cpu", "gpu"]
    """auto: gpu where the cluster has one."""
    trainer_ranks: int = Field(ge=1)
    num_engines: int = Field(ge=1)
    tensor_parallel: int = Field(ge=1)
    """Devices per engine."""
    cpus_per_worker: float = Field(gt=0)
    """Ray CPUs reserved for each rank and each engine device."""
    critic: RolePlacement
    reference: RolePlacement
    reward_model: RolePlacement
