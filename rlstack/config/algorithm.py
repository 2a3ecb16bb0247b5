"""Group `algorithm`: which estimator, loss, KL and correction, each a tagged union."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rlstack.config.base import Frozen
from rlstack.config.paths import LocalOrHub, Plugin


class GRPOAdvantage(Frozen):
    """Reward minus the group mean, over the group's standard deviation."""

    name: Literal["grpo"]


class DrGRPOAdvantage(Frozen):
    """Reward minus the group mean."""

    name: Literal["dr_grpo"]


class RLOOAdvantage(Frozen):
    """Reward minus the mean of the other rewards of the group."""

    name: Literal["rloo"]


class ReinforcePlusPlusAdvantage(Frozen):
    """Reward, less the group mean with `group_baseline`, whitened over the whole batch."""

    name: Literal["reinforce_plus_plus"]
    group_baseline: bool


class ReMaxAdvantage(Frozen):
    """Reward minus the reward of the greedy response to the same prompt."""

    name: Literal["remax"]


class OPOAdvantage(Frozen):
    """Reward minus the length-weighted mean reward of the group."""

    name: Literal["opo"]


class GPGAdvantage(Frozen):
    """Reward minus the group mean, scaled up for the groups without signal."""

    name: Literal["gpg"]


class MaxRLAdvantage(Frozen):
    """Reward minus the group mean, over the group mean; for rewards that are never negative."""

    name: Literal["maxrl"]


class GAEAdvantage(Frozen):
    """Generalised advantage estimates from a critic (group `critic`)."""

    name: Literal["gae"]
    gamma: float = Field(gt=0, le=1)
    """Discount of what follows a token."""
    lam: float = Field(ge=0, le=1)
    critic_lam: float = Field(ge=0, le=1)
    """Lambda of the critic's returns."""
    length_adaptive: float | None = Field(gt=0)
    """alpha of VAPO: lambda of a row of l tokens is 1 - 1 / (alpha l); null: `lam` for all."""
    bootstrap_truncated: bool
    """After a response that was cut for its length stands the critic's value instead of 0."""
    whiten: bool
    """Advantages of the step to mean 0 and deviation 1."""


class DistillationAdvantage(Frozen):
    """How much likelier a teacher holds each sampled token than the policy does."""

    name: Literal["distillation"]
    teacher: LocalOrHub
    """Path or hub name; it has the policy's tokenizer, and stands in the reference's place."""
    weight: float = Field(gt=0)


class PluginPart(Frozen):
    """A function that a file of `algorithm.plugins` registers."""

    name: Literal["plugin"]
    function: str
    params: dict[str, Any]
    """Its keyword-only parameters."""


AdvantageConfig = Annotated[
    GRPOAdvantage
    | DrGRPOAdvantage
    | RLOOAdvantage
    | ReinforcePlusPlusAdvantage
    | ReMaxAdvantage
    | OPOAdvantage
    | GPGAdvantage
    | MaxRLAdvantage
    | GAEAdvantage
    | DistillationAdvantage
    | PluginPart,
    Field(discriminator="name"),
]


class PPOClipLoss(Frozen):
    """Clipped surrogate with separate bounds and optional dual clip."""

    name: Literal["ppo_clip"]
    clip_low: float = Field(gt=0, le=1)
    clip_high: float = Field(gt=0)
    dual_clip: float | None = Field(gt=1)


class GSPOLoss(Frozen):
    """Clipped surrogate of whole sequences; gspo_token: with a gradient for each token."""

    name: Literal["gspo", "gspo_token"]
    clip_low: float = Field(gt=0, le=1)
    clip_high: float = Field(gt=0)


class CISPOLoss(Frozen):
    """log policy weighted by the ratio, which counts `cap` at most; no token is clipped away."""

    name: Literal["cispo"]
    cap: float = Field(gt=0)


class SAPOLoss(Frozen):
    """A sigmoid of the ratio in place of a clip, steeper for a larger tau."""

    name: Literal["sapo"]
    tau_positive: float = Field(gt=0)
    tau_negative: float = Field(gt=0)


class GMPOLoss(Frozen):
    """Geometric mean of a sequence's ratios, each within exp(+-log_clip)."""

    name: Literal["gmpo"]
    log_clip: float = Field(gt=0)


class PolicyGradientLoss(Frozen):
    """log policy times advantage, without a ratio."""

    name: Literal["policy_gradient"]


PolicyLossConfig = Annotated[
    PPOClipLoss | GSPOLoss | CISPOLoss | SAPOLoss | GMPOLoss | PolicyGradientLoss | PluginPart,
    Field(discriminator="name"),
]


class KLConfig(Frozen):
    """KL to the reference, as a loss term or taken off the reward; `coef` 0: no reference."""

    placement: Literal["loss", "reward"]
    estimator: Literal["k1", "k2", "k3", "k3_corrected"]
    coef: float = Field(ge=0)
    target: float | None = Field(gt=0)
    """Nats per token that the coefficient is adapted to hold; null: it stays `coef`."""
    horizon: int = Field(ge=1)
    """Rollouts over which the coefficient may change by 20%."""


class NoCorrection(Frozen):
    """The engine's distribution is taken to be the trainer's."""

    name: Literal["none"]


RatioLevel = Literal["token", "sequence", "geometric"]
"""Trainer over engine per token, the product over a rollout, or its geometric mean."""


class TruncatedCorrection(Frozen):
    """Importance weights of `cap` at most."""

    name: Literal["truncated"]
    level: RatioLevel
    cap: float = Field(gt=0)


class MaskedCorrection(Frozen):
    """Importance weights; 0 for those outside [low, high]."""

    name: Literal["masked"]
    level: RatioLevel
    low: float = Field(ge=0)
    high: float = Field(gt=0)


class RejectedCorrection(Frozen):
    """What has a ratio outside [low, high], tokens or whole rollouts, is not trained on."""

    name: Literal["rejected"]
    level: RatioLevel
    low: float = Field(ge=0)
    high: float = Field(gt=0)


class SecondMomentCorrection(Frozen):
    """Importance weights; 0 for the largest until the mean squared log-ratio is `threshold`."""

    name: Literal["second_moment"]
    threshold: float = Field(gt=0)


SingleCorrection = Annotated[
    TruncatedCorrection | MaskedCorrection | RejectedCorrection | SecondMomentCorrection,
    Field(discriminator="name"),
]


class ComposedCorrection(Frozen):
    """The product of the weights of several corrections, each made of the same ratios."""

    name: Literal["composed"]
    parts: tuple[SingleCorrection, ...] = Field(min_length=2)


CorrectionConfig = Annotated[
    NoCorrection
    | TruncatedCorrection
    | MaskedCorrection
    | RejectedCorrection
    | SecondMomentCorrection
    | ComposedCorrection,
    Field(discriminator="name"),
]


class TokenMean(Frozen):
    """Every token of the optimizer step weighs the same."""

    name: Literal["token_mean"]


class SequenceMean(Frozen):
    """Every rollout weighs the same: the mean over rollouts of the mean over tokens."""

    name: Literal["sequence_mean"]


class FixedLength(Frozen):
    """Token sums over rollouts times a constant (Dr.GRPO); by default the longest response."""

    name: Literal["fixed_length"]
    length: int = Field(gt=0)


ReductionConfig = Annotated[TokenMean | SequenceMean | FixedLength, Field(discriminator="name")]


class DynamicSamplingConfig(Frozen):
    """Groups of equal rewards are replaced by fresh ones, in at most `max_rounds` rounds."""

    enabled: bool
    max_rounds: int = Field(ge=1)


class RewardShapingConfig(Frozen):
    """What is done to the rewards of a step before anything is estimated from them."""

    clip: float | None = Field(gt=0)
    """Rewards are held within [-clip, clip]."""
    whiten: bool
    """To deviation 1 over the step; the mean stays."""


class FiltrationConfig(Frozen):
    """Which rollouts are trained on; see `rlstack.algorithms.filtration_policies`."""

    name: str
    params: dict[str, Any]


class AlgorithmConfig(Frozen):
    """From scored rollouts to a loss."""

    plugins: tuple[Plugin, ...]
    """Modules or .py files that register advantages, policy losses and filtrations."""
    advantage: AdvantageConfig
    policy_loss: PolicyLossConfig
    reduction: ReductionConfig
    kl: KLConfig
    correction: CorrectionConfig
    reward: RewardShapingConfig
    dynamic_sampling: DynamicSamplingConfig
    filtration: FiltrationConfig
    entropy_coef: float = Field(ge=0)
    epochs: int = Field(ge=1)
    updates_per_epoch: int = Field(ge=1)

    @property
    def needs_reference(self) -> bool:
        """Whether anything reads reference logprobs."""
        return self.kl.coef > 0 or isinstance(self.advantage, DistillationAdvantage)

    @property
    def needs_baseline(self) -> bool:
        """Whether rewards are compared with that of a greedy response to each prompt."""
        return isinstance(self.advantage, ReMaxAdvantage)

    @property
    def needs_critic(self) -> bool:
        """Whether advantages are made from values."""
        return isinstance(self.advantage, GAEAdvantage)
