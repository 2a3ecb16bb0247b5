"""Reward `overlong`: a soft penalty for responses that come close to the length limit."""

from typing import Annotated

from pydantic import Field

from rewards.registry import register
from rlstack.errors import RewardError
from rlstack.types import RewardRequest


@register("overlong")
def overlong(request: RewardRequest, *, buffer_tokens: Annotated[int, Field(gt=0)]) -> float | None:
    """Soft overlong punishment: 0 up to the buffer, then linearly down to -1 at the limit.

    Source: DAPO (arXiv 2503.14476), equation 13, with L_max = `request.max_response_tokens` and
    L_cache = `buffer_tokens`, both in tokens. None if the request states no limit.

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
    tokens_into_buffer = request.response_tokens - (limit - buffer_tokens)
    return 0.0 - min(max(tokens_into_buffer / buffer_tokens, 0.0), 1.0)
