"""Section `reference`: how the frozen model that a policy is compared with is held."""

from typing import Literal

from rlstack.config.base import Frozen, Problem
from rlstack.config.placement import PlacementConfig


class ReferenceConfig(Frozen):
    """The reference of a KL term, or the teacher in its place."""

    zero_stage: Literal[0, 3]
    """0: whole on every rank, in host memory between calls; 3: each rank holds a share."""
    offload_parameters: bool
    """Shares stay in host memory, and a GPU holds no more than the layer at work."""

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
