"""Reward `environment`: what the environment itself paid for the actions of an episode."""

from rewards.registry import register
from rlstack.errors import RewardError
from rlstack.types import FinishReason, RewardRequest, Score


@register("environment")
def environment(request: RewardRequest) -> Score | None:
    """Sum of the rewards of the turns; an action that was cut by the token limit earns nothing.

    Each is due at its own turn. The value is None if the environment failed before it had answered.

    Raises:
        RewardError: if the response is no episode.
    """
    if request.turns:
        earned = tuple(
            0.0 if turn.answer is None else float(turn.answer.reward) for turn in request.turns
        )
        return Score(value=sum(earned), turn_rewards=earned)
    if request.finish_reason in (FinishReason.ERROR, FinishReason.TIMEOUT):
        return None
    raise RewardError(
        "the response comes from no environment. Choose one (environment=...), or remove the "
        "component 'environment'."
    )
