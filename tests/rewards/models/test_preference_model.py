"""Tiny random reward models against plain transformers, one text at a time."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from rewards.models.ensemble import RunningScale, combine, normalise
from rewards.models.preference_model import PreferenceModel
from rewards.models.sequence_scorer import SequenceScorer, token_batches
from rewards.registry import build
from rlstack.errors import RewardError
from rlstack.types import RewardRequest
from tests.tiny_model import write_tiny_model

GROUP = [
    RewardRequest(prompt="What is 2 + 3?\n", response=text)
    for text in ("5", "It is 5, because 2 and 3 more are 5.", "", "six " * 30, "5", "~" * 90)
]


def write_reward_model(path: Path, *, seed: int, num_labels: int = 1) -> str:
    write_tiny_model(path)
    config = Qwen2Config.from_pretrained(path, num_labels=num_labels, architectures=None)
    torch.manual_seed(seed)
    Qwen2ForSequenceClassification(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("reward_models")
    return [write_reward_model(folder / str(seed), seed=seed) for seed in range(3)]


def plain_scores(checkpoint: str, *, last_tokens: int = 4096) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    scores = []
    for request in GROUP:
        text = f"{request.prompt}{request.response}{tokenizer.eos_token}"
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, -last_tokens:]
        with torch.no_grad():
            scores.append(float(model(input_ids=ids).logits[0, 0]))
    return scores


@pytest.mark.parametrize("budget", [128, 160, 10_000])
def test_batches_score_as_single_texts_do(models: list[str], budget: int) -> None:
    reward = PreferenceModel(checkpoints=models[:1], max_tokens=128, max_tokens_per_batch=budget)
    expected = plain_scores(models[0], last_tokens=128)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose([s.value for s in reward(GROUP)], expected, atol=1e-5)


def test_a_long_text_keeps_its_end(models: list[str]) -> None:
    reward = PreferenceModel(checkpoints=models[:1], max_tokens=20)
    expected = plain_scores(models[0], last_tokens=20)
    np.testing.assert_allclose([s.value for s in reward(GROUP)], expected, atol=1e-5)


def test_the_score_of_a_single_model_is_told_once(models: list[str]) -> None:
    plain, scaled = (
        build("preference_model", {"checkpoints": models[:1], "scale": scale})(GROUP)
        for scale in ("none", "running")
    )
    assert [score.parts for score in plain] == [{}] * len(GROUP)
    values = [{"model_0": pytest.approx(score.value)} for score in plain]
    assert [score.parts for score in scaled] == values


def test_ensembles(models: list[str]) -> None:
    raw = np.array([plain_scores(model) for model in models])
    expected = {
        "mean": raw.mean(0),
        "min": raw.min(0),
        "mean_minus_std": raw.mean(0) - 0.5 * raw.std(0),
    }
    for ensemble, values in expected.items():
        params = {"checkpoints": models, "ensemble": ensemble, "std_weight": 0.5}
        scores = build("preference_model", params)(GROUP)
        np.testing.assert_allclose([score.value for score in scores], values, atol=1e-5)
        np.testing.assert_allclose(list(scores[0].parts.values()), raw[:, 0], atol=1e-5)


def test_scales(models: list[str]) -> None:
    raw = np.array(plain_scores(models[0]))
    fixed = build(
        "preference_model", {"checkpoints": models[:1], "scale": {"mean": 1.0, "std": 2.0}}
    )
    np.testing.assert_allclose([s.value for s in fixed(GROUP)], (raw - 1) / 2, atol=1e-5)
    running = build("preference_model", {"checkpoints": models[:1], "scale": "running"})
    running(GROUP[:2])
    values = [score.value for score in running(GROUP[2:])]
    np.testing.assert_allclose(values, (raw[2:] - raw.mean()) / raw.std(), atol=1e-4)


def test_checkpoints_that_cannot_serve(models: list[str], tmp_path: Path) -> None:
    def error(path: str | Path) -> str:
        with pytest.raises(RewardError) as raised:
            build("preference_model", {"checkpoints": [str(path)]})
        return str(raised.value)

    two = write_reward_model(tmp_path / "two", seed=0, num_labels=2)
    assert "has 2 labels; expected 1" in error(two)
    assert "cannot be loaded" in error(tmp_path / "missing")
    causal = tmp_path / "causal"
    write_tiny_model(causal)
    config = Qwen2Config.from_pretrained(causal, num_labels=1)
    Qwen2ForCausalLM(config).save_pretrained(causal)
    assert "lacks the weights score.weight" in error(causal)
    unpadded = write_reward_model(tmp_path / "unpadded", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(unpadded)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(unpadded)
    assert "no padding token" in error(unpadded)
    with pytest.raises(RewardError, match="max_tokens=64 is more than max_tokens_per_batch=32"):
        SequenceScorer(models[0], max_tokens=64, max_tokens_per_batch=32)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(50, 200))
@settings(max_examples=50, deadline=None)
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_batches(lengths, max_tokens=budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert max(lengths[row] for row in batch) * len(batch) <= budget


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), max_size=6))
@settings(max_examples=50, deadline=None)
def test_the_running_scale_is_that_of_all_scores(parts: list[list[float]]) -> None:
    scale = RunningScale()
    for part in parts:
        scale.add(np.array(part))
    seen = [score for part in parts for score in part]
    if seen:
        assert math.isclose(scale.mean, np.mean(seen), abs_tol=1e-9)
        assert math.isclose(scale.std, np.std(seen), abs_tol=1e-6)


def test_scores_without_deviation_are_only_shifted() -> None:
    np.testing.assert_array_equal(normalise(np.array([3.0, 3.0]), mean=3.0, std=0.0), [0, 0])


def test_combining_by_hand() -> None:
    scores = np.array([[1.0, 0.0], [3.0, 0.0]])
    assert combine(scores, ensemble="mean", std_weight=1.0).tolist() == [2.0, 0.0]
    assert combine(scores, ensemble="min", std_weight=1.0).tolist() == [1.0, 0.0]
    assert combine(scores, ensemble="mean_minus_std", std_weight=2.0).tolist() == [0.0, 0.0]
