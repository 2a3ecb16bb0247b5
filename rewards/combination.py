"""How verdicts of several rewards become one score: weights, schedules, gates, error policies.

Pure: nothing here calls a reward.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

OnError = Literal["unjudged", "zero", "drop", "retry", "raise"]
"""What a component that fails (raises, times out, dies) does to its sample:

unjudged: the component leaves the sum; the others decide
zero: the component counts as 0.0
drop: the sample has no score, whatever the others say
retry: it is called again, up to `RETRY_ATTEMPTS` times in all, then as `unjudged`
raise: the run stops
"""

RETRY_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSchedule:
    """A weight that goes linearly from `start` to `end` over the first `steps` updates."""

    start: float
    end: float
    steps: int

    def at(self, step: int) -> float:
        """The weight after `step` updates of the policy."""
        progress = min(step / self.steps, 1.0)
        return (1.0 - progress) * self.start + progress * self.end


@dataclass(frozen=True, slots=True)
class Component:
    """One reward of the sum; the name `row` stands for the reward that the dataset row names."""

    name: str
    weight: float | WeightSchedule = 1.0
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    label: str | None = None
    """Where its value is recorded, if not under its name: for one reward listed twice."""
    gate: str | None = None
    """Label of the component that must reach `gate_min` for this one to contribute."""
    gate_min: float = 1.0
    data_sources: tuple[str, ...] | None = None
    """The data sources whose rows it judges; all of them if None."""
    on_error: OnError = "unjudged"
    timeout_s: float | None = None
    """Longest it may take, if not the time-out of the whole configuration."""

    @property
    def key(self) -> str:
        """The name under which its value is recorded."""
        return self.label or self.name

    def applies(self, request: RewardRequest) -> bool:
        """Whether it judges rows of this data source."""
        return self.data_sources is None or request.data_source in self.data_sources

    def weight_at(self, step: int) -> float:
        """Its weight after `step` updates of the policy."""
        weight = self.weight
        return weight.at(step) if isinstance(weight, WeightSchedule) else weight


def check(components: Sequence[Component]) -> None:
    """Refuse what can never be combined.

    Raises:
        RewardError: if there is no component, two share a label, a weight is not finite, or a gate
            is no other component.
    """
    if not components:
        raise RewardError("the reward has no components. Name at least one.")
    labels = Counter(component.key for component in components)
    repeated = [label for label, count in labels.items() if count > 1]
    if repeated:
        raise RewardError(
            f"reward component {repeated[0]!r} is listed more than once. Keep one of them, or give "
            "them labels: a component's label is the key under which its value is recorded."
        )
    for component in components:
        weight = component.weight
        ends = (weight.start, weight.end) if isinstance(weight, WeightSchedule) else (weight,)
        if not all(math.isfinite(end) for end in ends):
            raise RewardError(
                f"reward component {component.key!r} has weight {weight}; expected a finite number."
            )
        if component.gate is not None and component.gate not in labels.keys() - {component.key}:
            others = ", ".join(label for label in labels if label != component.key)
            raise RewardError(
                f"reward component {component.key!r} has the gate {component.gate!r}, which is no "
                f"other component. The others: {others or 'none'}."
            )


def failed(verdict: Score) -> bool:
    """Whether a component broke, and not merely could not judge."""
    return verdict.value is None and bool(verdict.errors)


def with_retries(component: Component, attempt: Callable[[], Sequence[Score]]) -> Sequence[Score]:
    """The verdicts of `attempt`, which is repeated as the component's error policy says."""
    verdicts = attempt()
    for _ in range(RETRY_ATTEMPTS - 1 if component.on_error == "retry" else 0):
        if not any(failed(verdict) for verdict in verdicts):
            break
        verdicts = attempt()
    return verdicts


def combine(
    components: Sequence[Component],
    request: RewardRequest,
    verdicts: Mapping[str, Score],
    *,
    step: int,
) -> Score:
    """One score from the verdicts by component label; a component without one did not apply.

    The value is the sum of weight * value over the components that could judge, and None if none
    could. Every value is kept in `parts` as it is, without weight or gate. A component whose gate
    stays under `gate_min` adds 0; one whose gate could not be judged leaves the sum; a gate that
    does not apply to the row is open. What components gave for single turns is weighted, gated and
    added in the same way. The first extracted answer wins.

    Raises:
        RewardError: if a component failed whose error policy is `raise`.
    """
    parts: dict[str, float] = {}
    errors: list[str] = []
    num_errors: dict[str, int] = {}
    extracted_answer: str | None = None
    dropped = False
    for component in components:
        if component.key not in verdicts:
            continue
        verdict = verdicts[component.key]
        errors += verdict.errors
        if verdict.errors:
            num_errors[component.key] = len(verdict.errors)
        parts |= verdict.parts
        if extracted_answer is None:
            extracted_answer = verdict.extracted_answer
        value = _after_failure(component, request, verdict) if failed(verdict) else verdict.value
        if value is not None:
            parts[component.key] = value
        dropped = dropped or (failed(verdict) and component.on_error == "drop")
    value, turn_rewards = (
        (None, ()) if dropped else _weighted_sums(components, verdicts, parts, step=step)
    )
    return Score(
        value=value,
        parts=parts,
        turn_rewards=turn_rewards,
        extracted_answer=extracted_answer,
        errors=tuple(errors),
        num_errors=num_errors,
    )


def _after_failure(component: Component, request: RewardRequest, verdict: Score) -> float | None:
    if component.on_error == "raise":
        raise RewardError(
            f"reward component {component.key!r} failed on a row of data source "
            f"{request.data_source!r}, and its on_error is raise: {'; '.join(verdict.errors)}. "
            "Repair the reward or the row, or choose another on_error."
        )
    return 0.0 if component.on_error == "zero" else None


def _weighted_sums(
    components: Sequence[Component],
    verdicts: Mapping[str, Score],
    parts: Mapping[str, float],
    *,
    step: int,
) -> tuple[float | None, tuple[float, ...]]:
    """Of the values, and of what is due at each turn."""
    total: float | None = None
    turns: tuple[float, ...] = ()
    for component in components:
        if component.key not in verdicts or component.key not in parts:
            continue
        weight = component.weight_at(step)
        if component.gate is not None and component.gate in verdicts:
            if component.gate not in parts:
                continue
            if parts[component.gate] < component.gate_min:
                weight = 0.0
        total = (total or 0.0) + weight * parts[component.key]
        own = verdicts[component.key].turn_rewards
        if own:
            before = turns or (0.0,) * len(own)
            turns = tuple(b + weight * reward for b, reward in zip(before, own, strict=True))
    return total, turns
