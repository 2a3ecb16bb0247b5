"""Processes that run the configured rewards: isolated, with time-outs, replaced when they die.

They are started as programs of their own and not through `multiprocessing`: its fork copies the
driver's threads' locks, and its spawn imports the driver's main module, with torch and ray, again.
"""

import asyncio
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from rewards.compose import Component
from rewards.load import RewardSpec, load_reward
from rlstack.config.reward import RewardConfig
from rlstack.errors import WorkerError
from rlstack.types import RewardRequest, Score


class ScorerPool:
    """A `rlstack.protocols.Scorer` over `config.num_workers` processes.

    Returns from construction while the processes are still starting; `ready` waits for them.
    """

    def __init__(self, config: RewardConfig, *, row_rewards: Iterable[str] = ()) -> None:
        """Start the processes and check the configuration.

        row_rewards: the rewards that dataset rows name, for the component `row`; they are checked
            and their packages imported now instead of at their first request.

        Raises:
            RewardError: if a plugin, a reward or a parameter is wrong.
        """
        self._spec = RewardSpec(
            components=tuple(Component(c.name, c.weight, c.params) for c in config.components),
            plugins=config.plugins,
            row_rewards=tuple(sorted(set(row_rewards))),
        )
        load_reward(self._spec)
        self._timeout_s = config.timeout_s
        self._memory_bytes = int(config.memory_gib * 2**30)
        self._directory = Path.cwd()
        self._lock = threading.Lock()
        self._closed = False
        self._processes: set[_ScorerProcess] = set()
        self._idle: queue.SimpleQueue[_ScorerProcess] = queue.SimpleQueue()
        for _ in range(config.num_workers):
            self._idle.put(self._start_process())
        # One thread per process, which waits for it.
        self._threads = ThreadPoolExecutor(config.num_workers, thread_name_prefix="scorer")

    async def ready(self) -> None:
        """Wait until every process has built the reward.

        Raises:
            WorkerError: if one cannot start; the message says why.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            processes = tuple(self._processes)
        await asyncio.gather(
            *(loop.run_in_executor(self._threads, process.wait_ready) for process in processes)
        )

    async def score(self, request: RewardRequest) -> Score:
        """Judge one rollout; a failure, a time-out or a dead process is in `Score.errors`.

        Raises:
            WorkerError: if no process can be started, or the pool was closed.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._score, request)

    def close(self) -> None:
        """End all processes at once; scores under way raise WorkerError, queued ones are cancelled.

        Closing again does nothing.
        """
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        # A thread may still be reading from its process: connections are closed after it.
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.release()

    def _score(self, request: RewardRequest) -> Score:
        try:
            message = pickle.dumps(request)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            return _failed(f"the request cannot be sent to a scorer process: {error}")
        process = self._idle.get()
        try:
            if process.has_died():
                process = self._replace(process)
            process.wait_ready()
            return process.score(message, timeout_s=self._timeout_s)
        except TimeoutError:
            process = self._replace(process)
            return _failed(f"timed out after {self._timeout_s:g} s")
        except (EOFError, ConnectionError):
            dead = process
            process = self._replace(dead)
            return _failed(f"the scorer process died with exit code {dead.exit_code} while judging")
        finally:
            self._idle.put(process)

    def _replace(self, process: "_ScorerProcess") -> "_ScorerProcess":
        with self._lock:
            if self._closed:
                raise WorkerError("the scorer pool was closed while it was judging")
            process.kill()
            process.release()
            self._processes.remove(process)
            return self._start_process()

    def _start_process(self) -> "_ScorerProcess":
        process = _ScorerProcess(
            self._spec,
            timeout_s=self._timeout_s,
            memory_bytes=self._memory_bytes,
            directory=self._directory,
        )
        self._processes.add(process)
        return process


def _failed(error: str) -> Score:
    return Score(value=None, errors=(error,))


class _ScorerProcess:
    """One process running `workers.scorer_process`, and our end of its connection."""

    def __init__(
        self, spec: RewardSpec, *, timeout_s: float, memory_bytes: int, directory: Path
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
                    "workers.scorer_process",
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
        self._connection.send((spec, timeout_s, memory_bytes))
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
            raise WorkerError(f"a scorer process could not start: {problem}")

    def score(self, message: bytes, *, timeout_s: float) -> Score:
        """Send a pickled request and wait for its score.

        Raises:
            TimeoutError: if no score came within `timeout_s`.
            EOFError, ConnectionError: if the process died.
        """
        self._connection.send_bytes(message)
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        return self._connection.recv()

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
