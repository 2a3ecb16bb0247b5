"""The reward against the algorithm driven by hand, with embeddings that can be read."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewards.builtin  # noqa: F401
from rewards.memory.text_embedding import hashed_ngrams
from rewards.registry import build
from rlstack.algorithms.episodic_memory import empty_memory, insert, score
from rlstack.errors import RewardError
from rlstack.types import RewardRequest

EMBEDDER = """
import numpy as np

def embed(texts):
    return np.array([[float(part) for part in text.split(",")] for text in texts])

def broken(texts):
    return np.full((len(texts), 2), np.nan)

def short(texts):
    return np.zeros((1, 2))

number = 7
"""


@pytest.fixture
def embedder(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(EMBEDDER)
    return f"{tmp_path / 'own.py'}:embed"


def reward(**params: Any) -> Any:
    return build("episodic_memory", {"task": "exact_match", **params})


def judge(memory: Any, prompt: str, *responses: str, answer: str | None = "1,0") -> list[float]:
    group = [RewardRequest(prompt=prompt, response=text, answer=answer) for text in responses]
    return [result.value for result in asyncio.run(memory(group))]


def test_rewards_are_those_of_the_algorithm(embedder: str) -> None:
    memory = reward(embedder=embedder, num_neighbours=2, window=50, explore_weight=0.5)
    groups = [
        ("1,0", ["1,0", "0,1", "0.5,0.5"]),
        ("0.9,0.1", ["1,0", "0.9,0.2", "0,1"]),
        ("0,1", ["1,0", "0,1"]),
        ("1,0", ["0.8,0.1", "-1,0"]),
    ]
    neighbours = [[], ["1,0"], ["0.9,0.1", "1,0"], ["1,0", "0.9,0.1"]]
    state = empty_memory()
    for (prompt, texts), near in zip(groups, neighbours, strict=True):
        vectors = np.array([[float(part) for part in text.split(",")] for text in texts])
        outcomes = np.array([float(text == "1,0") for text in texts])
        expected, state = score(
            state, vectors, neighbours=near, window=50, exploit_weight=1.0, explore_weight=0.5
        )
        state = insert(state, prompt, vectors, outcomes, threshold=0.5, capacity=100)
        np.testing.assert_allclose(judge(memory, prompt, *texts), expected, atol=1e-6)
    assert expected.max() > 0


def test_near_a_success_and_away_from_failures_is_better(embedder: str) -> None:
    memory = reward(embedder=embedder)
    assert judge(memory, "1,1", "1,0", "0,1") == [0.0, 0.0]
    near, far = judge(memory, "1,1", "0.9,0.1", "0.1,0.9")
    assert near > far


def test_warm_up_fills_the_memory_without_a_reward(embedder: str) -> None:
    memory = reward(embedder=embedder, warmup_groups=2)
    for _ in range(2):
        assert judge(memory, "1,1", "1,0", "0,1") == [0.0, 0.0]
    assert judge(memory, "1,1", "0.9,0.1", "0.1,0.9") != [0.0, 0.0]


def test_what_cannot_be_judged_is_not_remembered(embedder: str) -> None:
    memory = reward(embedder=embedder)
    judge(memory, "1,1", "1,0", "0,1", answer=None)
    assert judge(memory, "1,1", "0.9,0.1", "0.1,0.9") == [0.0, 0.0]


def test_the_oldest_prompts_are_forgotten(embedder: str) -> None:
    memory = reward(embedder=embedder, max_prompts=4)
    for number in range(5):
        judge(memory, f"1,{number}", "1,0", "0,1")
    assert len(memory._prompts) == 2
    assert set(memory._memory.successes) == {"1,3", "1,4"}


def test_the_default_embedder_needs_no_model() -> None:
    memory = reward()
    judge(memory, "Name a prime.", "1,0", "an even number, such as four")
    near, far = judge(memory, "Name a prime.", "1,0!", "an even number, such as six")
    assert near > far


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "not finite"),
        ("short", "shape"),
        ("number", "int"),
        ("absent", "has no 'absent'"),
    ],
)
def test_embedders_that_cannot_be_used(embedder: str, function: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        judge(reward(embedder=embedder.replace(":embed", f":{function}")), "1,1", "1,0", "0,1")


def test_a_module_is_an_embedder_too() -> None:
    memory = reward(embedder="rewards.memory.text_embedding:hashed_ngrams")
    assert memory._embedder is hashed_ngrams
    with pytest.raises(RewardError, match="ModuleNotFoundError"):
        reward(embedder="no_such_module:embed")


def test_one_that_was_restored_goes_on_as_the_other_would(embedder: str) -> None:
    params = {"embedder": embedder, "num_neighbours": 2, "warmup_groups": 2, "max_prompts": 3}
    first, second = reward(**params), reward(**params)
    judge(first, "1,0", "1,0", "0,1")
    second.restore(first.state())
    assert second.state() == first.state()
    groups = [("0.9,0.1", "1,0", "0,1"), ("0,1", "1,0", "0.2,1"), ("0.5,0", "0,1"), ("0,2", "0,1")]
    seen: list[float] = []
    for prompt, *responses in groups * 2:
        ours, theirs = judge(first, prompt, *responses), judge(second, prompt, *responses)
        assert ours == theirs
        seen += ours
        third = reward(**params)
        third.restore(second.state())
        second = third
    assert any(seen)


def test_nothing_can_be_restored(embedder: str) -> None:
    first = reward(embedder=embedder)
    first.restore(reward(embedder=embedder).state())
    assert judge(first, "1,0", "1,0") == judge(reward(embedder=embedder), "1,0", "1,0")
