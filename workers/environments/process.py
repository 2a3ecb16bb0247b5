"""The program of one environment process: plays many episodes.

Started by `workers.environments.pool` as `python -m workers.environments.process FD`, FD being its
end of a socket pair. Steps of synchronous environments are taken one after the other, those of
concurrent ones as they come.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from inspect import isawaitable
from typing import Any

from rewards.environments.registry import (
    Environment,
    EnvironmentSpec,
    checked_observation,
    checked_turn,
    load_environment,
)
from rlstack.errors import EpisodeError
from workers.children.program import CannotStartError, run_program
from workers.environments.messages import (
    BeginEpisode,
    EpisodeRequest,
    TakeStep,
    UnknownEpisode,
)


class EnvironmentProgram:
    """The environments of the episodes under way; a `workers.children.program.Program`."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        """Make one environment, so that what cannot be made is known before the first episode.

        Raises:
            CannotStartError: if a plugin, the environment or a parameter is wrong.
        """
        try:
            self._make: Callable[[], Environment] = load_environment(spec)
            self._make()
        except Exception as error:
            raise CannotStartError(f"{type(error).__name__}: {error}") from error
        # One for all calls, so that an async environment may keep connections.
        self._runner = asyncio.Runner()
        self._playing: dict[int, Environment] = {}
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        """An episode whose step was given up may end while that step is still under way."""

    def answer(self, content: EpisodeRequest) -> object:
        """The environment's answer, or an `EpisodeError` that says what it raised."""
        try:
            result, check = self._call(content)
            # Outside of an event loop unless it is async: it may run one of its own.
            return check(self._runner.run(_awaited(result)) if isawaitable(result) else result)
        except Exception as error:  # noqa: BLE001 - whatever an environment raises is its episode's
            return EpisodeError(f"{type(error).__name__}: {error}")

    async def answer_beside_others(self, content: EpisodeRequest) -> object:
        """As `answer`; requests about the same episode wait for each other."""
        async with self._locks[content.episode]:
            try:
                result, check = self._call(content)
                return check(await result if isawaitable(result) else result)
            except Exception as error:  # noqa: BLE001 - as in `answer`
                return EpisodeError(f"{type(error).__name__}: {error}")

    def _call(self, content: EpisodeRequest) -> tuple[Any, Callable[[Any], object]]:
        """What the environment gives, perhaps to be awaited, and what checks that."""
        if isinstance(content, BeginEpisode):
            self._playing[content.episode] = environment = self._make()
            return environment.reset(content.task), checked_observation
        if content.episode not in self._playing:
            self._locks.pop(content.episode, None)
            return UnknownEpisode(), _unchecked
        if isinstance(content, TakeStep):
            return self._playing[content.episode].step(content.action), checked_turn
        environment = self._playing.pop(content.episode)
        self._locks.pop(content.episode, None)
        close: Callable[[], Any] | None = getattr(environment, "close", None)
        return (None if close is None else close()), _nothing

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run the event loop of the environments."""
        self._runner.run(main)

    def close(self) -> None:
        """Leave what is under way; nobody waits for it."""


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _unchecked(result: object) -> object:
    return result


def _nothing(_: object) -> None: ...


if __name__ == "__main__":
    run_program(EnvironmentProgram)
