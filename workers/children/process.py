"""The driver's end of one child process: start it, talk to it, end it.

It is started as a program and not through `multiprocessing`: its fork copies the driver's threads'
locks, and its spawn imports the driver's main module, with torch and ray, again.
"""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from workers.children.messages import Frames, Setup, frame

_CHUNK = 1 << 18


class ChildProcess:
    """`python -m PROGRAM DESCRIPTOR`, started in `directory`, and our end of its connection.

    Nothing here waits unless it says so: what cannot be sent at once is kept for `flush`.
    """

    def __init__(self, program: str, setup: Setup, *, directory: Path) -> None:
        """Start it; it says when it is ready. `program`: a module that calls `run_program`."""
        self.socket, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self._frames = Frames()
        self._unsent = bytearray()
        # -P: a file in the current folder must not shadow a module of ours.
        # -u: what a plugin prints is seen even if the process is killed.
        options = ["-P", "-u", "-W", "ignore::SyntaxWarning"]
        with remote:
            self._process = subprocess.Popen(
                [sys.executable, *options, "-m", program, str(remote.fileno())],
                # It must find the modules, plugins included, that we find.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                pass_fds=(remote.fileno(),),
                # Ctrl-C is for the driver; and whatever a plugin starts is ended with it.
                process_group=0,
            )
        self.send(setup)

    @property
    def exit_code(self) -> int:
        """Exit code of a process that ends, or minus the signal that ended it; waits for it."""
        return self._process.wait()

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

    def kill(self) -> None:
        """End it and everything it started."""
        # Once it has been waited for, the process id may be somebody else's.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def release(self) -> None:
        """Wait for the end of a killed process and close the connection to it."""
        self._process.wait()
        self.socket.close()
