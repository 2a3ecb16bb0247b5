"""Group `reward`: the weighted components of the reward and the processes that run them."""

from typing import Any

from pydantic import Field

from rlstack.config.base import Frozen


class RewardComponent(Frozen):
    """One registered reward; `row` stands for the reward that the dataset row names."""

    name: str
    weight: float = 1.0
    params: dict[str, Any] = Field(default_factory=dict)


class RewardConfig(Frozen):
    """The reward of a rollout is the weighted sum of the components that can judge it."""

    components: tuple[RewardComponent, ...] = Field(min_length=1)
    plugins: tuple[str, ...]
    """Modules or .py files that register rewards; every scorer process imports them itself."""
    num_workers: int = Field(ge=1)
    timeout_s: float = Field(gt=0)
    """Longest a reward may take for one rollout."""
    memory_gib: float = Field(default=16, gt=0)
    """Address space of one scorer process; beyond it a reward gets a MemoryError."""
