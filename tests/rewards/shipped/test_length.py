"""Correctness and length in one figure."""

import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score


def judge(response: str, tokens: int, limit: int = 100, **params: object) -> Score:
    reward = build("cosine_length", {"correct": "math_answer", **params})
    request = RewardRequest(
        prompt="", response=response, answer="4", response_tokens=tokens, max_response_tokens=limit
    )
    score = reward(request)
    assert isinstance(score, Score)
    return score


@pytest.mark.parametrize(
    ("response", "tokens", "value"),
    [
        ("4", 0, 2.0),
        ("4", 50, 1.5),
        ("4", 100, 1.0),
        ("5", 0, -10.0),
        ("5", 50, -5.0),
        ("5", 100, 0),
    ],
)
def test_along_the_paper_s_curve(response: str, tokens: int, value: float) -> None:
    score = judge(response, tokens)
    assert score.value == pytest.approx(value)
    assert score.parts == {"correct": float(response == "4")}
    assert score.extracted_answer == response


def test_without_a_limit_it_cannot_be_judged() -> None:
    assert judge("4", 10, limit=0).value is None


def test_without_a_reference_it_cannot_be_judged() -> None:
    reward = build("cosine_length", {"correct": "math_answer"})
    score = reward(RewardRequest(prompt="", response="4", max_response_tokens=9))
    assert isinstance(score, Score)
    assert score.value is None


def test_an_unknown_reward_and_a_branch_the_wrong_way_are_refused() -> None:
    with pytest.raises(RewardError, match="'math_anser' is unknown"):
        build("cosine_length", {"correct": "math_anser"})
    with pytest.raises(RewardError, match="must not gain from length"):
        judge("4", 1, correct_shortest=0.0)


@pytest.mark.parametrize("correct", ["code", "trl"], ids=["a class", "batched"])
def test_correctness_is_a_plain_function(correct: str) -> None:
    with pytest.raises(RewardError, match="expected a plain function"):
        build("cosine_length", {"correct": correct})
