"""Group `objective`: what is learned from preferences, a tagged union."""

from typing import Annotated, Literal

from pydantic import Field

from rlstack.config.base import Frozen


class DPOObjective(Frozen):
    """Raise the chosen response's log-ratio to the reference over the rejected one's."""

    name: Literal["dpo"]
    beta: float = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=0.5)


class RobustDPOObjective(Frozen):
    """DPO, unbiased where a known share of the labels is flipped."""

    name: Literal["robust_dpo"]
    beta: float = Field(gt=0)
    label_smoothing: float = Field(gt=0, lt=0.5)


class IPOObjective(Frozen):
    """Bring the difference of the log-ratios to 1 / (2 beta), and no further."""

    name: Literal["ipo"]
    beta: float = Field(gt=0)
    length_normalised: bool


class ORPOObjective(Frozen):
    """Likelihood of the chosen response, and the odds ratio of the two; no reference."""

    name: Literal["orpo"]
    weight: float = Field(gt=0)


class SimPOObjective(Frozen):
    """A margin between the mean logprobs of a token; no reference."""

    name: Literal["simpo"]
    beta: float = Field(gt=0)
    gamma: float = Field(ge=0)


class KTOObjective(Frozen):
    """Single responses that were judged good or bad."""

    name: Literal["kto"]
    beta: float = Field(gt=0)
    desirable_weight: float = Field(gt=0)
    undesirable_weight: float = Field(gt=0)


PairObjective = DPOObjective | RobustDPOObjective | IPOObjective | ORPOObjective | SimPOObjective

ObjectiveConfig = Annotated[PairObjective | KTOObjective, Field(discriminator="name")]


def needs_reference(objective: PairObjective | KTOObjective) -> bool:
    """Whether the loss compares the policy with a reference."""
    return not isinstance(objective, ORPOObjective | SimPOObjective)
