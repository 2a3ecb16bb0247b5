"""The rewards that ship with rlstack: importing this module is what registers them."""

from rewards import (
    adapters,
    code,
    episodic_memory,
    exact_match,
    format,
    instruction_following,
    json_schema,
    judge,
    language,
    length,
    math_answer,
    overlong,
    preference_model,
    reasoning_gym_task,
    remote,
    repetition,
)

__all__ = [
    "adapters",
    "code",
    "episodic_memory",
    "exact_match",
    "format",
    "instruction_following",
    "json_schema",
    "judge",
    "language",
    "length",
    "math_answer",
    "overlong",
    "preference_model",
    "reasoning_gym_task",
    "remote",
    "repetition",
]
