"""What a reward returned, read as a `Score`: whatever it is, it costs its own component only."""

import math
from numbers import Real
from typing import Any

from rewards.combination import Component
from rlstack.types import Score


def failed_score(component: Component, error: BaseException) -> Score:
    """Say that a component raised, in the errors of a score without a value."""
    return Score(value=None, errors=(f"{component.key}: {type(error).__name__}: {error}",))


def checked_score(component: Component, result: Any, *, num_turns: int) -> Score:
    """Read a reward's result as a Score whose parts and errors carry the component's label."""
    try:
        score = result if isinstance(result, Score) else Score(value=result)
        return Score(
            value=None if score.value is None else _finite("value", score.value),
            parts={f"{component.key}/{k}": _finite(k, v) for k, v in score.parts.items()},
            turn_rewards=_turn_rewards(score, num_turns),
            extracted_answer=_text_or_none(score.extracted_answer),
            errors=tuple(f"{component.key}: {error}" for error in score.errors),
        )
    # Whatever object a reward returned, reading it may fail in any way.
    except Exception as error:  # noqa: BLE001
        return failed_score(component, error)


def _finite(name: str, value: object) -> float:
    if not isinstance(value, Real):
        raise TypeError(
            f"{name} is {value!r} ({type(value).__name__}); "
            "a reward returns a float, a Score or None"
        )
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; a reward must be finite")
    return float(value)


def _turn_rewards(score: Score, num_turns: int) -> tuple[float, ...]:
    rewards = tuple(_finite("turn_rewards", reward) for reward in score.turn_rewards)
    if len(rewards) not in (0, num_turns):
        raise ValueError(
            f"{len(rewards)} turn_rewards for {num_turns} turns; give one for each of request.turns"
        )
    return rewards


def _text_or_none(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"extracted_answer is {value!r} ({type(value).__name__}); expected str or None")
