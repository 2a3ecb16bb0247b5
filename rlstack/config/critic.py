"""Group `critic`: the value function of PPO."""

from pydantic import Field

from rlstack.config.base import Frozen
from rlstack.config.paths import LocalOrHub
from rlstack.config.trainer import TrainerConfig


class CriticConfig(Frozen):
    """A model of its own with one value a token, trained on the same rollouts as the policy."""

    path: LocalOrHub | None
    """A reward model, an earlier critic or a causal model; null: starts as the policy does."""
    warmup_steps: int = Field(ge=0)
    """First steps in which the critic learns and the policy does not."""
    value_clip: float | None = Field(gt=0)
    """Reward units that a value may move from its old one before it stops learning; null: any."""
    trainer: TrainerConfig
