"""Group `trainer`: the DeepSpeed trainer of any role."""

from typing import Literal

from pydantic import Field

from rlstack.config.base import Frozen


class ScheduleConfig(Frozen):
    """Learning rate over optimizer steps; warm-up rises linearly from 0."""

    name: Literal["constant", "linear", "cosine"]
    warmup_updates: int = Field(ge=0)
    min_ratio: float = Field(ge=0, le=1)
    """Final learning rate of `linear` and `cosine`, as a share of the peak."""


class LoRAConfig(Frozen):
    """Low-rank adapters on frozen weights, by `peft`.

    lora: arXiv 2106.09685. rslora: scaled by alpha / sqrt(rank), arXiv 2312.03732. dora: the
    weights' magnitudes are learned apart from their direction, arXiv 2402.09353.
    """

    variant: Literal["lora", "rslora", "dora"]
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    """Of the adapters' inputs, in updates only."""
    target_modules: tuple[str, ...] | None
    """Last parts of module names; null: every linear layer but the output embedding."""
    engines: Literal["adapters", "merged"]
    """How the policy reaches vLLM: its adapters alone, or every weight with them merged in."""


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
    lora: LoRAConfig | None
    """null: every weight is trained."""
