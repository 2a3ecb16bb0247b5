"""The weighted sum, its breakdown, and what happens to components that cannot judge."""

import asyncio
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.combination import Component
from rewards.composed_reward import compose
from rewards.registry import register
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score, TurnRecord


@register("test_constant")
def constant(request: RewardRequest, *, value: float) -> float:
    return value


@register("test_other_constant")
def other_constant(request: RewardRequest, *, value: float) -> float:
    return value


@register("test_cannot_judge")
def cannot_judge(request: RewardRequest) -> None:
    return None


@register("test_raises")
def raises(request: RewardRequest) -> float:
    raise KeyError("gold")


@register("test_exits")
def exits(request: RewardRequest) -> float:
    sys.exit(4)


@register("test_text")
def text(request: RewardRequest) -> float:
    return "1.0"  # pyright: ignore[reportReturnType]


@register("test_numpy")
def numpy_value(request: RewardRequest) -> float:
    return np.float32(0.5)  # pyright: ignore[reportReturnType]


@register("test_score")
def whole_score(request: RewardRequest, *, value: float | None = 1.0, part: float = 0.25) -> Score:
    return Score(
        value=value, parts={"style": part}, extracted_answer="7", errors=("style is slow",)
    )


@register("test_bad_extraction")
def bad_extraction(request: RewardRequest) -> Score:
    return Score(value=1.0, extracted_answer=7)  # pyright: ignore[reportArgumentType]


REQUEST = RewardRequest(prompt="p", response="r", data_source="shop")


def judge(*components: Component, request: RewardRequest = REQUEST) -> Score:
    return compose(components)(request)


def test_weighted_sum_keeps_unweighted_parts() -> None:
    score = judge(
        Component("test_constant", 2.0, {"value": 0.5}),
        Component("test_other_constant", -0.1, {"value": 3.0}),
    )
    assert score.value == pytest.approx(0.7)
    assert score.parts == {"test_constant": 0.5, "test_other_constant": 3.0}
    assert score.errors == ()


def test_none_is_left_out_and_is_not_zero() -> None:
    score = judge(Component("test_cannot_judge"), Component("test_constant", 1.0, {"value": 0.5}))
    assert (score.value, score.parts) == (0.5, {"test_constant": 0.5})


def test_no_component_can_judge() -> None:
    assert judge(Component("test_cannot_judge")) == Score(value=None)


def test_weight_zero_still_judges() -> None:
    score = judge(Component("test_constant", 0.0, {"value": 0.5}))
    assert (score.value, score.parts) == (0.0, {"test_constant": 0.5})


@pytest.mark.parametrize(
    ("component", "error"),
    [
        (Component("test_raises"), "test_raises: KeyError: 'gold'"),
        (Component("test_exits"), "test_exits: SystemExit: 4"),
        (
            Component("test_text"),
            "test_text: TypeError: value is '1.0' (str); a reward returns a float, a Score or None",
        ),
        (
            Component("test_bad_extraction"),
            "test_bad_extraction: TypeError: extracted_answer is 7 (int); expected str or None",
        ),
        (
            Component("test_constant", 1.0, {"value": math.nan}),
            "test_constant: ValueError: value is nan; a reward must be finite",
        ),
        (
            Component("test_constant", 1.0, {"value": -math.inf}),
            "test_constant: ValueError: value is -inf; a reward must be finite",
        ),
        (
            Component("test_score", 1.0, {"part": math.nan}),
            "test_score: ValueError: style is nan; a reward must be finite",
        ),
    ],
)
def test_a_failing_component_is_an_error_and_leaves_the_others(
    component: Component, error: str
) -> None:
    assert judge(component) == Score(value=None, errors=(error,))
    score = judge(component, Component("test_other_constant", 1.0, {"value": 2.0}))
    assert score == Score(value=2.0, parts={"test_other_constant": 2.0}, errors=(error,))


def test_numpy_scalars_become_floats() -> None:
    score = judge(Component("test_numpy"))
    assert score.value == 0.5
    assert type(score.parts["test_numpy"]) is float


def test_a_score_brings_its_parts_errors_and_answer() -> None:
    assert judge(Component("test_score", 2.0)) == Score(
        value=2.0,
        parts={"test_score": 1.0, "test_score/style": 0.25},
        extracted_answer="7",
        errors=("test_score: style is slow",),
    )


@register("test_turns")
def per_turn(request: RewardRequest, *, rewards: list[float]) -> Score:
    return Score(value=1.0, turn_rewards=tuple(rewards))


def test_turns_are_rewarded_one_by_one() -> None:
    turns = (TurnRecord(action="a", end=1, answer=None),) * 2
    episode = RewardRequest(prompt="p", response="r", turns=turns)
    reward = compose([Component("test_turns", 0.5, {"rewards": [0.5, 0.25]})])
    assert reward(episode) == Score(
        value=0.5, parts={"test_turns": 1.0}, turn_rewards=(0.25, 0.125)
    )
    (error,) = reward(RewardRequest(prompt="p", response="r", turns=turns[:1])).errors
    assert "2 turn_rewards for 1 turns; give one for each of request.turns" in error
    broken = compose([Component("test_turns", params={"rewards": [0.5, math.inf]})])(episode)
    assert (broken.value, broken.turn_rewards) == (None, ())
    assert "turn_rewards is inf; a reward must be finite" in broken.errors[0]


def test_a_score_without_a_value_cannot_judge_but_keeps_the_rest() -> None:
    assert judge(Component("test_score", 2.0, {"value": None})) == Score(
        value=None,
        parts={"test_score/style": 0.25},
        extracted_answer="7",
        errors=("test_score: style is slow",),
    )


def test_the_first_extracted_answer_wins() -> None:
    request = RewardRequest(prompt="p", response=" 9 ", answer="9")
    score = judge(Component("exact_match"), Component("test_score"), request=request)
    assert score.extracted_answer == "9"


def test_row_is_the_reward_that_the_row_names() -> None:
    request = RewardRequest(prompt="p", response="9", answer="9", reward="exact_match")
    score = judge(Component("row", 0.5), request=request)
    assert (score.value, score.parts, score.extracted_answer) == (0.5, {"row": 1.0}, "9")


def test_row_without_a_reward() -> None:
    score = judge(Component("row"))
    assert score.value is None
    assert score.errors[0].startswith("row: RewardError: the row (data source 'shop') names no")


def test_row_with_an_unknown_reward() -> None:
    request = RewardRequest(prompt="p", response="9", reward="exact_mach")
    score = judge(Component("row"), request=request)
    assert score.value is None
    assert score.errors[0].startswith(
        "row: RewardError: reward 'exact_mach' is unknown. Did you mean 'exact_match'?"
    )


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([], "the reward has no components"),
        (
            [Component("format"), Component("format", 2.0)],
            "component 'format' is listed more than once",
        ),
        ([Component("format", math.nan)], "component 'format' has weight nan; expected a finite"),
        ([Component("row", 1.0, {"x": 1})], "component 'row' takes no params, got x"),
        ([Component("formats")], "Did you mean 'format'"),
        ([Component("format", 1.0, {"patterns": "x"})], "no parameter 'patterns'"),
    ],
)
def test_compose_refuses(components: list[Component], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        compose(components)


@register("test_async")
async def async_reward(request: RewardRequest, *, value: float) -> float:
    await asyncio.sleep(0)
    return value


@register("test_ranked", batched=True)
def relative(requests: Sequence[RewardRequest], *, cut: int = 0) -> list[float | None]:
    """Share of the group that is at most as long."""
    lengths = [len(request.response) for request in requests]
    shares = [sum(other <= n for other in lengths) / len(lengths) for n in lengths]
    return [None if n == 0 else share for n, share in zip(lengths, shares, strict=True)][cut:]


@register("test_async_batched", batched=True)
async def async_batched(requests: Sequence[RewardRequest]) -> tuple[float, ...]:
    async def judge_one(request: RewardRequest) -> float:
        await asyncio.sleep(0)
        return float(len(request.response))

    return tuple(await asyncio.gather(*(judge_one(request) for request in requests)))


LIFE: list[str] = []


@register("test_class")
class ClassReward:
    def __init__(self, *, bonus: float, fails: bool = False) -> None:
        if fails:
            raise ConnectionError("no server")
        self.bonus = bonus
        LIFE.append("set up")

    def __call__(self, request: RewardRequest) -> float:
        return len(request.response) + self.bonus

    def close(self) -> None:
        LIFE.append("torn down")


@register("test_async_class")
class AsyncClassReward:
    """Keeps something that belongs to an event loop, as a connection does."""

    def __init__(self) -> None:
        self.loops: set[int] = set()

    async def __call__(self, request: RewardRequest) -> float:
        self.loops.add(id(asyncio.get_running_loop()))
        return float(len(self.loops))

    async def close(self) -> None:
        self.loops.add(id(asyncio.get_running_loop()))
        LIFE.append(f"closed in {len(self.loops)} loop")


def requests(*responses: str, **fields: Any) -> list[RewardRequest]:
    return [RewardRequest(prompt="p", response=response, **fields) for response in responses]


def test_an_async_reward_is_awaited() -> None:
    assert judge(Component("test_async", 2.0, {"value": 0.5})).value == 1.0


def test_a_batched_reward_sees_the_group_and_joins_the_others() -> None:
    reward = compose([Component("test_ranked", 2.0), Component("test_constant", 1.0, {"value": 1})])
    scores = reward.judge_group(requests("a", "bbb", "cc", ""))
    assert [score.value for score in scores] == [2.0, 3.0, 2.5, 1.0]
    assert [score.parts.get("test_ranked") for score in scores] == [0.5, 1.0, 0.75, None]


def test_an_async_batched_reward() -> None:
    scores = compose([Component("test_async_batched")]).judge_group(requests("a", "bbb"))
    assert [score.value for score in scores] == [1.0, 3.0]


def test_a_batched_reward_must_return_one_result_for_each() -> None:
    scores = compose([Component("test_ranked", 1.0, {"cut": 1})]).judge_group(requests("a", "b"))
    message = (
        "test_ranked: ValueError: 1 results for 2 rollouts; "
        "a batched reward returns one for each, in their order"
    )
    assert scores == [Score(value=None, errors=(message,))] * 2


def test_a_class_is_set_up_once_and_torn_down() -> None:
    LIFE.clear()
    reward = compose([Component("test_class", 1.0, {"bonus": 0.5})])
    assert LIFE == []
    reward.set_up()
    assert [score.value for score in reward.judge_group(requests("a", "bb"))] == [1.5, 2.5]
    reward.close()
    assert LIFE == ["set up", "torn down"]


def test_an_async_class_lives_in_one_loop() -> None:
    LIFE.clear()
    reward = compose([Component("test_async_class")])
    assert [score.value for score in reward.judge_group(requests("a", "b"))] == [1.0, 1.0]
    reward.close()
    assert LIFE == ["closed in 1 loop"]


def test_a_class_that_cannot_be_set_up_is_named() -> None:
    reward = compose([Component("test_class", 1.0, {"bonus": 1, "fails": True})])
    message = r"reward 'test_class' cannot be set up: ConnectionError: no server"
    with pytest.raises(RewardError, match=message):
        reward.set_up()


def test_routing_by_data_source() -> None:
    reward = compose(
        [
            Component("test_constant", 1.0, {"value": 1}, data_sources=("shop",)),
            Component("test_ranked", 1.0, data_sources=("farm",)),
        ]
    )
    assert reward(REQUEST).parts == {"test_constant": 1.0}
    assert reward(requests("r", data_source="farm")[0]).parts == {"test_ranked": 1.0}
    assert reward(requests("r", data_source="moon")[0]) == Score(value=None)


def test_a_row_cannot_name_a_batched_reward() -> None:
    request = RewardRequest(prompt="p", response="9", reward="test_ranked")
    (error,) = judge(Component("row"), request=request).errors
    assert "judges whole groups, so no row can name it" in error
