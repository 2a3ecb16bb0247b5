"""Environment `reasoning_gym_retry`: a reasoning-gym task with further tries."""

import re
from typing import Annotated

from pydantic import Field

from rewards.environments.registry import register_environment
from rewards.shipped.extraction import last_match
from rewards.shipped.reasoning_gym_task import METADATA_KEY, verifier
from rlstack.errors import DataError
from rlstack.types import Task, Turn

FULL_MARK = 1.0 - 1e-6


@register_environment("reasoning_gym_retry", requires=("reasoning_gym",))
class ReasoningGymRetry:
    """A wrong answer is told so and may be corrected until the task's score is full.

    A turn earns what it improves on the best try before it, times `decay` for every earlier try:
    the rewards of an episode add up to 1.0 at most, and repeating a half-right answer earns
    nothing.
    """

    def __init__(
        self,
        *,
        answer_pattern: re.Pattern[str] | None = None,
        decay: Annotated[float, Field(gt=0, le=1)] = 0.8,
    ) -> None:
        """Set up.

        answer_pattern: where the answer stands in an action, e.g. `<answer>(.*?)</answer>`: its
            last match, the first group if there is one; default: the whole action, stripped.
        decay: worth of a second try, relative to a first.
        """
        self._pattern = answer_pattern
        self._decay = decay
        self._tries = 0
        self._best = 0.0

    def reset(self, task: Task) -> None:
        """Begin; the prompt says it all.

        Raises:
            DataError: if the row does not come from reasoning-gym.
            RewardError: if its task is unknown.
        """
        if METADATA_KEY not in task.metadata:
            raise DataError(
                f"the row (data source {task.data_source!r}) has no metadata[{METADATA_KEY!r}]. "
                "This environment needs rows of a source with type=reasoning_gym."
            )
        row = task.metadata[METADATA_KEY]
        self._verify = verifier(row["task"])
        self._entry = row["entry"]

    def step(self, action: str) -> Turn:
        """Judge one answer."""
        answer = action.strip() if self._pattern is None else last_match(action, self._pattern)
        worth = self._decay**self._tries
        self._tries += 1
        if answer is None:
            return Turn(observation="No answer was found in the expected form. Try again.")
        score = self._verify(answer, self._entry)
        reward = worth * max(0.0, score - self._best)
        self._best = max(self._best, score)
        if score >= FULL_MARK:
            return Turn(observation="Correct.", done=True, reward=reward)
        return Turn(
            observation=f"{answer[:200]} is not correct. Check your work and try again.",
            reward=reward,
        )
