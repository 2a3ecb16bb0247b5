"""The whole of GSM8K's train answers, and model solutions with their labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.shipped.math_answer import math_answer
from rlstack.types import RewardRequest

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "gsm8k"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"GSM8K is not at {DATA}")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def value(answer: str, response: str, prompt: str = "") -> float | None:
    return math_answer(RewardRequest(prompt=prompt, response=response, answer=answer)).value


def test_every_answer_parses_equals_itself_and_no_other_number() -> None:
    train = rows("train.jsonl")
    assert len(train) > 7000
    numbers = [row["answer"].rsplit("####")[-1].strip().replace(",", "") for row in train]
    for index, row in enumerate(train):
        assert value(row["answer"], row["answer"], row["question"]) == 1.0, row["answer"]
        other = (index * 7919 + 1) % len(train)
        expected = float(float(numbers[index]) == float(numbers[other]))
        assert value(row["answer"], train[other]["answer"]) == expected
        assert value(row["answer"], f"\\boxed{{{numbers[other]}}}") == expected


def test_agrees_with_the_labels_of_model_solutions() -> None:
    disagreements = [
        (row["question"], model)
        for row in rows("example_model_solutions.jsonl")
        for model, judged in row.items()
        if isinstance(judged, dict)
        and value(row["ground_truth"].rsplit("A:")[-1], judged["solution"], row["question"])
        != float(judged["is_correct"])
    ]
    assert disagreements == []
