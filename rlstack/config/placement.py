"""Group `placement`: how many processes of each role, and whether they share devices."""

from typing import Literal

from pydantic import Field

from rlstack.config.base import Frozen, Problem


class RolePlacement(Frozen):
    """The processes of a role beside the policy."""

    ranks: int | None = Field(ge=1)
    """null: as many as `trainer_ranks`."""
    devices: Literal["policy", "own"]
    """policy: those of the policy's ranks, in turns with it; own: devices that nobody else uses."""


BesidePolicy = Literal["critic", "reference", "reward_model"]


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

    @property
    def beside_policy(self) -> dict[BesidePolicy, RolePlacement]:
        """The roles that may live on the policy's devices."""
        return {
            "critic": self.critic,
            "reference": self.reference,
            "reward_model": self.reward_model,
        }

    def misfit(self, name: BesidePolicy) -> Problem | None:
        """A role on the policy's devices has no more ranks than those."""
        role = self.beside_policy[name]
        if role.devices == "own" or (role.ranks or 0) <= self.trainer_ranks:
            return None
        return Problem(
            (f"placement.{name}.ranks", f"placement.{name}.devices", "placement.trainer_ranks"),
            f"{role.ranks} ranks do not fit the devices of {self.trainer_ranks} policy ranks; "
            f"lower it or set placement.{name}.devices=own",
        )
