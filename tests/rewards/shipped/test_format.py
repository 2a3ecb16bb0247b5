"""The shape of a response."""

import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rewards.shipped.format import format_reward
from rlstack.errors import RewardError
from rlstack.types import RewardRequest


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("<think>a\nb</think>\n<answer>5</answer>", 1.0),
        (" <think>a</think><answer>5</answer>\n", 1.0),
        ("<think></think><answer>5</answer>", 0.0),
        ("<think>a</think><answer> \n</answer>", 0.0),
        ("<think>\u200b</think><answer>5</answer>", 0.0),
        ("<think>a</think></think><answer>5</answer>", 0.0),
        ("<answer>5</answer>", 0.0),
        ("<answer>5</answer><think>a</think>", 0.0),
        ("Well. <think>a</think><answer>5</answer>", 0.0),
        ("<think>a</think><answer>5</answer> indeed", 0.0),
        ("<think>a<think>b</think></think><answer>5</answer>", 0.0),
        ("<think>a</think><answer>5</answer><answer>6</answer>", 0.0),
        ("<think>a<answer>5</answer></think><answer>6</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_think_then_answer_is_the_default(response: str, value: float) -> None:
    assert format_reward(RewardRequest(prompt="", response=response)) == value


@pytest.mark.parametrize(("response", "value"), [("12", 1.0), (" 12\n", 1.0), ("12 a", 0.0)])
def test_a_pattern_of_ones_own_matches_the_whole_response(response: str, value: float) -> None:
    reward = build("format", {"pattern": r"\d+"})
    assert reward(RewardRequest(prompt="", response=response)) == value


def test_named_tags_in_order() -> None:
    reward = build("format", {"tags": ["plan", "answer"]})
    for response, value in [
        ("<plan>a</plan><answer>b</answer>", 1.0),
        ("<answer>b</answer><plan>a</plan>", 0.0),
        ("<plan>a<answer>b</answer></plan>", 0.0),
        ("<plan>a</plan>", 0.0),
        ("<plan>a</plan>!<answer>b</answer>", 0.0),
        ("</plan><plan><answer>b</answer>", 0.0),
    ]:
        assert reward(RewardRequest(prompt="", response=response)) == value


def test_what_is_no_tag_name_is_refused() -> None:
    for tags in (["<think>"], [], ["a", "a"]):
        with pytest.raises(RewardError, match="tag name"):
            build("format", {"tags": tags})
