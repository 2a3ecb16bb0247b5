"""How well scores agree with preferences: accuracy, calibration, dependence on length; pure.

Scores are float64 [N] of the chosen and of the rejected response of N pairs. The model's chance
that the chosen one is better is sigmoid(chosen - rejected) (Bradley and Terry 1952).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlstack.metrics import Metrics

Floats = NDArray[np.float64]
NUM_CONFIDENCE_BINS = 10
NUM_LENGTH_BINS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """Scores of N pairs and what is known of them, all float64.

    chosen, rejected: [N], reward units. lengths: [2, N], tokens of the chosen and of the rejected
    responses. data_sources: N.
    """

    chosen: Floats
    rejected: Floats
    lengths: Floats
    data_sources: tuple[str, ...]

    @property
    def differences(self) -> Floats:
        """Chosen minus rejected, float64 [N]."""
        return self.chosen - self.rejected

    @property
    def all(self) -> Floats:
        """Scores of the chosen and then of the rejected responses, float64 [2N]."""
        return np.concatenate((self.chosen, self.rejected))


def joined(parts: Sequence[PairScores]) -> PairScores:
    """The pairs of all parts, in order."""
    return PairScores(
        chosen=np.concatenate([part.chosen for part in parts]),
        rejected=np.concatenate([part.rejected for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts], axis=1),
        data_sources=tuple(name for part in parts for name in part.data_sources),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """A share of the data: mean of what it is ordered by, mean of what is asked, and how many."""

    position: float
    value: float
    count: int


def agreement(scores: PairScores) -> Floats:
    """1 where the chosen response scores higher, 0.5 where both score the same, else 0."""
    return (np.sign(scores.differences) + 1) / 2


def log_loss(differences: Floats) -> Floats:
    """-log sigmoid of each, without overflow."""
    return np.logaddexp(0.0, -differences)


def brier(differences: Floats) -> Floats:
    """(1 - sigmoid)^2 of each (Brier 1950): 0.25 for a model that says nothing."""
    return np.exp(-2 * np.logaddexp(0.0, differences))


def reliability(scores: PairScores, *, num_bins: int = NUM_CONFIDENCE_BINS) -> list[Bin]:
    """How often the model is right where it is so sure of itself; empty bins are left out.

    Bins of the same width over confidences 0.5 .. 1 in the response that scores higher. position:
    mean confidence, value: accuracy.
    """
    confidence = np.exp(-log_loss(np.abs(scores.differences)))
    index = np.minimum((confidence - 0.5) * 2 * num_bins, num_bins - 1).astype(np.int64)
    right = agreement(scores)
    return [
        Bin(
            position=float(confidence[members].mean()),
            value=float(right[members].mean()),
            count=int(members.sum()),
        )
        for members in (index == number for number in range(num_bins))
        if members.any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between confidence and accuracy, over pairs (Guo et al. 2017, equation 5)."""
    total = sum(part.count for part in bins)
    return sum(part.count * abs(part.value - part.position) for part in bins) / max(total, 1)


def by_quantile(positions: Floats, values: Floats, *, num_bins: int = NUM_LENGTH_BINS) -> list[Bin]:
    """Means of both over parts of nearly the same size, in ascending order of `positions`."""
    parts = np.array_split(np.argsort(positions, kind="stable"), min(num_bins, len(positions)) or 1)
    return [
        Bin(
            position=float(positions[part].mean()),
            value=float(values[part].mean()),
            count=len(part),
        )
        for part in parts
        if len(part)
    ]


def correlation(left: Floats, right: Floats) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if len(left) == 0 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])


def pair_metrics(scores: PairScores, *, prefix: str) -> Metrics:
    """Accuracy, also by source where there are several; margin; mean and spread of all scores."""
    right, both = agreement(scores), scores.all
    count = len(right)
    means = {
        f"{prefix}/accuracy": (float(right.sum()), float(count)),
        f"{prefix}/margin": (float(scores.differences.sum()), float(count)),
        f"{prefix}/score_mean": (float(both.mean()), 1.0),
        f"{prefix}/score_std": (float(both.std()), 1.0),
    }
    sources = np.array(scores.data_sources)
    names = sorted(set(scores.data_sources))
    for name in names if len(names) > 1 else []:
        members = right[sources == name]
        means[f"{prefix}/accuracy/{name}"] = (float(members.sum()), float(len(members)))
    return Metrics(means=means)


def score_by_length(scores: PairScores) -> list[Bin]:
    """Mean score of responses, from the shortest fifth to the longest. position: mean length."""
    return by_quantile(scores.lengths.ravel(), scores.all)


def held_out_metrics(scores: PairScores) -> Metrics:
    """`eval/...` of held-out pairs.

    `eval/score_by_length/1` is the mean score of the shortest fifth of all responses.
    """
    differences, count = scores.differences, float(len(scores.chosen))
    means = {
        "eval/log_loss": (float(log_loss(differences).sum()), count),
        "eval/brier_loss": (float(brier(differences).sum()), count),
    }
    values = {
        "eval/calibration_error": calibration_error(reliability(scores)),
        "eval/score_length_correlation": correlation(scores.lengths.ravel(), scores.all),
    }
    for number, part in enumerate(score_by_length(scores), start=1):
        values[f"eval/score_by_length/{number}"] = part.value
    return pair_metrics(scores, prefix="eval") + Metrics(means=means) + Metrics.of(values)
