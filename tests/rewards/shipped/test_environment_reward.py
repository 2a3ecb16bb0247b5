import pytest

from rewards.registry import REWARDS, build
from rlstack.errors import RewardError
from rlstack.types import FinishReason, RewardRequest, Score, Turn, TurnRecord

REWARDS.load_plugin("rewards.builtin")
REWARD = build("environment", {})


def request(*rewards: float | None, reason: FinishReason = FinishReason.STOP) -> RewardRequest:
    turns = tuple(
        TurnRecord(action="a", end=1, answer=None if reward is None else Turn(reward=reward))
        for reward in rewards
    )
    return RewardRequest(prompt="p", response="r", turns=turns, finish_reason=reason)


def test_rewards_of_the_turns_are_added_and_each_is_due_at_its_turn() -> None:
    assert REWARD(request(0.25, 0.5)) == Score(value=0.75, turn_rewards=(0.25, 0.5))


def test_an_action_that_was_cut_earns_nothing() -> None:
    cut = FinishReason.LENGTH
    assert REWARD(request(None, reason=cut)) == Score(value=0.0, turn_rewards=(0.0,))
    assert REWARD(request(0.5, None, reason=cut)) == Score(value=0.5, turn_rewards=(0.5, 0.0))


def test_an_environment_that_never_answered_cannot_be_judged() -> None:
    assert REWARD(request(reason=FinishReason.TIMEOUT)) is None


def test_a_response_without_an_environment_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(RewardError, match="comes from no environment"):
        REWARD(request())
