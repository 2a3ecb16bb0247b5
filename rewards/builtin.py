"""The rewards that ship with rlstack: importing this module is what registers them."""

from rewards import code, exact_match, format, math_answer, overlong, reasoning_gym_task

__all__ = ["code", "exact_match", "format", "math_answer", "overlong", "reasoning_gym_task"]
