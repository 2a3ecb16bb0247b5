"""Processes that play environments: isolated, with time-outs, replaced when they die."""

import asyncio
import itertools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.environments.registry import EnvironmentSpec, load_environment
from rlstack.config.environment import EnvironmentConfig
from rlstack.config.reward import RewardConfig
from rlstack.errors import EpisodeError, EpisodeTimeoutError, WorkerError
from rlstack.types import Task, Turn
from workers.environments.connection import EnvironmentProcess


@dataclass(slots=True, eq=False)
class PlayedEpisode:
    """An episode under way, and all that is needed to play it again."""

    number: int
    task: Task
    seat: int
    """Which process plays it."""
    process: EnvironmentProcess | None = None
    """The one that holds its environment; another one takes its place when it dies."""
    observation: str | None = None
    turns: list[tuple[str, Turn]] = field(default_factory=list[tuple[str, Turn]])


class EnvironmentPool:
    """Environments in `config.num_workers` processes; each answers one turn at a time.

    A turn that hangs or ends its process costs its own episode. The other episodes of that process
    are played again, in the one that replaces it, up to where they were.

    Returns from construction while the processes are still starting; `ready` waits for them.
    """

    def __init__(self, config: EnvironmentConfig, reward: RewardConfig) -> None:
        """Start the processes and check the configuration; plugins and memory are the reward's.

        Raises:
            RewardError: if a plugin, the environment or a parameter is wrong.
        """
        self._spec = EnvironmentSpec(name=config.name, params=config.params, plugins=reward.plugins)
        load_environment(self._spec)
        self._timeout_s = config.timeout_s
        self._memory_bytes = int(reward.memory_gib * 2**30)
        self._directory = Path.cwd()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        self._processes = [self._start_process() for _ in range(config.num_workers)]
        # One thread per process: it is asked one thing at a time, in the order of the questions.
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix="environment") for _ in self._processes
        ]

    async def ready(self) -> None:
        """Wait until every process can play.

        Raises:
            WorkerError: if one cannot start; the message says why.
        """
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(
                loop.run_in_executor(threads, process.wait_ready)
                for threads, process in zip(self._threads, self._processes, strict=True)
            )
        )

    async def begin(self, task: Task) -> PlayedEpisode:
        """A new episode; `observation` is the first one, if there is any.

        Raises:
            EpisodeError: if the environment failed or took too long.
            WorkerError: if no process can be started, or the pool was closed.
        """
        number = next(self._numbers)
        episode = PlayedEpisode(number=number, task=task, seat=number % len(self._processes))
        await self._in_its_thread(episode, self._begin, episode)
        return episode

    async def step(self, episode: PlayedEpisode, action: str) -> Turn:
        """What the environment answers to `action`.

        Raises:
            EpisodeError, WorkerError: as `begin`.
        """
        turn: Turn = await self._in_its_thread(episode, self._step, episode, action)
        episode.turns.append((action, turn))
        return turn

    async def end(self, episode: PlayedEpisode) -> None:
        """Forget the episode.

        Raises:
            EpisodeError, WorkerError: as `begin`.
        """
        await self._in_its_thread(episode, self._end, episode)

    def close(self) -> None:
        """End all processes at once; turns under way raise WorkerError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for process in self._processes:
                process.kill()
        for threads in self._threads:
            threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.release()

    async def _in_its_thread(self, episode: PlayedEpisode, function: Any, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads[episode.seat], function, *arguments)

    # --- in the thread of a process

    def _begin(self, episode: PlayedEpisode) -> None:
        process = self._living(episode.seat)
        episode.observation = self._ask(process, episode, episode.task)
        episode.process = process

    def _step(self, episode: PlayedEpisode, action: str) -> Turn:
        process = self._living(episode.seat)
        if process is not episode.process:
            self._play_again(process, episode)
        return self._ask(process, episode, action)

    def _end(self, episode: PlayedEpisode) -> None:
        process = self._processes[episode.seat]
        if process is episode.process and not process.has_died():
            self._ask(process, episode, None)

    def _play_again(self, process: EnvironmentProcess, episode: PlayedEpisode) -> None:
        """Bring an episode to where it was when its process died because of another one."""
        observation = self._ask(process, episode, episode.task)
        answers = [self._ask(process, episode, action) for action, _ in episode.turns]
        if observation != episode.observation or answers != [turn for _, turn in episode.turns]:
            raise EpisodeError(
                "its process ended because of another episode, and played again it answered "
                "otherwise; draw what is random from Task.seed"
            )
        episode.process = process

    def _ask(
        self, process: EnvironmentProcess, episode: PlayedEpisode, message: Task | str | None
    ) -> Any:
        try:
            text = pickle.dumps(message)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise EpisodeError(f"the row cannot be sent to a process: {error}") from None
        try:
            reply: Any = process.ask(episode.number, text, timeout_s=self._timeout_s)
        except TimeoutError:
            self._replace(episode.seat)
            raise EpisodeTimeoutError(f"no answer after {self._timeout_s:g} s") from None
        except (EOFError, ConnectionError):
            self._replace(episode.seat)
            code = process.exit_code
            raise EpisodeError(f"its process died with exit code {code}") from None
        if isinstance(reply, EpisodeError):
            raise reply
        return reply

    def _living(self, seat: int) -> EnvironmentProcess:
        self._check_open()
        process = self._processes[seat]
        if process.has_died():
            process = self._replace(seat)
        process.wait_ready()
        return process

    def _replace(self, seat: int) -> EnvironmentProcess:
        with self._lock:
            self._check_open()
            self._processes[seat].kill()
            self._processes[seat].release()
            self._processes[seat] = self._start_process()
            return self._processes[seat]

    def _check_open(self) -> None:
        if self._closed:
            raise WorkerError("the environments were closed while an episode was under way")

    def _start_process(self) -> EnvironmentProcess:
        return EnvironmentProcess(
            self._spec,
            timeout_s=self._timeout_s,
            memory_bytes=self._memory_bytes,
            directory=self._directory,
        )
