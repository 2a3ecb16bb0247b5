"""Which roles a run starts, and how; pure."""

from dataclasses import dataclass

from rlstack.config.model import ModelConfig
from rlstack.config.placement import PlacementConfig, RolePlacement
from rlstack.config.rollout import RolloutConfig
from rlstack.planning.placement import Placed, place
from workers.specs import FrozenRole, RewardModelRole, TrainedRole


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
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

    def others(self) -> dict[str, RolePlacement]:
        """The roles beside the policy."""
        placement = self.placement
        reference = None if self.reference_in_policy else self.reference
        wanted = {
            "critic": (self.critic, placement.critic),
            "reference": (reference, placement.reference),
            "reward_model": (self.reward_models, placement.reward_model),
        }
        return {name: where for name, (role, where) in wanted.items() if role is not None}

    def place(self, *, device: str) -> Placed:
        """The resources of every role."""
        return place(
            self.placement,
            trained=self.policy is not None or self.reward_trainer is not None,
            others=self.others(),
            engines=self.rollout is not None,
            device=device,
        )
