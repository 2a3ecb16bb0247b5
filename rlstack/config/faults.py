"""Group `faults`: what a run does when a process dies or does not get on, or numbers go wrong."""

from typing import Literal, get_args

from pydantic import Field

from rlstack.config.base import Frozen

MeasuredBefore = Literal[
    "mismatch/logprob_difference_mean",
    "mismatch/logprob_difference_max",
    "mismatch/k3",
    "mismatch/corrected_fraction",
    "advantage/mean",
    "advantage/max",
    "advantage/min",
    "reward/mean",
    "reward/std",
    "reward/unjudged",
    "reward/groups_without_signal",
    "rollout/response_tokens",
    "rollout/truncated_fraction",
    "policy/staleness",
    "critic/value_mean",
    "critic/return_mean",
    "critic/explained_variance",
]
"""Metrics of a step that are known before its first update."""

MeasuredAfter = Literal[
    "policy/approx_kl",
    "policy/clip_fraction_low",
    "policy/clip_fraction_high",
    "policy/entropy",
    "policy/grad_norm",
    "policy/loss",
    "policy/ratio_max",
    "policy/ratio_min",
    "policy/ref_kl",
    "critic/clip_fraction",
    "critic/grad_norm",
    "critic/loss",
]
"""Metrics of its updates, known when they have been made."""

KNOWN_BEFORE: frozenset[str] = frozenset(get_args(MeasuredBefore))


class Bound(Frozen):
    """A metric of a step of RL that must not be `above` or `below` a number; NaN is beyond both."""

    metric: Literal[MeasuredBefore, MeasuredAfter]
    above: float | None = None
    below: float | None = None
    action: Literal["warn", "skip", "stop"]
    """skip: the step makes no update. stop: the run ends, without a checkpoint of the step."""

    def beyond(self, value: float) -> str | None:
        """Which side `value` is on, as text; None: within."""
        # The negation also holds of NaN.
        if self.above is not None and not value <= self.above:
            return f"above {self.above:g}"
        if self.below is not None and not value >= self.below:
            return f"below {self.below:g}"
        return None


class FaultsConfig(Frozen):
    """Bounds after which a process counts as stuck, and how often one is replaced."""

    max_restarts: int = Field(ge=0)
    """How often engines are replaced, and how often the run is taken up from its newest checkpoint
    after the death of another process, before it gives up."""
    answer_s: float = Field(gt=0)
    """Seconds within which every process answers a question that costs nothing."""
    progress_s: float = Field(gt=0)
    """Seconds within which a busy process gets on: a token, a micro-batch, a tensor."""
    start_s: float = Field(gt=0)
    """Seconds that a process may take to start and load its model."""


class TrainingFaultsConfig(FaultsConfig):
    """Of commands that train."""

    max_skipped_updates: int = Field(ge=1)
    """Updates of a role in a row that may be skipped; with that many the run ends."""


class RLFaultsConfig(TrainingFaultsConfig):
    """Of `rlstack rl`."""

    bounds: tuple[Bound, ...]
    """Looked at in every step, in this order."""
