"""Learning-rate schedules as pure functions of the update number."""

from math import cos, pi
from typing import Literal


def learning_rate_factor(
    update: int,
    *,
    name: Literal["constant", "linear", "cosine"],
    warmup_updates: int,
    total_updates: int,
    min_ratio: float,
) -> float:
    """Share of the peak learning rate for optimizer step `update`, counted from 0."""
    if update < warmup_updates:
        return (update + 1) / (warmup_updates + 1)
    if name == "constant":
        return 1.0
    progress = min(1.0, (update - warmup_updates) / max(1, total_updates - warmup_updates))
    decay = 1.0 - progress if name == "linear" else 0.5 * (1.0 + cos(pi * progress))
    return min_ratio + (1.0 - min_ratio) * decay
