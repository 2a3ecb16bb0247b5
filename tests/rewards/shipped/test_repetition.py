"""The penalty for repetition."""

import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rlstack.types import RewardRequest


@pytest.mark.parametrize(
    ("response", "params", "value"),
    [
        ("", {}, 0.0),
        ("a b", {}, 0.0),
        ("a b c d e", {}, 0.0),
        ("a a a a", {}, -0.5),  # 2 trigrams, 1 different
        ("a A a A a A", {}, -0.75),
        ("a b a b", {"ngram": 2}, -1 / 3),
        ("a b a b", {"ngram": 2, "max_penalty": 3.0}, -1.0),
        ("哈哈哈 哈", {"by": "characters"}, -0.5),
        ("哈哈哈哈", {}, 0.0),
    ],
)
def test_share_of_repeated_ngrams(response: str, params: dict[str, object], value: float) -> None:
    reward = build("repetition", params)
    assert reward(RewardRequest(prompt="", response=response)) == pytest.approx(value)
