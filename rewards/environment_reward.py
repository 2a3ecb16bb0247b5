"""Reward `environment`: what the environment itself paid for the actions of an episode."""

from rewards.registry import register
from rlstack.errors import RewardError
from rlstack.types import FinishReason, RewardRequest


@register("environment")
def environment(request: RewardRequest) -> float | None:
    """Sum of the rewards of the turns; an action that was cut by the token limit earns nothing.

    The value is None if the environment failed before it had answered.

    Raises:
        RewardError: if the response is no episode.
    """
    if request.turns:
        return sum(turn.answer.reward for turn in request.turns if turn.answer is not None)
    if request.finish_reason in (FinishReason.ERROR, FinishReason.TIMEOUT):
        return None
    raise RewardError(
        "the response comes from no environment. Choose one (environment=...), or remove the "
        "component 'environment'."
    )
