"""The configuration of `rlstack reward_model`."""

from pydantic import Field

from rlstack.config.base import Frozen
from rlstack.config.supervised import SupervisedConfig


class RewardLossConfig(Frozen):
    """Bradley-Terry: -log sigmoid(chosen - rejected - margin) + centering (chosen + rejected)^2."""

    margin_scale: float = Field(ge=0)
    """Reward units by which a margin of 1 in the data must be exceeded; 0: margins do not count."""
    centering: float = Field(ge=0)
    """Holds the scores' free constant near 0."""
    label_smoothing: float = Field(ge=0, lt=0.5)
    """The assumed share of wrong labels."""


class RewardModelConfig(SupervisedConfig):
    """`rlstack reward_model`: scores of responses, learned from preferences.

    `data.prompts_per_step` pairs make one step. `model.path`: a causal model, which gets a head
    that starts at 0, or a reward model to train on.
    """

    rows_per_sample = 2

    loss: RewardLossConfig
