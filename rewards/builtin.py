"""The rewards that ship with rlstack: importing this module is what registers them."""

from rewards import (
    exact_match,
    format,
    instruction_following,
    json_schema,
    language,
    length,
    math_answer,
    overlong,
    reasoning_gym_task,
    repetition,
)

__all__ = ["exact_match", "format", "math_answer", "overlong", "reasoning_gym_task"]
__all__ += ["instruction_following", "json_schema", "language", "length", "repetition"]
