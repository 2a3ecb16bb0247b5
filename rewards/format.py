"""Reward `format`: the response has the required shape, whatever it says."""

import re

from rewards.registry import register
from rlstack.types import RewardRequest

THINK_THEN_ANSWER = re.compile(
    r"<think>(?:(?!</?think>|</?answer>).)*</think>\s*"
    r"<answer>(?:(?!</?think>|</?answer>).)*</answer>",
    re.DOTALL,
)
"""Each tag exactly once, in this order, and nothing around them."""


@register("format")
def format_reward(request: RewardRequest, *, pattern: re.Pattern[str] = THINK_THEN_ANSWER) -> float:
    """1.0 if the whole response, whitespace at both ends aside, matches `pattern`; else 0.0.

    In a pattern of your own `.` stops at line ends; start it with `(?s)` if it should not.
    """
    return float(pattern.fullmatch(request.response.strip()) is not None)
