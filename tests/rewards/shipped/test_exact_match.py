"""Equality with the reference, whole response or extracted."""

import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rlstack.types import RewardRequest, Score

ANSWER_TAG = r"<answer>(.*?)</answer>"


@pytest.mark.parametrize(
    ("answer", "response", "params", "value", "extracted"),
    [
        ("Paris", "Paris", {}, 1.0, "Paris"),
        (" Paris", "Paris\n", {}, 1.0, "Paris"),
        ("Paris", "paris", {}, 0.0, "paris"),
        ("Paris", "PARIS", {"ignore_case": True}, 1.0, "paris"),
        ("Paris", "It is Paris", {}, 0.0, "It is Paris"),
        ("Paris", "<answer> Paris </answer>", {"pattern": ANSWER_TAG}, 1.0, "Paris"),
        ("B", "<answer>A</answer> <answer>B</answer>", {"pattern": ANSWER_TAG}, 1.0, "B"),
        ("42", "41 then 42", {"pattern": r"\d+"}, 1.0, "42"),
        ("Paris", "Paris", {"pattern": ANSWER_TAG}, 0.0, None),
        ("", "", {}, 1.0, ""),
        (None, "Paris", {}, None, "Paris"),
    ],
)
def test_exact_match(
    answer: str | None,
    response: str,
    params: dict[str, object],
    value: float | None,
    extracted: str | None,
) -> None:
    request = RewardRequest(prompt="", response=response, answer=answer)
    assert build("exact_match", params)(request) == Score(value=value, extracted_answer=extracted)
