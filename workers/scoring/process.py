"""The program of one scorer process: build its rewards, then judge what it is given.

Started by `workers.scoring.processes` as `python -m workers.scoring.process FD`, FD being its end
of a socket pair.
"""

import pickle
from collections.abc import Callable, Coroutine
from typing import Any

from rewards.composed_reward import ComposedReward
from rewards.load import import_requirements, load_reward
from rlstack.errors import RegistrationError
from workers.children.program import CannotStartError, run_program
from workers.scoring.messages import RestoreRequest, ScoreRequest, ScorerSetup, StateRequest


class ScorerProgram:
    """The rewards of one process; a `workers.children.program.Program`."""

    def __init__(self, setup: ScorerSetup) -> None:
        """Build them.

        Raises:
            CannotStartError: if a plugin or a reward is wrong, or one cannot be set up.
        """
        try:
            self._reward: ComposedReward = load_reward(setup.spec)
            import_requirements(setup.spec, setup.components)
            self._reward.set_up(setup.components)
        except RegistrationError as error:
            raise CannotStartError(str(error)) from error

    def answer(self, content: ScoreRequest | StateRequest | RestoreRequest) -> object:
        """Judge, or give or take a state."""
        reward = self._reward
        match content:
            case ScoreRequest(component, requests):
                return reward.judge(component, pickle.loads(requests))
            case StateRequest(component):
                return _result_or_reason(lambda: reward.state(component))
            case RestoreRequest(component, state):
                return _result_or_reason(lambda: reward.restore(component, state))

    async def answer_beside_others(self, content: ScoreRequest) -> object:
        """Judge; no reward that remembers is concurrent."""
        return await self._reward.judge_async(content.component, pickle.loads(content.requests))

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run the event loop of the rewards."""
        self._reward.run(main)

    def close(self) -> None:
        """Tear the rewards down."""
        self._reward.close()


def _result_or_reason(action: Callable[[], object]) -> object:
    """What `action` gives, or the text of what it raises: it is a user's code."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    run_program(ScorerProgram)
