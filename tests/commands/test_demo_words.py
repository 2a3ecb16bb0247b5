"""The task of rlhf_quickstart: its true reward, and data that keep what is held out apart."""

import json
from typing import Any

import numpy as np
import pytest

from rewards.combination import Component
from rewards.load import RewardSpec, load_reward
from rlstack.commands import demo_words
from rlstack.commands.demo_words import LABEL_NOISE, WORDS, draw_response, true_reward, write_data
from rlstack.types import RewardRequest


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("ant bat art box", 1.0),
        ("ant bat", 0.5),
        ("ant cat", 0.0),
        ("ant ant", 0.0),
        ("ant bat art box bun", 0.75),
        ("axx bat", 0.0),
        ("cat cow cup car dog", -1.0),
        ("", 0.0),
    ],
)
def test_words_that_were_asked_for_count_and_all_others_are_taken_off(
    response: str, expected: float
) -> None:
    assert true_reward(response, letters="ab") == expected


def test_it_is_recorded_beside_what_is_trained_on() -> None:
    component = Component("asked_words", 0.0, {})
    reward = load_reward(
        RewardSpec(components=(component,), plugins=("rlstack.commands.demo_words",))
    )
    score = reward(RewardRequest(prompt="p", response="ant", metadata={"letters": ["a", "b"]}))
    assert score.value == 0.0
    assert score.parts["asked_words"] == 0.25


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, seed=0)
    return {
        file.stem: [json.loads(line) for line in file.read_text().splitlines()]
        for file in folder.glob("*.jsonl")
    }


def test_no_held_out_letters_are_trained_on(data: dict[str, list[dict[str, Any]]]) -> None:
    def letters(*names: str) -> set[frozenset[str]]:
        return {frozenset(row["letters"]) for name in names for row in data[name]}

    train = letters("demonstrations", "preferences", "prompts", "early", "late")
    held_out = letters("held_out_preferences", "held_out_prompts")
    held_out |= letters("held_out_early", "held_out_late")
    assert len(held_out) == demo_words.NUM_HELD_OUT_PROMPTS
    assert not train & held_out
    assert len(train | held_out) == 16 * 15 // 2


def test_labels_are_noisy_and_no_response_says_a_word_twice(
    data: dict[str, list[dict[str, Any]]],
) -> None:
    mistaken = 0
    for row in data["preferences"]:
        worth = [true_reward(str(row[k]), letters=row["letters"]) for k in ("chosen", "rejected")]
        assert worth[0] != worth[1]
        mistaken += worth[0] < worth[1]
        for key in ("chosen", "rejected"):
            words = str(row[key]).split()
            assert len(set(words)) == len(words)
    assert abs(mistaken / len(data["preferences"]) - LABEL_NOISE) < 0.015


def test_demonstrations_suit_less_often_than_not() -> None:
    generator = np.random.default_rng(0)
    words = [word for _ in range(500) for word in draw_response("cd", generator).split()]
    suitable = sum(word[0] in "cd" for word in words)
    assert set(words) <= set(WORDS)
    assert suitable / len(words) == pytest.approx(demo_words.SUITABLE_SHARE, abs=0.04)
