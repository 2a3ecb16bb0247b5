"""Reward `exact_match`: the response, or the answer found in it, equals the reference."""

import re

from rewards.registry import register
from rewards.shipped.extraction import last_match
from rlstack.types import RewardRequest, Score


@register("exact_match")
def exact_match(
    request: RewardRequest, *, ignore_case: bool = False, pattern: re.Pattern[str] | None = None
) -> Score:
    """1.0 if the answer equals the reference answer, whitespace at both ends aside; else 0.0.

    pattern: where the answer stands in the response: its last match, the first group if there is
        one (0.0 without a match); default: the whole response is the answer.

    The value is None if the row has no reference answer.
    """
    found = request.response.strip() if pattern is None else last_match(request.response, pattern)
    if found is not None and ignore_case:
        found = found.casefold()
    if request.answer is None:
        return Score(value=None, extracted_answer=found)
    reference = request.answer.strip()
    if ignore_case:
        reference = reference.casefold()
    return Score(value=float(found == reference), extracted_answer=found)
