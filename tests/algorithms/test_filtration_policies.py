"""Every policy on a table that can be read."""

from typing import Any

import numpy as np
import pytest

from rlstack.algorithms.filtration_policies import filtration_policy
from rlstack.errors import AlgorithmError
from rlstack.types import Candidates

CANDIDATES = Candidates(
    rewards=np.array([0.0, 1.0, 0.5, 1.0, 1.0, np.nan, 0.2, 0.1]),
    group_ids=np.array([0, 0, 0, 1, 1, 1, 2, 2]),
    lengths=np.array([10, 20, 30, 40, 50, 5, 60, 70]),
    truncated=np.array([False, True, False, False, False, False, False, False]),
)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("none", {}, [0, 1, 2, 3, 4, 6, 7]),
        ("dynamic_sampling", {}, [0, 1, 2, 6, 7]),
        ("difficulty", {"low": 0.2, "high": 0.9}, [0, 1, 2]),
        ("length", {"max_tokens": 40}, [0, 2, 3]),
        ("length", {"max_tokens": 40, "keep_truncated": True}, [0, 1, 2, 3]),
    ],
)
def test_policies_without_chance(name: str, params: dict[str, Any], expected: list[int]) -> None:
    policy = filtration_policy(name, **params)
    assert policy.select(CANDIDATES, seed=0).tolist() == expected


def test_policies_by_rank() -> None:
    for seed in range(10):
        best = filtration_policy("best").select(CANDIDATES, seed=seed).tolist()
        assert best in ([1, 3, 6], [1, 4, 6])
        ends = filtration_policy("best_worst").select(CANDIDATES, seed=seed).tolist()
        assert ends == [0, 1, 3, 4, 6, 7]
        drawn = filtration_policy("best_random").select(CANDIDATES, seed=seed).tolist()
        assert drawn in ([0, 1, 3, 4, 6, 7], [1, 2, 3, 4, 6, 7])
        again = filtration_policy("best_random").select(CANDIDATES, seed=seed).tolist()
        assert drawn == again


def test_soft_policies_draw_by_trust() -> None:
    by_power = filtration_policy("soft", strategy="power", power=8.0, num_samples=20)
    drawn = by_power.select(CANDIDATES, seed=0).tolist()
    assert len(drawn) == 60
    assert set(drawn) <= {0, 1, 2, 3, 4, 6, 7}
    assert drawn.count(1) > 15  # 1.0 against 0.5 and 0.0, to the eighth power
    ranked = filtration_policy("soft", num_samples=40).select(CANDIDATES, seed=1).tolist()
    assert 10 < ranked.count(1) < 30  # half of the weight is the best one's


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("best_wurst", {}, "unknown. Did you mean 'best_worst'"),
        ("difficulty", {"low": 0.1}, "'difficulty', high: Field required"),
        ("length", {"max_tokens": 0}, "'length', max_tokens"),
        ("none", {"seed": 1}, "'none', seed: Extra inputs"),
    ],
)
def test_wrong_names_and_parameters(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(AlgorithmError, match=message):
        filtration_policy(name, **params)
