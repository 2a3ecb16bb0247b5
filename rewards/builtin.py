"""The rewards that ship with rlstack: importing this module is what registers them."""

from rewards.judges import judge
from rewards.memory import episodic_memory
from rewards.models import preference_model
from rewards.remote import reward as remote
from rewards.shipped import (
    adapters,
    code,
    environment_reward,
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
    reward_model,
)

__all__ = [
    "adapters",
    "code",
    "environment_reward",
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
    "reward_model",
]
