"""Reward `reward_model`: preference models that a run holds on devices of their own."""

from collections.abc import Sequence

from rewards.registry import REWARD_MODEL, register
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score


@register(REWARD_MODEL, batched=True)
def reward_model(requests: Sequence[RewardRequest]) -> list[Score]:
    """What the worker group of reward models says of each response, as `reward.model` sets it up.

    In `rlstack rl` and `rlstack eval` only, where the group is started (`reward=model`). Elsewhere,
    and for small models on CPU, `preference_model` does the same in the scorer's process.

    Raises:
        RewardError: outside a run.
    """
    raise RewardError(
        "reward_model is judged by the worker group of a run; elsewhere use preference_model"
    )
