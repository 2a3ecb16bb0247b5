"""What scored attributes add to a reward model's score, beside the text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlstack.errors import RewardError
from rlstack.types import RewardRequest

FILE = "feature_head.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureHead:
    """What F attributes add to a score: weights . (attributes - means) / stds; all float64 [F]."""

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    stds: NDArray[np.float64]

    @staticmethod
    def load(checkpoint: str) -> "FeatureHead | None":
        """From a model's folder; None: it was trained on text alone."""
        file = Path(checkpoint) / FILE
        if not file.is_file():
            return None
        found = json.loads(file.read_text())
        return FeatureHead(**{name: np.array(found[name]) for name in ("weights", "means", "stds")})

    def score(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each row of `features`, float64 [N, F], adds to its score, float64 [N]."""
        return (features - self.means) / self.stds @ self.weights


def check_features(heads: Mapping[str, FeatureHead | None], names: Sequence[str]) -> None:
    """The models, by checkpoint, must all have been trained with as many attributes as are named.

    Raises:
        RewardError: naming the checkpoint and the fix.
    """
    for checkpoint, head in heads.items():
        trained = 0 if head is None else len(head.weights)
        if trained != len(names):
            raise RewardError(
                f"reward model {checkpoint!r} was trained with {trained} features of each response "
                f"but params.features names {len(names)} fields of the rows' metadata; name one "
                "for each, in the order of training"
            )


def read_features(metadata: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    """The named fields of a row's metadata; NaN for what is no number."""
    found = [metadata.get(name) for name in names]
    return [
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan
        for value in found
    ]


def feature_scores(
    heads: Sequence[FeatureHead | None], requests: Sequence[RewardRequest], names: Sequence[str]
) -> NDArray[np.float64]:
    """What the features add to each model's score of each response, float64 [M, N]."""
    values = np.array([read_features(request.metadata, names) for request in requests])
    return np.array(
        [np.zeros(len(requests)) if head is None else head.score(values) for head in heads]
    )


def unusable(names: Sequence[str]) -> str:
    """Why a response has no score, where models read the named features."""
    if not names:
        return "a reward model's score is not finite"
    return (
        "a reward model's score is not finite, or the row's metadata lacks a number in one of "
        f"{', '.join(names)}"
    )
