"""Several reward models' scores as one reward a response: scales, ensembles, what they remember."""

import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, PositiveFloat, with_config

from rlstack.types import Score

Ensemble = Literal["mean", "min", "mean_minus_std"]
Scores = NDArray[np.float64]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class FixedScale:
    """What a model's scores are known to have on ordinary responses."""

    mean: float
    std: PositiveFloat


class RunningScale:
    """Mean and standard deviation of all scores so far (Welford 1962, in batches)."""

    def __init__(self, count: int = 0, mean: float = 0.0, squares: float = 0.0) -> None:
        """`squares`: sum of squared distances from the mean."""
        self.count, self.mean, self.squares = count, mean, squares

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before two scores."""
        return math.sqrt(self.squares / self.count) if self.count > 1 else 0.0

    def add(self, scores: Scores) -> None:
        """Count in more scores."""
        if len(scores) == 0:
            return
        total = self.count + len(scores)
        shift = float(scores.mean()) - self.mean
        self.squares += float(scores.var()) * len(scores)
        self.squares += shift**2 * self.count * len(scores) / total
        self.mean += shift * len(scores) / total
        self.count = total


def normalise(scores: Scores, *, mean: float, std: float) -> Scores:
    """Scores in standard deviations from the mean; only shifted where there is no deviation."""
    return (scores - mean) / std if std > 0 else scores - mean


def combine(scores: Scores, *, ensemble: Ensemble, std_weight: float) -> Scores:
    """One score per response from those of several models, [N] from [M, N].

    "min" and "mean_minus_std" (mean - std_weight * population std over models) distrust responses
    on which the models differ, against over-optimisation (Coste et al., arXiv 2310.02743).
    """
    if ensemble == "min":
        return scores.min(axis=0)
    mean = scores.mean(axis=0)
    return mean if ensemble == "mean" else mean - std_weight * scores.std(axis=0)


class ScoreEnsemble:
    """Turns the raw scores of `num_models` models into rewards; remembers running scales."""

    def __init__(
        self,
        num_models: int,
        *,
        ensemble: Ensemble,
        std_weight: float,
        scale: Literal["none", "running"] | FixedScale,
    ) -> None:
        self._ensemble: Ensemble = ensemble
        self._std_weight = std_weight
        self._scale = scale
        self._running = [RunningScale() for _ in range(num_models)]

    def scores(self, raw: Scores, *, reason: str) -> list[Score]:
        """One score for each column of float64 [M, N]; None, for `reason`, where one is not finite.

        Every model's score before normalisation is a part, `model_0`, `model_1`, ...; that of a
        single model which is not normalised is the score itself and no part.
        """
        single = len(raw) == 1 and self._scale == "none"
        usable = np.asarray(np.isfinite(raw).all(axis=0))
        values = np.full(raw.shape[1], np.nan)
        values[usable] = combine(
            self._normalised(raw[:, usable]), ensemble=self._ensemble, std_weight=self._std_weight
        )
        return [
            Score(value=value, parts={f"model_{m}": float(x) for m, x in enumerate(column)})
            if finite
            else Score(value=None, errors=(reason,))
            for finite, value, column in zip(
                usable, values.tolist(), (raw[:0] if single else raw).T, strict=True
            )
        ]

    def state(self) -> bytes:
        """The running scales, as JSON."""
        return json.dumps([[s.count, s.mean, s.squares] for s in self._running]).encode()

    def restore(self, state: bytes) -> None:
        """Go on from the scales of `state`; ValueError if they are of other checkpoints."""
        scales = [RunningScale(*values) for values in json.loads(state)]
        if len(scales) != len(self._running):
            raise ValueError(f"{len(scales)} scales for {len(self._running)} reward models")
        self._running = scales

    def _normalised(self, raw: Scores) -> Scores:
        if isinstance(self._scale, FixedScale):
            return normalise(raw, mean=self._scale.mean, std=self._scale.std)
        if self._scale == "none":
            return raw
        for running, scores in zip(self._running, raw, strict=True):
            running.add(scores)
        return np.array(
            [
                normalise(scores, mean=running.mean, std=running.std)
                for running, scores in zip(self._running, raw, strict=True)
            ]
        )
