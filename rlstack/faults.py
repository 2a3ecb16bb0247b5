"""What keeps bad numbers out of the weights: bounds on metrics, and an end to skipped updates."""

import logging
from collections.abc import Collection, Sequence

from rlstack.config.faults import Bound
from rlstack.errors import TrainingError
from rlstack.metrics import Metrics

SKIPPED_UPDATES = "skipped_updates"
"""`<role>/skipped_updates` counts the updates of a step that were not made."""

_logger = logging.getLogger(__name__)


class SkippedUpdates:
    """Ends a run whose updates are skipped one after the other."""

    def __init__(self, *, most: int) -> None:
        """most: with that many updates of a role in a row skipped, the run ends."""
        self.most = most
        self.in_a_row: dict[str, int] = {}

    @property
    def under_way(self) -> bool:
        """Whether the latest update of some role was skipped."""
        return any(self.in_a_row.values())

    def observe(self, updates: Metrics) -> None:
        """Take account of one update of each role, or of one decision to make none.

        Raises:
            TrainingError: if there were too many in a row.
        """
        for name, count in updates.sums.items():
            role, _, kind = name.partition("/")
            if kind == SKIPPED_UPDATES:
                self.in_a_row[role] = self.in_a_row.get(role, 0) + 1 if count else 0
                if self.in_a_row[role] >= self.most:
                    raise TrainingError(_too_many(role, self.most))


def _too_many(role: str, number: int) -> str:
    return (
        f"{number} updates of {role} in a row were skipped (faults.max_skipped_updates), because a "
        "loss or a gradient was not finite or a bound of faults.bounds skipped the step. No weight "
        "was changed by them and no checkpoint written since. Look at the last metrics before; "
        "lower the learning rate, correct the mismatch with the engines (algorithm.correction), or "
        "look for the rows that cause it"
    )


def skipped_step(roles: Collection[str], *, num_updates: int) -> Metrics:
    """What is measured of a step that makes none of its updates."""
    return Metrics(sums={f"{role}/{SKIPPED_UPDATES}": float(num_updates) for role in roles})


def check_bounds(bounds: Sequence[Bound], measured: Metrics, *, step: int) -> bool:
    """Warn of every bound that `measured` is beyond; whether one of them skips the step.

    A metric that was not measured is within its bounds.

    Raises:
        TrainingError: if one of them stops the run.
    """
    values = measured.values()
    skips = False
    for index, bound in enumerate(bounds):
        value = values.get(bound.metric)
        beyond = None if value is None else bound.beyond(value)
        if beyond is None:
            continue
        text = f"step {step}: {bound.metric} is {value:g}, {beyond} (faults.bounds[{index}])"
        if bound.action == "stop":
            raise TrainingError(f"{text}; the run ends without a checkpoint of this step")
        skips = skips or bound.action == "skip"
        _logger.warning("%s%s", text, "; no update is made" if bound.action == "skip" else "")
    return skips
