"""The processes of the components of a reward: which one judges what, and what they remember."""

import asyncio
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from rewards.combination import RETRY_ATTEMPTS, failed
from rewards.composed_reward import ComposedReward
from rewards.load import RewardSpec
from rlstack.config.reward import RewardConfig
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score
from workers.children.dispatcher import Dispatcher
from workers.children.messages import Cancelled, Died, NotStarted, Setup, TimedOut
from workers.children.queue import ChildTask, TaskQueue, process_names
from workers.scoring.memory import RewardMemory
from workers.scoring.messages import RestoreRequest, ScoreRequest, ScorerSetup, StateRequest

_logger = logging.getLogger(__name__)


class ScorerProcesses:
    """`config.num_workers` processes for the components that compute, one for those that wait.

    Each component that remembers has a process of its own.
    """

    def __init__(
        self,
        spec: RewardSpec,
        reward: ComposedReward,
        config: RewardConfig,
        *,
        stateful: Sequence[int],
        others: Sequence[int],
    ) -> None:
        """Start them; `stateful` and `others` are components of `spec`, which `reward` composes."""
        self._reward = reward
        self._components = spec.components
        self._timeouts_s = tuple(c.timeout_s or config.timeout_s for c in config.components)
        self._numbers = count()

        def queue(
            components: Sequence[int],
            num_processes: int = 1,
            *,
            max_under_way: int | None = None,
            memory: RewardMemory | None = None,
        ) -> TaskQueue:
            setup = Setup(
                ScorerSetup(spec, tuple(components)),
                memory_bytes=int(config.memory_gib * 2**30),
                concurrent=max_under_way is not None,
                longest_timeout_s=max(self._timeouts_s),
                start_timeout_s=config.start_timeout_s,
            )
            what = [spec.components[index].key for index in components]
            number = num_processes if components else 0
            return TaskQueue(
                "workers.scoring.process",
                setup,
                process_names("scorer process", number, what=what, plugins=spec.plugins),
                max_under_way=max_under_way or 1,
                stateful=memory is not None,
                on_replaced=tuple if memory is None else memory.on_replaced,
            )

        rows = spec.row_rewards or (None,)
        plain = [i for i in others if not all(reward.is_concurrent(i, row) for row in rows)]
        concurrent = [i for i in others if any(reward.is_concurrent(i, row) for row in rows)]
        self._plain = queue(plain, config.num_workers)
        self._concurrent = queue(concurrent, max_under_way=config.max_concurrent)
        self._memories = {
            index: RewardMemory(
                index, label=spec.components[index].key, timeout_s=self._timeouts_s[index]
            )
            for index in stateful
        }
        self._stateful = {
            index: queue([index], memory=memory) for index, memory in self._memories.items()
        }
        queues = (self._plain, self._concurrent, *self._stateful.values())
        self._dispatcher = Dispatcher(
            [queue for queue in queues if queue.names],
            closed="the scorer pool was closed while it was judging",
        )

    async def ready(self) -> None:
        """Wait until every process has built its rewards.

        Raises:
            WorkerError: if one cannot start; the message says why.
        """
        await self._dispatcher.ready()

    def judge(
        self, index: int, request: RewardRequest, payload: bytes, *, num_requests: int
    ) -> "asyncio.Future[object]":
        """Let component `index` judge a pickled sequence of requests, `request` being the first.

        What comes is a list of `Score`, or why there is none: see `reason`.

        Raises:
            WorkerError: if the processes were closed.
        """
        retried = self._components[index].on_error == "retry"
        memory = self._memories.get(index)
        return self._submit(
            self._queue(index, request),
            index,
            ScoreRequest(index, payload),
            size=num_requests,
            attempts_left=RETRY_ATTEMPTS - 1 if retried else 0,
            on_result=_ignored if memory is None else memory.on_scores,
        )

    async def state(self) -> dict[str, bytes]:
        """What the components that remember do remember, by label.

        One that fails to say is logged, and stands with what it last said, if anything.
        """
        for index, memory in self._memories.items():
            queue = self._stateful[index]
            result = await self._submit(
                queue, index, StateRequest(index), on_result=memory.on_state
            )
            if not isinstance(result, bytes):
                _logger.error(
                    "reward %r cannot give its state: %s; the checkpoint has an older one, or none",
                    memory.label,
                    reason(result),
                )
        found = {memory.label: memory.state for memory in self._memories.values()}
        return {label: state for label, state in found.items() if state is not None}

    async def restore(self, states: Mapping[str, bytes]) -> None:
        """Let the components go on from what `state` gave; one without a state begins anew.

        Raises:
            RewardError: if one cannot.
        """
        for index, memory in self._memories.items():
            state = states.get(memory.label)
            if state is None:
                continue
            content = RestoreRequest(index, state)
            result = await self._submit(
                self._stateful[index], index, content, on_result=memory.on_restored
            )
            if result is not None:
                raise RewardError(
                    f"reward {memory.label!r} cannot go on from its state: {reason(result)}"
                )
            memory.state = state

    def close(self) -> None:
        """End all processes; see `Dispatcher.close`."""
        self._dispatcher.close()

    def _queue(self, index: int, request: RewardRequest) -> TaskQueue:
        if index in self._stateful:
            return self._stateful[index]
        wanted, other = self._plain, self._concurrent
        if self._reward.is_concurrent(index, request.reward):
            wanted, other = other, wanted
        # A row may name a reward that nobody announced.
        return wanted if wanted.names else other

    def _submit(
        self,
        queue: TaskQueue,
        index: int,
        content: ScoreRequest | StateRequest | RestoreRequest,
        *,
        on_result: Callable[[object], None],
        size: int = 0,
        attempts_left: int = 0,
    ) -> "asyncio.Future[object]":
        task = ChildTask(
            number=next(self._numbers),
            content=pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL),
            timeout_s=self._timeouts_s[index],
            size=size,
            attempts_left=attempts_left,
            has_failed=_has_failed,
            on_result=on_result,
        )
        return self._dispatcher.submit(queue, task)


def reason(result: object) -> str:
    """Why there is no result, in words."""
    match result:
        case TimedOut(timeout_s):
            return f"timed out after {timeout_s:g} s"
        case Died(exit_code):
            return f"the scorer process died with exit code {exit_code} while judging"
        case Cancelled():
            return "the reward was cancelled"
        case NotStarted(problem):
            return problem
        case _:
            return str(result)


def _has_failed(result: object) -> bool:
    if not isinstance(result, list):
        return True
    return any(failed(score) for score in result if isinstance(score, Score))


def _ignored(_: object) -> None: ...
