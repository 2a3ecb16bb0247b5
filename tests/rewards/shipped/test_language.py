"""Consistency of the language, by script."""

import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rlstack.errors import RewardError
from rlstack.types import RewardRequest


@pytest.mark.parametrize(
    ("expected", "response", "value"),
    [
        (["en"], "The answer", 1.0),
        (["en"], "ab答案", 0.5),
        (["zh"], "ab答案", 0.5),
        (["zh", "en"], "ab答案", 1.0),
        (["ja"], "答えは", 1.0),
        (["ko"], "정답", 1.0),
        (["hindi"], "उत्तर", 1.0),
        (["cyrillic"], "ответы yes", 6 / 9),
        (["ru"], "ответы $x = answer$ `code` \\frac <think>", 1.0),
        (["en"], "\uff4f\uff4b", 1.0),
        (["fr"], "English, which it cannot tell", 1.0),
        (["en"], "42", None),
        (["en"], "", None),
    ],
)
def test_share_of_letters(expected: list[str], response: str, value: float | None) -> None:
    reward = build("language", {"expected": expected})
    assert reward(RewardRequest(prompt="", response=response)) == value


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(RewardError, match="unknown language or script 'klingon'"):
        build("language", {"expected": ["klingon"]})
