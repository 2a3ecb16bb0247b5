"""Processes that play environments: isolated, with time-outs, replaced when they die."""

import itertools
import logging
import pickle
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from rewards.environments.registry import ENVIRONMENTS, EnvironmentSpec, load_environment
from rlstack.config.environment import EnvironmentConfig
from rlstack.config.reward import RewardConfig
from rlstack.errors import EpisodeError, EpisodeTimeoutError
from rlstack.types import Task, Turn
from workers.children.dispatcher import Dispatcher
from workers.children.messages import Cancelled, Died, NotStarted, Setup, TimedOut
from workers.children.queue import ChildTask, TaskQueue, process_names
from workers.environments.messages import (
    BeginEpisode,
    EndEpisode,
    EpisodeRequest,
    TakeStep,
    UnknownEpisode,
)

logger = logging.getLogger(__name__)


class _ProcessReplacedError(Exception):
    """The process that held an episode's environment has ended."""


@dataclass(slots=True, eq=False)
class PlayedEpisode:
    """An episode under way, and all that is needed to play it again."""

    number: int
    task: Task
    process: int
    """Which of the pool's processes, or those that stand for it, plays it."""
    observation: str | None = None
    turns: list[tuple[str, Turn]] = field(default_factory=list[tuple[str, Turn]])
    max_together: int = sys.maxsize
    """Fewer after it was under way in a process that ended, for which it may be to blame."""
    lost: bool = False
    """Its environment is gone, and there is nothing to end."""


class EnvironmentPool:
    """Environments in `config.num_workers` processes, each of which plays many episodes.

    A process answers one turn at a time, unless the environment's `step` is async: then turns of
    all its episodes are under way at once.

    A turn that hangs or ends its process costs its own episode. The other episodes of that process
    are played again, in the one that replaces it, up to where they were.

    Returns from construction while the processes are still starting; `ready` waits for them.
    """

    def __init__(self, config: EnvironmentConfig, reward: RewardConfig) -> None:
        """Start the processes and check the configuration; plugins and memory are the reward's.

        Raises:
            EnvironmentSetupError: if a plugin, the environment or a parameter is wrong.
        """
        spec = EnvironmentSpec(name=config.name, params=config.params, plugins=reward.plugins)
        load_environment(spec)
        self._timeout_s = config.timeout_s
        setup = Setup(
            spec,
            memory_bytes=int(reward.memory_gib * 2**30),
            concurrent=ENVIRONMENTS.info(config.name).concurrent,
            longest_timeout_s=config.timeout_s,
            start_timeout_s=reward.start_timeout_s,
        )
        # One for each process: it remembers its episodes.
        self._queues = [
            TaskQueue(
                "workers.environments.process",
                setup,
                (name,),
                max_under_way=sys.maxsize,
                stateful=True,
            )
            for name in process_names(
                "environment process",
                config.num_workers,
                what=[config.name],
                plugins=reward.plugins,
            )
        ]
        self._dispatcher = Dispatcher(
            self._queues,
            closed="the environments were closed while an episode was under way",
        )
        self._episodes = itertools.count()
        self._requests = itertools.count()

    async def ready(self) -> None:
        """Wait until every process can play.

        Raises:
            WorkerError: if one cannot start; the message says why.
        """
        await self._dispatcher.ready()

    async def begin(self, task: Task) -> PlayedEpisode:
        """A new episode; `observation` is the first one, if there is any.

        Raises:
            EpisodeError: if the environment failed or took too long.
            WorkerError: if no process can be started, or the pool was closed.
        """
        number = next(self._episodes)
        episode = PlayedEpisode(number, task, process=number % len(self._queues))
        try:
            episode.observation = await self._begin(episode)
        except EpisodeError:
            # Nobody ends an episode that did not begin; its environment may hold connections.
            try:
                await self.end(episode)
            except EpisodeError as error:
                logger.warning("an environment whose reset failed did not close: %s", error)
            raise
        episode.max_together = sys.maxsize
        return episode

    async def step(self, episode: PlayedEpisode, action: str) -> Turn:
        """What the environment answers to `action`.

        Raises:
            EpisodeError, WorkerError: as `begin`.
        """
        lost = False
        while True:
            try:
                if lost:
                    await self._play_again(episode)
                turn = await self._step(episode, action)
            except _ProcessReplacedError:
                lost = True
                continue
            episode.max_together = sys.maxsize
            episode.turns.append((action, turn))
            return turn

    async def end(self, episode: PlayedEpisode) -> None:
        """Forget the episode.

        Raises:
            EpisodeError, WorkerError: as `begin`.
        """
        if episode.lost:
            return
        with suppress(_ProcessReplacedError):  # its environment ended with it
            await self._ask(episode, EndEpisode(episode.number))

    def close(self) -> None:
        """End all processes at once; turns under way raise WorkerError."""
        self._dispatcher.close()

    async def _play_again(self, episode: PlayedEpisode) -> None:
        """Bring an episode to where it was when its process ended because of another one."""
        observation = await self._begin(episode)
        answers = [await self._step(episode, action) for action, _ in episode.turns]
        if observation != episode.observation or answers != [turn for _, turn in episode.turns]:
            raise EpisodeError(
                "its process ended because of another episode, and played again it answered "
                "otherwise; draw what is random from Task.seed"
            )

    async def _begin(self, episode: PlayedEpisode) -> str | None:
        request = BeginEpisode(episode.number, episode.task)
        return cast(str | None, await self._ask(episode, request))

    async def _step(self, episode: PlayedEpisode, action: str) -> Turn:
        return cast(Turn, await self._ask(episode, TakeStep(episode.number, action)))

    async def _ask(self, episode: PlayedEpisode, request: EpisodeRequest) -> object:
        try:
            content = pickle.dumps(request)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise EpisodeError(f"the row cannot be sent to a process: {error}") from None
        task = ChildTask(
            number=next(self._requests),
            content=content,
            timeout_s=self._timeout_s,
            max_together=episode.max_together,
        )
        result = await self._dispatcher.submit(self._queues[episode.process], task)
        episode.max_together = task.max_together
        episode.lost = isinstance(result, Died | NotStarted)
        match result:
            case UnknownEpisode():
                raise _ProcessReplacedError
            case TimedOut(timeout_s):
                raise EpisodeTimeoutError(f"no answer after {timeout_s:g} s")
            case Died(exit_code):
                raise EpisodeError(f"its process died with exit code {exit_code}")
            case Cancelled():
                raise EpisodeError("the environment was cancelled")
            case NotStarted(problem):
                raise EpisodeError(problem)
            case EpisodeError():
                raise result
            case _:
                return result
