"""Metrics that add up correctly across micro-batches and ranks.

A mean is kept as (total, count), so the mean of parts is the mean of the whole; extremes are kept
as extremes, and what is counted is added. Nothing here knows where metrics are shown: see
`tracking`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """An immutable bag of named measurements; `+` merges two bags."""

    means: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """name -> (total, count)"""
    maxima: dict[str, float] = field(default_factory=dict[str, float])
    minima: dict[str, float] = field(default_factory=dict[str, float])
    sums: dict[str, float] = field(default_factory=dict[str, float])

    @staticmethod
    def mean(name: str, total: float, count: float = 1.0) -> "Metrics":
        """One mean: `total` over `count` observations."""
        return Metrics(means={name: (float(total), float(count))})

    @staticmethod
    def of(values: dict[str, float]) -> "Metrics":
        """Each value as one observation."""
        return Metrics(means={name: (float(value), 1.0) for name, value in values.items()})

    def __add__(self, other: "Metrics") -> "Metrics":
        means = dict(self.means)
        for name, (total, count) in other.means.items():
            old_total, old_count = means.get(name, (0.0, 0.0))
            means[name] = (old_total + total, old_count + count)
        maxima = dict(self.maxima)
        for name, value in other.maxima.items():
            maxima[name] = max(maxima.get(name, value), value)
        minima = dict(self.minima)
        for name, value in other.minima.items():
            minima[name] = min(minima.get(name, value), value)
        sums = dict(self.sums)
        for name, value in other.sums.items():
            sums[name] = sums.get(name, 0.0) + value
        return Metrics(means=means, maxima=maxima, minima=minima, sums=sums)

    def values(self) -> dict[str, float]:
        """name -> number; a mean over nothing is left out."""
        result = {name: total / count for name, (total, count) in self.means.items() if count}
        return {**result, **self.maxima, **self.minima, **self.sums}


def merge(parts: Iterable[Metrics]) -> Metrics:
    """The sum of several bags."""
    result = Metrics()
    for part in parts:
        result = result + part
    return result
