"""Reward `overlong`: a soft penalty for responses that come close to the length limit."""

from typing import Annotated

from pydantic import Field

from rewards.registry import register
from rlstack.algorithms.shaping import soft_overlong
from rlstack.errors import RewardError
from rlstack.types import RewardRequest


@register("overlong")
def overlong(request: RewardRequest, *, buffer_tokens: Annotated[int, Field(gt=0)]) -> float | None:
    """Soft overlong punishment: 0 up to the buffer, then linearly down to -1 at the limit.

    `shaping.soft_overlong` with L_max = `request.max_response_tokens` and L_cache =
    `buffer_tokens`, both in tokens. None if the request states no limit.

    Raises:
        RewardError: if the buffer is longer than the limit.
    """
    limit = request.max_response_tokens
    if limit <= 0:
        return None
    if buffer_tokens > limit:
        raise RewardError(
            f"overlong: buffer_tokens={buffer_tokens} is more than the {limit} tokens a response "
            "may have. Lower it, or raise max_response_tokens."
        )
    return soft_overlong(request.response_tokens, max_tokens=limit, buffer_tokens=buffer_tokens)
