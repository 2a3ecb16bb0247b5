"""The weighted sum, its breakdown, and what happens to components that cannot judge."""

import math
import sys

import numpy as np
import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.compose import Component, compose
from rewards.registry import register
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score


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
