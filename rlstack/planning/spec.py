"""Which roles a run has and what each is; pure."""

from dataclasses import dataclass
from typing import Literal

from rlstack.config.faults import FaultsConfig
from rlstack.config.model import ModelConfig
from rlstack.config.placement import PlacementConfig
from rlstack.config.reference import ReferenceConfig
from rlstack.config.rollout import RolloutConfig
from rlstack.config.trainer import TrainerConfig
from rlstack.data.features import FeatureScale


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRole:
    """A model to train, and how."""

    model: ModelConfig
    trainer: TrainerConfig
    total_updates: int
    features: FeatureScale | None = None
    """Of the responses that a reward model scores, where the data have some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenRole:
    """A model that only computes logprobs, and how it is held."""

    model: ModelConfig
    config: ReferenceConfig
    max_tokens_per_microbatch: int
    logprob_chunk_tokens: int
    """Both as in `TrainerConfig`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelRole:
    """The models that score responses, all in every rank; fields as in `SequenceScorer`."""

    checkpoints: tuple[str, ...]
    max_tokens: int
    max_tokens_per_batch: int
    dtype: str
    special_tokens: Literal["end", "tokenizer"] = "end"
    zero_stage: Literal[0, 3] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Which roles to start, and how. A role that is None is left out."""

    placement: PlacementConfig
    model: ModelConfig
    """Of the policy and the engines."""
    seed: int
    policy: TrainedRole | None = None
    reward_trainer: TrainedRole | None = None
    """Trains a reward model in the policy's place: a run has one or the other."""
    critic: TrainedRole | None = None
    reference: FrozenRole | None = None
    """It has no ranks of its own if it is the model below the policy's adapters."""
    reward_models: RewardModelRole | None = None
    rollout: RolloutConfig | None = None
    max_prompt_tokens: int = 0
    max_response_tokens: int = 0
    trained_temperature: float | None = None
    """Of the trainers' logprobs; None: that of the rollouts, or 1 where there are none."""
    ray_address: str | None = None
    faults: FaultsConfig

    @property
    def reference_in_policy(self) -> bool:
        """Whether the policy without its adapters is the reference."""
        policy, reference = self.policy, self.reference
        return (
            policy is not None
            and reference is not None
            and policy.trainer.lora is not None
            and policy.model == reference.model
        )

    @property
    def adapter_rank(self) -> int | None:
        """Of the adapters that engines are sent instead of weights."""
        lora = self.policy.trainer.lora if self.policy else None
        return lora.rank if lora is not None and lora.engines == "adapters" else None

    @property
    def logprob_temperature(self) -> float:
        """At which trainers take logprobs."""
        if self.trained_temperature is not None:
            return self.trained_temperature
        return self.rollout.temperature if self.rollout else 1.0
