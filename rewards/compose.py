"""Several rewards as one: a weighted sum that keeps the breakdown and never raises for a sample."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from typing import Any

from rewards.registry import ROW, Reward, RewardResult, build
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score


@dataclass(frozen=True, slots=True)
class Component:
    """One reward of the sum; the name `row` stands for the reward that the dataset row names."""

    name: str
    weight: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class _BoundComponent:
    name: str
    weight: float
    reward: Reward


@dataclass(frozen=True, slots=True)
class ComposedReward:
    """The weighted sum over the components that can judge; made by `compose`."""

    components: tuple[_BoundComponent, ...]

    def __call__(self, request: RewardRequest) -> Score:
        """Judge one rollout.

        A component that returns None, raises or returns something that is not finite leaves the
        sum; the last two are named in `errors`. `value` is None if no component is left. A `Score`
        from a component contributes its value, its parts as `component/part`, its errors and its
        extracted answer; the first extracted answer wins.
        """
        total: float | None = None
        parts: dict[str, float] = {}
        errors: list[str] = []
        extracted_answer: str | None = None
        for component in self.components:
            score = _judge(component, request)
            errors += score.errors
            if extracted_answer is None:
                extracted_answer = score.extracted_answer
            if score.value is not None:
                parts[component.name] = score.value
                total = (total or 0.0) + component.weight * score.value
            parts |= score.parts
        return Score(
            value=total, parts=parts, extracted_answer=extracted_answer, errors=tuple(errors)
        )


def compose(components: Sequence[Component]) -> ComposedReward:
    """Build every component with its parameters.

    Raises:
        RewardError: if there is no component, two share a name, a weight is not finite, or a reward
            or one of its parameters is wrong.
    """
    if not components:
        raise RewardError("the reward has no components. Name at least one.")
    repeated = [name for name, count in Counter(c.name for c in components).items() if count > 1]
    if repeated:
        raise RewardError(
            f"reward component {repeated[0]!r} is listed more than once. Keep one of them: its "
            "name is the key under which its value is recorded."
        )
    for component in components:
        if not math.isfinite(component.weight):
            raise RewardError(
                f"reward component {component.name!r} has weight {component.weight}; expected a "
                "finite number."
            )
    return ComposedReward(tuple(_BoundComponent(c.name, c.weight, _build(c)) for c in components))


def _build(component: Component) -> Reward:
    if component.name != ROW:
        return build(component.name, component.params)
    if component.params:
        raise RewardError(
            f"reward component {ROW!r} takes no params, got {', '.join(component.params)}: the row "
            "chooses the reward. Remove them, or name that reward as a component of its own."
        )
    return _judge_by_row


def _judge_by_row(request: RewardRequest) -> RewardResult:
    if request.reward is None:
        raise RewardError(
            f"the row (data source {request.data_source!r}) names no reward. Set the `reward` of "
            f"its data source, or replace the component {ROW!r} by a reward's name."
        )
    return _build_named(request.reward)(request)


@cache
def _build_named(name: str) -> Reward:
    return build(name, {})


def _judge(component: _BoundComponent, request: RewardRequest) -> Score:
    """The component's verdict as a Score whose parts and errors carry its name."""
    try:
        result = component.reward(request)
        score = result if isinstance(result, Score) else Score(value=result)
        return Score(
            value=None if score.value is None else _finite("value", score.value),
            parts={f"{component.name}/{k}": _finite(k, v) for k, v in score.parts.items()},
            extracted_answer=_text_or_none(score.extracted_answer),
            errors=tuple(f"{component.name}: {error}" for error in score.errors),
        )
    # A reward is a user's code running on a model's text: whatever it raises, sys.exit included,
    # costs this sample only and is counted.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return Score(value=None, errors=(f"{component.name}: {type(error).__name__}: {error}",))


def _finite(name: str, value: object) -> float:
    if not isinstance(value, Real):
        raise TypeError(
            f"{name} is {value!r} ({type(value).__name__}); "
            "a reward returns a float, a Score or None"
        )
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; a reward must be finite")
    return float(value)


def _text_or_none(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"extracted_answer is {value!r} ({type(value).__name__}); expected str or None")
