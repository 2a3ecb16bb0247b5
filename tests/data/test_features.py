"""The scale of attributes against numpy; attributes that never vary."""

import numpy as np
import pytest

from rlstack.data.features import feature_scale
from rlstack.types import PreferencePair


def pair(chosen: tuple[float, ...], rejected: tuple[float, ...]) -> PreferencePair:
    ids = np.array([1])
    return PreferencePair(
        prompt_id="",
        data_source="",
        text="",
        chosen="",
        rejected="",
        prompt_ids=ids,
        chosen_ids=ids,
        rejected_ids=ids,
        margin=None,
        chosen_features=chosen,
        rejected_features=rejected,
        metadata={},
    )


def test_both_responses_count() -> None:
    scale = feature_scale([pair((1.0, 0.1), (3.0, 0.1)), pair((5.0, 0.1), (7.0, 0.1))])
    assert scale is not None
    assert scale.means == (4.0, pytest.approx(0.1))
    assert scale.stds == (pytest.approx(np.std([1, 3, 5, 7])), 1.0)


def test_no_features_have_no_scale() -> None:
    assert feature_scale([pair((), ())]) is None
    assert feature_scale([]) is None
