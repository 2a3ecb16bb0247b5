"""What a reward that remembers is known to remember, and how a new process gets it."""

import logging
import pickle
from collections.abc import Sequence

from workers.children.messages import Cancelled, Died, TimedOut
from workers.children.queue import ChildTask
from workers.scoring.messages import RestoreRequest

_logger = logging.getLogger(__name__)


class RewardMemory:
    """The last known state of one component; told of results in the dispatcher's thread."""

    def __init__(self, index: int, *, label: str, timeout_s: float) -> None:
        """Nothing is known yet."""
        self.state: bytes | None = None
        self.label = label
        self._index = index
        self._timeout_s = timeout_s
        self._has_judged = False

    def on_scores(self, result: object) -> None:
        """Note that the process judged, so that it has something to lose."""
        self._has_judged = self._has_judged or isinstance(result, list)

    def on_state(self, result: object) -> None:
        """Keep a state that the process gave."""
        if isinstance(result, bytes):
            self.state = result

    def on_restored(self, result: object) -> None:
        """Forget a state that ended the process: it would end the next one too."""
        if isinstance(result, TimedOut | Died | Cancelled):
            self.state = None

    def on_replaced(self) -> Sequence[ChildTask]:
        """Give the last state to the process that stands for one that ended."""
        if self._has_judged:
            since = "the start" if self.state is None else "the last checkpoint"
            _logger.warning(
                "the process of reward %s died: what it remembered since %s is lost",
                self.label,
                since,
            )
        self._has_judged = False
        if self.state is None:
            return ()
        content = pickle.dumps(RestoreRequest(self._index, self.state))
        return (
            ChildTask(
                number=-1, content=content, timeout_s=self._timeout_s, on_result=self._on_again
            ),
        )

    def _on_again(self, result: object) -> None:
        if result is not None:
            _logger.error("a reward could not go on from its state: %s", result)
        self.on_restored(result)
