"""Scored attributes of responses, on one scale; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlstack.types import PreferencePair


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureScale:
    """Mean and standard deviation of each of F attributes, in the data's units."""

    means: tuple[float, ...]
    stds: tuple[float, ...]


def feature_scale(pairs: Sequence[PreferencePair]) -> FeatureScale | None:
    """The scale of both responses of all pairs; None where they have no features.

    An attribute that never varies has the standard deviation 1, so that it counts for nothing.
    """
    values = np.array([f for pair in pairs for f in (pair.chosen_features, pair.rejected_features)])
    if values.size == 0:
        return None
    stds = np.where(np.ptp(values, axis=0) > 0, values.std(axis=0), 1.0)
    return FeatureScale(means=tuple(values.mean(axis=0).tolist()), stds=tuple(stds.tolist()))
