"""Processes that run the configured rewards: isolated, with time-outs, replaced when they die."""

import asyncio
import pickle
import queue
import threading
from collections.abc import Awaitable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from rewards.composition import Component, WeightSchedule, combine, with_retries
from rewards.load import RewardSpec, load_reward
from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.errors import WorkerError
from rlstack.types import RewardRequest, Score
from workers.scorer_connection import ScorerProcess

_TEAR_DOWN_S = 5.0


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
            components=tuple(_component(c) for c in config.components),
            plugins=config.plugins,
            row_rewards=tuple(sorted(set(row_rewards))),
        )
        reward = load_reward(self._spec)
        indices = range(len(self._spec.components))
        self._batched = [index for index in indices if reward.is_batched(index)]
        self._single = [index for index in indices if not reward.is_batched(index)]
        self._timeouts_s = [c.timeout_s or config.timeout_s for c in config.components]
        self._memory_bytes = int(config.memory_gib * 2**30)
        self._directory = Path.cwd()
        self._lock = threading.Lock()
        self._closed = False
        self._processes: set[ScorerProcess] = set()
        self._idle: queue.SimpleQueue[ScorerProcess] = queue.SimpleQueue()
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

    async def score(self, request: RewardRequest, *, step: int = 0) -> Score:
        """Judge one rollout as a group of its own.

        Raises:
            RewardError, WorkerError: as `score_group`.
        """
        return (await self.score_arrived([request], step=step))[0]

    async def score_arrived(self, requests: Sequence[RewardRequest], *, step: int) -> list[Score]:
        """`score_group` of rollouts that nobody has to wait for.

        Raises:
            RewardError, WorkerError: as `score_group`.
        """
        return await self.score_group([_now(request) for request in requests], step=step)

    async def score_group(
        self, requests: Sequence[Awaitable[RewardRequest]], *, step: int
    ) -> list[Score]:
        """Judge the rollouts of one prompt, each as soon as it arrives.

        A batched component judges when all have arrived. A failure, a time-out or a dead process is
        in `Score.errors` and does what the component's `on_error` says.

        Raises:
            RewardError: if a component failed whose `on_error` is `raise`.
            WorkerError: if no process can be started, or the pool was closed.
        """
        arrivals = [asyncio.ensure_future(request) for request in requests]
        single, batched = await asyncio.gather(
            asyncio.gather(*(self._judge_alone(arrival) for arrival in arrivals)),
            self._judge_together(arrivals),
        )
        return [
            combine(self._spec.components, arrival.result(), alone | together, step=step)
            for arrival, alone, together in zip(arrivals, single, batched, strict=True)
        ]

    async def _judge_alone(self, arrival: "asyncio.Future[RewardRequest]") -> dict[str, Score]:
        return (await self._run(self._single, [await arrival]))[0]

    async def _judge_together(
        self, arrivals: "Sequence[asyncio.Future[RewardRequest]]"
    ) -> list[dict[str, Score]]:
        return await self._run(self._batched, [await arrival for arrival in arrivals])

    async def _run(
        self, indices: Sequence[int], requests: Sequence[RewardRequest]
    ) -> list[dict[str, Score]]:
        """For each request the verdicts, by label, of the components that apply to its prompt."""
        components = self._spec.components
        applicable = [index for index in indices if components[index].applies(requests[0])]
        if not applicable:
            return [{} for _ in requests]
        loop = asyncio.get_running_loop()
        columns = await loop.run_in_executor(self._threads, self._judge, applicable, requests)
        labels = [components[index].key for index in applicable]
        return [dict(zip(labels, row, strict=True)) for row in zip(*columns, strict=True)]

    def close(self) -> None:
        """End all processes at once; scores under way raise WorkerError, queued ones are cancelled.

        An idle process tears its rewards down first, within a few seconds. Closing again does
        nothing.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            idle = self._idle_processes()
            for process in self._processes - idle:
                process.kill()
        # A thread may still be reading from its process: connections are closed after it.
        self._threads.shutdown(cancel_futures=True)
        for process in idle:
            process.ask_to_end()
        for process in idle:
            process.wait_for_end(_TEAR_DOWN_S)
            process.kill()
        for process in self._processes:
            process.release()

    def _idle_processes(self) -> set[ScorerProcess]:
        idle: set[ScorerProcess] = set()
        with suppress(queue.Empty):
            while True:
                idle.add(self._idle.get_nowait())
        for process in idle:  # a thread that waits for one must get one to see that all is over
            self._idle.put(process)
        return idle

    def _judge(
        self, indices: Sequence[int], requests: Sequence[RewardRequest]
    ) -> list[Sequence[Score]]:
        """The verdicts of each component on each request, one component after the other."""
        try:
            message = pickle.dumps(requests)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            failure = _failed(f"the request cannot be sent to a scorer process: {error}")
            return [[failure] * len(requests)] * len(indices)
        process = self._idle.get()
        found: list[Sequence[Score]] = []

        def attempt(index: int) -> Sequence[Score]:
            nonlocal process
            self._check_open()
            if process.has_died():
                process = self._replace(process)
            process.wait_ready()
            timeout_s = self._timeouts_s[index]
            try:
                return process.judge(index, message, timeout_s=timeout_s)
            except TimeoutError:
                process = self._replace(process)
                error = f"timed out after {timeout_s:g} s"
            except (EOFError, ConnectionError):
                dead = process
                process = self._replace(dead)
                error = f"the scorer process died with exit code {dead.exit_code} while judging"
            return [_failed(self._blame(index) + error)] * len(requests)

        try:
            for index in indices:
                found.append(with_retries(self._spec.components[index], partial(attempt, index)))
        finally:
            self._idle.put(process)
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise WorkerError("the scorer pool was closed while it was judging")

    def _blame(self, index: int) -> str:
        """Which component an error is of, where there are several."""
        components = self._spec.components
        return f"{components[index].key}: " if len(components) > 1 else ""

    def _replace(self, process: ScorerProcess) -> ScorerProcess:
        with self._lock:
            self._check_open()
            process.kill()
            process.release()
            self._processes.remove(process)
            return self._start_process()

    def _start_process(self) -> ScorerProcess:
        process = ScorerProcess(
            self._spec,
            self._timeouts_s,
            memory_bytes=self._memory_bytes,
            directory=self._directory,
        )
        self._processes.add(process)
        return process


def _component(config: RewardComponent) -> Component:
    weight = config.weight
    return Component(
        config.name,
        weight if isinstance(weight, float) else WeightSchedule(**weight.model_dump()),
        config.params,
        label=config.label,
        gate=config.gate,
        gate_min=config.gate_min,
        data_sources=config.data_sources,
        on_error=config.on_error,
        timeout_s=config.timeout_s,
    )


def _failed(error: str) -> Score:
    return Score(value=None, errors=(error,))


async def _now(request: RewardRequest) -> RewardRequest:
    return request
