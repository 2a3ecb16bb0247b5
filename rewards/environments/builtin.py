"""The environments that ship with rlstack: importing this module is what registers them."""

from rewards.environments import python_tool, reasoning_gym_retry

__all__ = ["python_tool", "reasoning_gym_retry"]
