"""Section `reference`: how the frozen model that a policy is compared with is held."""

from typing import Literal

from pydantic import Field

from rlstack.config.algorithm import AlgorithmConfig, DistillationAdvantage
from rlstack.config.base import Frozen, Problem
from rlstack.config.placement import PlacementConfig
from rlstack.config.trainer import TrainerConfig


class ReferenceUpdate(Frozen):
    """When the reference moves after the policy, and how far."""

    every: int | None = Field(ge=1)
    """Steps between updates; null: the reference stays what the policy was at first."""
    mix: float = Field(gt=0, le=1)
    """Share of the policy in the new reference; 1: the reference becomes the policy."""


class ReferenceConfig(Frozen):
    """The reference of a KL term, or the teacher in its place."""

    zero_stage: Literal[0, 3]
    """0: whole on every rank, in host memory between calls; 3: each rank holds a share."""
    offload_parameters: bool
    """Shares stay in host memory, and a GPU holds no more than the layer at work."""
    update: ReferenceUpdate

    def problems(self, placement: PlacementConfig) -> list[Problem]:
        """What cannot be offloaded."""
        key, stage = "reference.offload_parameters", "reference.zero_stage"
        if not self.offload_parameters:
            return []
        if self.zero_stage != 3:
            text = f"needs {stage}=3; in stage 0 a whole model waits in host memory anyway"
            return [Problem((key, stage), text)]
        if placement.device == "cpu":
            text = "moves parameters off a GPU; with placement.device=cpu set it to false"
            return [Problem((key, "placement.device"), text)]
        return []

    def update_problems(self, algorithm: AlgorithmConfig, trainer: TrainerConfig) -> list[Problem]:
        """What there is no moving reference of."""
        key, advantage = "reference.update.every", algorithm.advantage
        if self.update.every is None:
            return []
        if isinstance(advantage, DistillationAdvantage):
            text = "moves a reference to the policy, and a teacher stays what it is; set it to null"
            return [Problem((key, "algorithm.advantage"), text)]
        if not algorithm.needs_reference:
            text = "has no reference to move; set algorithm.kl.coef above 0, or it to null"
            return [Problem((key, "algorithm.kl.coef"), text)]
        if trainer.lora is not None:
            text = (
                "cannot move the reference of a policy with adapters, which is the model below "
                "them; set trainer.lora=null, or it to null"
            )
            return [Problem((key, "trainer.lora"), text)]
        return []
