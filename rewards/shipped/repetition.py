"""Reward `repetition`: a penalty for saying the same again."""

from typing import Annotated, Literal

from pydantic import Field

from rewards.registry import register
from rlstack.types import RewardRequest


@register("repetition")
def repetition(
    request: RewardRequest,
    *,
    ngram: Annotated[int, Field(gt=0)] = 3,
    max_penalty: Annotated[float, Field(gt=0)] = 1.0,
    by: Literal["words", "characters"] = "words",
) -> float:
    """-max_penalty times the share of n-grams that had occurred before: 0.0 down to -max_penalty.

    The share is 1 - different / all n-grams, case aside; a response with fewer than `ngram` units
    has none and gets 0.0. Source: "Demystifying Long Chain-of-Thought" (arXiv 2502.03373), section
    on repetition, in the form open-rs and TRL recipes use.

    by: `characters` for languages that write without spaces; white space does not count.
    """
    text = request.response.casefold()
    units = text.split() if by == "words" else [c for c in text if not c.isspace()]
    total = len(units) - ngram + 1
    if total <= 0:
        return 0.0
    different = len(set(zip(*(units[start:] for start in range(ngram)), strict=False)))
    # 0.0 - x: no repetition is 0.0 and not -0.0.
    return 0.0 - max_penalty * (1.0 - different / total)
