"""What the driver and a scorer process say to each other over a stream socket.

A frame is its length (8 bytes) and a pickle. The driver sends a `Setup`, then `Judge`, `Snapshot`
and `Restore`, then None; the process answers the `Setup` with None (ready) or a text (why it cannot
start), and everything else with a `Reply` of the same number.
"""

import pickle
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from rewards.load import RewardSpec

HEADER = struct.Struct("!Q")


class Setup(NamedTuple):
    """What a process is for."""

    spec: RewardSpec
    components: tuple[int, ...]
    """Those it builds."""
    timeouts_s: tuple[float, ...]
    """Of every component of `spec`."""
    memory_bytes: int
    """Address space."""
    concurrent: bool
    """Whether it judges all it is given at once instead of one after the other."""


class Judge(NamedTuple):
    """Let one component judge; answered with a list of `Score`, or a text: why there is none."""

    call: int
    component: int
    requests: bytes
    """A pickled sequence of `RewardRequest`."""


class Snapshot(NamedTuple):
    """Ask for the state of a component; answered with bytes, or a text: why not."""

    call: int
    component: int


class Restore(NamedTuple):
    """Put a component into a state; answered with None, or a text: why not."""

    call: int
    component: int
    state: bytes


class Reply(NamedTuple):
    """The answer to one message."""

    call: int
    result: Any


def timed_out(timeout_s: float) -> str:
    """The text of a time-out."""
    return f"timed out after {timeout_s:g} s"


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
