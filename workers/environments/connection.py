"""The driver's end of one environment process: start it, ask it, end it."""

import threading
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from rewards.environments.registry import EnvironmentSpec
from rlstack.errors import WorkerError
from workers.child_process import ChildProcess


class EnvironmentProcess(ChildProcess):
    """One process running `workers.environments.process`, asked one thing at a time."""

    def __init__(
        self, spec: EnvironmentSpec, *, timeout_s: float, memory_bytes: int, directory: Path
    ) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            program = "workers.environments.process"
            super().__init__(program, theirs.fileno(), directory=directory)
        self._connection.send((spec, timeout_s, memory_bytes))
        self._ready_lock = threading.Lock()
        self._ready = False
        self._start_failed = False

    def has_died(self) -> bool:
        """Whether an idle process is of no more use."""
        # It never speaks unasked: after its first message only the end of file can arrive.
        return self._start_failed or (self._ready and self._connection.poll())

    def wait_ready(self) -> None:
        """Wait until it can play.

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
            raise WorkerError(f"an environment process could not start: {problem}")

    def ask(self, number: int, message: bytes, *, timeout_s: float) -> Any:
        """What it answers to a pickled message for episode `number`.

        Raises:
            TimeoutError: if nothing came within `timeout_s`.
            EOFError, ConnectionError: if the process died.
        """
        self._connection.send(number)
        self._connection.send_bytes(message)
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        return self._connection.recv()

    def release(self) -> None:
        """Wait for the end of a killed process and close the connection to it."""
        super().release()
        self._connection.close()
