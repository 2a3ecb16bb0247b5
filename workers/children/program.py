"""What every program of a child process does: be set up, answer requests, end with its driver.

It answers one request at a time, or, if its `Setup` says so, all of them at once in one event loop.
It must stay light to start: no torch, no ray.
"""

import asyncio
import faulthandler
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, BinaryIO, Protocol

from workers.children.messages import HEADER, Cancelled, Reply, Request, Setup, TimedOut, frame

# The parent enforces the time-out. This is for the parent that is no longer there: a plugin in an
# endless loop would never see the end of file.
_ORPHAN_GRACE_S = 5.0
_HEARTBEAT_S = 1.0
_SHOWN_AFTER = 0.8
"""Of the time for the start, which began a little before the set-up."""


class Program(Protocol):
    """What answers the requests. A method that raises ends the process."""

    def answer(self, content: Any) -> object:
        """The result of a request, when they are answered in order."""
        ...

    async def answer_beside_others(self, content: Any) -> object:
        """The result of a request, when they are answered at once; inside `run`."""
        ...

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run the event loop that has all of the program's coroutines."""
        ...

    def close(self) -> None:
        """Tear down what was set up."""
        ...


class CannotStartError(Exception):
    """A program cannot be set up; the text says why, to the driver."""


def run_program(set_up: Callable[[Any], Program]) -> None:
    """Serve until the parent closes the connection or is gone.

    set_up: makes the program out of `Setup.content`, or raises `CannotStartError`.
    """
    # What a plugin prints must not mix with the standard output of the command.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    connection = socket.socket(fileno=int(sys.argv[1]))
    # Programs that a plugin starts must not hold the connection open.
    connection.set_inheritable(False)
    with connection, suppress(EOFError, ConnectionError, asyncio.IncompleteReadError):
        _serve(connection, set_up)


def _serve(connection: socket.socket, set_up: Callable[[Any], Program]) -> None:
    stream = connection.makefile("rb")
    setup: Setup = _read(stream)
    # Set here and inherited: what a plugin starts is limited too.
    resource.setrlimit(resource.RLIMIT_AS, (setup.memory_bytes, setup.memory_bytes))
    try:
        program = _set_up(set_up, setup)
    except CannotStartError as error:
        connection.sendall(frame(str(error)))
        return
    connection.sendall(frame(None))
    try:
        if setup.concurrent:
            # Nothing is sent before the process is ready, so `stream` has read nothing ahead.
            program.run(_serve_at_once(connection, program, setup.longest_timeout_s))
        else:
            _serve_in_order(connection, stream, program)
    finally:
        signal.setitimer(signal.ITIMER_REAL, _ORPHAN_GRACE_S)
        program.close()


def _set_up(set_up: Callable[[Any], Program], setup: Setup) -> Program:
    """Make the program; one that hangs shows where, before the parent ends it."""
    signal.setitimer(signal.ITIMER_REAL, setup.start_timeout_s + _ORPHAN_GRACE_S)
    faulthandler.dump_traceback_later(_SHOWN_AFTER * setup.start_timeout_s)
    try:
        return set_up(setup.content)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)


def _read(stream: BinaryIO) -> Any:
    """The next message; EOFError if there is none."""
    head = stream.read(HEADER.size)
    if len(head) < HEADER.size:
        raise EOFError
    return pickle.loads(stream.read(HEADER.unpack(head)[0]))


def _serve_in_order(connection: socket.socket, stream: BinaryIO, program: Program) -> None:
    while (request := _read(stream)) is not None:
        # The default action of SIGALRM ends the process even inside C code.
        signal.setitimer(signal.ITIMER_REAL, request.timeout_s + _ORPHAN_GRACE_S)
        result = program.answer(pickle.loads(request.content))
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.sendall(frame(Reply(request.number, result)))


async def _serve_at_once(
    connection: socket.socket, program: Program, longest_timeout_s: float
) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection.dup())

    async def answer(request: Request) -> None:
        result: object = Cancelled()
        scope = asyncio.timeout(request.timeout_s)
        try:
            async with scope:
                result = await program.answer_beside_others(pickle.loads(request.content))
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # by our end, not by the plugin's own doing
                raise
        if scope.expired():
            result = TimedOut(request.timeout_s)
        writer.write(frame(Reply(request.number, result)))

    # One that fails here ends the process, as it would one that answers in order.
    try:
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(_beat(longest_timeout_s))
            while True:
                head = await reader.readexactly(HEADER.size)
                request = pickle.loads(await reader.readexactly(HEADER.unpack(head)[0]))
                if request is None:
                    break
                tasks.create_task(answer(request))
            beating.cancel()
    except* (EOFError, ConnectionError):  # the driver is gone
        pass
    # The connection that tells the driver of our end is closed after this one, by `run_program`.
    writer.close()


async def _beat(longest_timeout_s: float) -> None:
    """End a process whose event loop has been stuck for longer than the parent would let it."""
    while True:
        signal.setitimer(signal.ITIMER_REAL, longest_timeout_s + _ORPHAN_GRACE_S)
        await asyncio.sleep(_HEARTBEAT_S)
