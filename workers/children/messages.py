"""What the driver and a child process say to each other over a stream socket.

A frame is its length (8 bytes) and a pickle. The driver sends a `Setup`, then `Request`s, then
None; the process answers the `Setup` with None (ready) or a text (why it cannot start), and every
`Request` with a `Reply` of the same number.
"""

import pickle
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

HEADER = struct.Struct("!Q")


class Setup(NamedTuple):
    """What a process is for."""

    content: Any
    """What its program is built from."""
    memory_bytes: int
    """Address space."""
    concurrent: bool
    """Whether it does all it is given at once instead of one after the other."""
    longest_timeout_s: float
    """Of all its requests."""
    start_timeout_s: float
    """Until it must be ready."""


class Request(NamedTuple):
    """One thing to do."""

    number: int
    timeout_s: float
    content: bytes
    """A pickle, for the program."""


class Reply(NamedTuple):
    """The answer to one request: what the program gave, or a `Failure`."""

    number: int
    result: Any


class TimedOut(NamedTuple):
    """A request took longer than `timeout_s`."""

    timeout_s: float


class Died(NamedTuple):
    """The process ended while it was at a request."""

    exit_code: int
    """Or minus the signal that ended it."""


class Cancelled(NamedTuple):
    """A request was cancelled, by itself."""


class NotStarted(NamedTuple):
    """Every process that could have done a request hung while it was starting."""

    problem: str
    """Which process, and for how long."""


Failure = TimedOut | Died | Cancelled | NotStarted
"""Why a request has no result; its sender finds the words."""


def frame(message: object) -> bytes:
    """A message as it travels."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(data)) + data


class Frames:
    """Messages out of the pieces in which a stream delivers them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are complete now."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            end = start + HEADER.size + HEADER.unpack_from(self._buffer, start)[0]
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view, view[start + HEADER.size : end] as body:
                message = pickle.loads(body)
            start = end
            yield message
        del self._buffer[:start]
