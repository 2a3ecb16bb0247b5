"""The program of one scorer process: build its rewards, then judge what it is given.

Started by `workers.scoring.pool` as `python -m workers.scoring.process FD`, FD being its end of a
socket pair; `workers.scoring.messages` has the protocol. It must stay light to start: no torch, no
ray.

It judges one thing at a time, or, for rewards that wait more than they compute, everything at once
in one event loop.
"""

import asyncio
import os
import pickle
import resource
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, BinaryIO

from rewards.composed_reward import ComposedReward
from rewards.load import import_requirements, load_reward
from rlstack.errors import RewardError
from rlstack.types import Score
from workers.scoring.messages import (
    HEADER,
    Judge,
    Reply,
    Restore,
    Setup,
    Snapshot,
    frame,
    timed_out,
)

# The parent enforces the time-out. This is for the parent that is no longer there: a reward in an
# endless loop would never see the end of file.
_ORPHAN_GRACE_S = 5.0
_HEARTBEAT_S = 1.0


def main() -> None:
    """Serve until the parent closes the connection or is gone."""
    # What a reward prints must not mix with the standard output of the command.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    connection = socket.socket(fileno=int(sys.argv[1]))
    # Programs that a reward starts must not hold the connection open.
    connection.set_inheritable(False)
    with connection, suppress(EOFError, ConnectionError, asyncio.IncompleteReadError):
        _serve(connection)


def _serve(connection: socket.socket) -> None:
    stream = connection.makefile("rb")
    setup: Setup = _read(stream)
    # Set here and inherited: what a reward starts is limited too.
    resource.setrlimit(resource.RLIMIT_AS, (setup.memory_bytes, setup.memory_bytes))
    try:
        reward = load_reward(setup.spec)
        import_requirements(setup.spec, setup.components)
        reward.set_up(setup.components)
    except RewardError as error:
        connection.sendall(frame(str(error)))
        return
    connection.sendall(frame(None))
    try:
        if setup.concurrent:
            # Nothing is sent before the process is ready, so `stream` has read nothing ahead.
            reward.run(_serve_at_once(connection, reward, setup.timeouts_s))
        else:
            _serve_in_order(connection, stream, reward, setup.timeouts_s)
    finally:
        signal.setitimer(signal.ITIMER_REAL, _ORPHAN_GRACE_S)
        reward.close()


def _read(stream: BinaryIO) -> Any:
    """The next message; EOFError if there is none."""
    head = stream.read(HEADER.size)
    if len(head) < HEADER.size:
        raise EOFError
    return pickle.loads(stream.read(HEADER.unpack(head)[0]))


def _serve_in_order(
    connection: socket.socket,
    stream: BinaryIO,
    reward: ComposedReward,
    timeouts_s: tuple[float, ...],
) -> None:
    while (message := _read(stream)) is not None:
        # The default action of SIGALRM ends the process even inside C code.
        signal.setitimer(signal.ITIMER_REAL, timeouts_s[message.component] + _ORPHAN_GRACE_S)
        match message:
            case Judge():
                result = reward.judge(message.component, pickle.loads(message.requests))
            case Snapshot():
                result = _or_reason(lambda: reward.state(message.component))
            case Restore():
                result = _or_reason(lambda: reward.restore(message.component, message.state))
            case _:
                raise AssertionError(f"unknown message {message!r}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.sendall(frame(Reply(message.call, result)))


def _or_reason(action: Any) -> Any:
    """What `action` gives, or the text of what it raises: it is a user's code."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"


async def _serve_at_once(
    connection: socket.socket, reward: ComposedReward, timeouts_s: tuple[float, ...]
) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection.dup())

    async def judge(message: Judge) -> None:
        result: list[Score] | str = ""
        timeout_s = timeouts_s[message.component]
        scope = asyncio.timeout(timeout_s)
        try:
            async with scope:
                result = await reward.judge_async(message.component, pickle.loads(message.requests))
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            ours = asyncio.current_task()
            if ours is not None and ours.cancelling():  # by our end, not by the reward's own doing
                raise
            result = "the reward was cancelled"
        if scope.expired():
            result = timed_out(timeout_s)
        writer.write(frame(Reply(message.call, result)))

    # One that fails here ends the process, as it would one that judges in order.
    async with asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(_beat(max(timeouts_s)))
        while True:
            head = await reader.readexactly(HEADER.size)
            message = pickle.loads(await reader.readexactly(HEADER.unpack(head)[0]))
            if message is None:
                break
            tasks.create_task(judge(message))
        beating.cancel()
    # The connection that tells the driver of our end is closed after this one, by `main`.
    writer.close()


async def _beat(longest_s: float) -> None:
    """End a process whose event loop has been stuck for longer than the parent would let it."""
    while True:
        signal.setitimer(signal.ITIMER_REAL, longest_s + _ORPHAN_GRACE_S)
        await asyncio.sleep(_HEARTBEAT_S)


if __name__ == "__main__":
    main()
