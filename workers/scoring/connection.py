"""The driver's end of one scorer process: start it, talk to it, end it."""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from workers.child_process import ChildProcess
from workers.scoring.messages import Frames, Setup, frame

_CHUNK = 1 << 18


class ScorerProcess(ChildProcess):
    """One process running `workers.scoring.process`, and our end of its connection.

    Nothing here waits: what cannot be sent at once is kept for `flush`.
    """

    def __init__(self, setup: Setup, *, directory: Path) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self._frames = Frames()
        self._unsent = bytearray()
        with theirs:
            super().__init__("workers.scoring.process", theirs.fileno(), directory=directory)
        self.send(setup)

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` has something left to do."""
        return bool(self._unsent)

    def send(self, *messages: object) -> None:
        """Send what the socket takes now; a process that is gone is noticed by `receive`."""
        for message in messages:
            self._unsent += frame(message)
        self.flush()

    def flush(self) -> None:
        """Send more of what is left."""
        with suppress(BlockingIOError, ConnectionError):
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]

    def receive(self) -> tuple[list[Any], bool]:
        """The messages that have arrived, and whether it is still there."""
        try:
            data = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return [], True
        except ConnectionError:
            data = b""
        return list(self._frames.feed(data)), bool(data)

    def wait_for_end(self, timeout_s: float) -> None:
        """Wait until a process that was asked to end has; its connection is closed last."""
        self.socket.settimeout(timeout_s)
        with suppress(OSError):
            self.socket.sendall(self._unsent)
            while self.socket.recv(_CHUNK):
                pass

    def release(self) -> None:
        """Wait for the end of a killed process and close the connection to it."""
        super().release()
        self.socket.close()
