"""Group `trainer`: the DeepSpeed policy trainer."""

from typing import Literal

from pydantic import Field

from rlstack.config.base import Frozen


class ScheduleConfig(Frozen):
    """Learning rate over optimizer steps; warm-up rises linearly from 0."""

    name: Literal["constant", "linear", "cosine"]
    warmup_updates: int = Field(ge=0)
    min_ratio: float = Field(ge=0, le=1)
    """Final learning rate of `linear` and `cosine`, as a share of the peak."""


class TrainerConfig(Frozen):
    """Optimizer, sharding and memory."""

    zero_stage: Literal[0, 1, 2, 3]
    offload_optimizer: bool
    offload_parameters: bool
    gradient_checkpointing: bool
    max_tokens_per_microbatch: int = Field(ge=1)
    logprob_chunk_tokens: int = Field(ge=1)
    """Tokens whose logits are held at a time."""
    learning_rate: float = Field(gt=0)
    schedule: ScheduleConfig
    weight_decay: float = Field(ge=0)
    betas: tuple[float, float]
    max_grad_norm: float = Field(gt=0)
