"""The program of one environment process: plays many episodes, one turn at a time.

Started by `workers.environments.pool` as `python -m workers.environments.process FD`, as
`workers.scoring.process` is; it must stay as light to start.

Protocol, every message pickled: an `EnvironmentSpec`, the time-out of a turn in seconds and
a memory limit in bytes come in; None (ready) or a text (why it cannot start) goes out. Then,
until None or the end of file: an episode's number and one of

    Task    begin the episode; its first observation (text or None) goes out
    str     an action; the `Turn` that answers it goes out
    None    the episode is over; nothing goes out

or an `EpisodeError` instead, after which the process lives on.
"""

import asyncio
import inspect
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from rewards.environments.registry import (
    Environment,
    EnvironmentSpec,
    checked_turn,
    load_environment,
)
from rlstack.errors import EpisodeError
from rlstack.types import Task, Turn

# The parent enforces the time-out. This is for the parent that is no longer there.
_ORPHAN_GRACE_S = 5.0


def main() -> None:
    """Serve until the parent closes the connection or is gone."""
    # What an environment prints must not mix with the standard output of the command.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as connection, suppress(EOFError, ConnectionError):
        _serve(connection)


@dataclass(slots=True)
class _Episodes:
    """The environments of the episodes under way, by number."""

    make: Callable[[], Environment]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    """One for all calls, so that an async environment may keep connections."""
    playing: dict[int, Environment] = field(default_factory=dict[int, Environment])

    def answer(self, number: int, message: Task | str | None) -> object:
        """What goes out for a message."""
        try:
            if isinstance(message, Task):
                self.playing[number] = environment = self.make()
                return _checked_observation(self._result(environment.reset(message)))
            if message is None:
                close = getattr(self.playing.pop(number), "close", None)
                return self._result(close()) if close is not None else None
            return self._turn(self.playing[number], message)
        except Exception as error:  # noqa: BLE001 - whatever an environment raises is its episode's
            return EpisodeError(f"{type(error).__name__}: {error}")

    def _turn(self, environment: Environment, action: str) -> Turn:
        return checked_turn(self._result(environment.step(action)))

    def _result(self, result: Any) -> Any:
        if inspect.isawaitable(result):
            return self.loop.run_until_complete(_awaited(result))
        return result


async def _awaited(result: Any) -> Any:
    return await result


def _checked_observation(observation: object) -> str | None:
    if observation is None or isinstance(observation, str):
        return observation
    raise TypeError(f"reset returned {type(observation).__name__}; expected text or None")


def _serve(connection: "Connection[Any, Any]") -> None:
    spec, timeout_s, memory_bytes = connection.recv()
    assert isinstance(spec, EnvironmentSpec)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        make = load_environment(spec)
        make()  # what cannot be set up is known before the first episode
    except Exception as error:  # noqa: BLE001 - the parent raises it
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    episodes = _Episodes(make)
    while (number := connection.recv()) is not None:
        message = pickle.loads(connection.recv_bytes())
        # The default action of SIGALRM ends the process even inside C code.
        signal.setitimer(signal.ITIMER_REAL, timeout_s + _ORPHAN_GRACE_S)
        reply = episodes.answer(number, message)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(reply)


if __name__ == "__main__":
    main()
