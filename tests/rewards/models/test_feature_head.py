"""Features beside the text: by hand, and with the rows and models that lack them."""

import json
from pathlib import Path

import numpy as np
import pytest

from rewards.models.feature_head import FeatureHead
from rewards.registry import build
from rlstack.errors import RewardError
from rlstack.types import RewardRequest
from tests.rewards.models.test_preference_model import write_reward_model

HEAD = {"weights": [2.0, -1.0], "means": [1.0, 10.0], "stds": [0.5, 4.0]}


@pytest.fixture(scope="module")
def with_features(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("features") / "model"
    checkpoint = write_reward_model(folder, seed=0)
    (folder / "feature_head.json").write_text(json.dumps(HEAD))
    return checkpoint


def test_a_head_by_hand(with_features: str) -> None:
    head = FeatureHead.load(with_features)
    assert head is not None
    # 2 (2 - 1) / 0.5 - (14 - 10) / 4, and the average response
    np.testing.assert_allclose(head.score(np.array([[2.0, 14.0], [1.0, 10.0]])), [3.0, 0.0])


def test_features_add_to_the_score_of_the_text(with_features: str, tmp_path: Path) -> None:
    plain = write_reward_model(tmp_path / "plain", seed=0)
    rows = [
        RewardRequest(prompt="2 + 3?\n", response="5", metadata=metadata)
        for metadata in (
            {"relevance": 2, "price": 14.0},
            {"relevance": 1.0, "price": 10},
            {"relevance": 1.0},
            {"relevance": True, "price": "10"},
            {"relevance": float("inf"), "price": 10},
        )
    ]
    [text, *_] = build("preference_model", {"checkpoints": [plain]})(rows)
    params = {"checkpoints": [with_features], "features": ["relevance", "price"]}
    scores = build("preference_model", params)(rows)
    assert text.value is not None
    assert scores[0].value == pytest.approx(text.value + 3.0, abs=1e-5)
    assert scores[1].value == pytest.approx(text.value, abs=1e-5)
    for score in scores[2:]:
        assert score.value is None
        assert "lacks a number in one of relevance, price" in score.errors[0]


def test_models_and_names_that_do_not_fit(with_features: str, tmp_path: Path) -> None:
    plain = write_reward_model(tmp_path / "plain", seed=0)
    for checkpoint, names, trained in (
        (with_features, [], 2),
        (with_features, ["relevance"], 2),
        (plain, ["relevance"], 0),
    ):
        with pytest.raises(RewardError, match=f"was trained with {trained} features") as raised:
            build("preference_model", {"checkpoints": [checkpoint], "features": names})
        assert f"params.features names {len(names)} fields" in str(raised.value)
