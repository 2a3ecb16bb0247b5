"""The driver's end of one scorer process: start it, talk to it, end it.

It is started as a program of its own and not through `multiprocessing`: its fork copies the
driver's threads' locks, and its spawn imports the driver's main module, with torch and ray, again.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from rewards.load import RewardSpec
from rlstack.errors import WorkerError
from rlstack.types import Score


class ScorerProcess:
    """One process running `workers.scorer_process`, and our end of its connection."""

    program = "workers.scorer_process"
    kind = "a scorer"

    def __init__(
        self,
        spec: RewardSpec,
        timeouts_s: Sequence[float],
        *,
        memory_bytes: int,
        directory: Path,
    ) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                # -P: a file in the current folder must not shadow a module of ours.
                # -u: what a reward prints is seen even if the process is killed.
                [
                    sys.executable,
                    "-P",
                    "-u",
                    "-W",
                    "ignore::SyntaxWarning",
                    "-m",
                    self.program,
                    str(theirs.fileno()),
                ],
                # It must find the modules, plugins included, that we find.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C is for the driver; and whatever a reward starts is ended with it.
                process_group=0,
            )
        self._connection.send((spec, timeouts_s, memory_bytes))
        self._ready_lock = threading.Lock()
        self._ready = False
        self._start_failed = False

    @property
    def exit_code(self) -> int:
        """Exit code of an ended process, or minus the signal that ended it."""
        return self._process.wait()

    def has_died(self) -> bool:
        """Whether an idle process is of no more use."""
        # It never speaks unasked: after its first message only the end of file can arrive.
        return self._start_failed or (self._ready and self._connection.poll())

    def wait_ready(self) -> None:
        """Wait until it takes requests.

        Raises:
            WorkerError: if it cannot start.
        """
        with self._ready_lock:
            if self._ready:
                return
            try:
                problem = self._connection.recv()
            except (EOFError, ConnectionError):
                problem = "it died while starting; see its output above"
            self._ready = True
            self._start_failed = problem is not None
        if problem is not None:
            raise WorkerError(f"{self.kind} process could not start: {problem}")

    def judge(self, index: int, message: bytes, *, timeout_s: float) -> list[Score]:
        """Let component `index` judge pickled requests and wait for its verdicts.

        Raises:
            TimeoutError: if none came within `timeout_s`.
            EOFError, ConnectionError: if the process died.
        """
        self._connection.send(index)
        self._connection.send_bytes(message)
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        return self._connection.recv()

    def ask_to_end(self) -> None:
        """Let an idle process tear its rewards down and end."""
        # One that is still starting has set up nothing that is worth waiting for.
        if self._ready:
            with suppress(OSError):
                self._connection.send(None)

    def wait_for_end(self, timeout_s: float) -> None:
        """Wait until a process that was asked to has ended; a starting one is not waited for."""
        if self._ready:
            # Its end of the connection is closed last; its id stays its own until it is released.
            self._connection.poll(timeout_s)

    def kill(self) -> None:
        """End it and everything it started."""
        # Once it has been waited for, the process id may be somebody else's.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def release(self) -> None:
        """Wait for the end of a killed process and close the connection to it."""
        self._process.wait()
        self._connection.close()
