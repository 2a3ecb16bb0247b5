"""The thread between those who want something judged and the scorer processes."""

import asyncio
import logging
import os
import selectors
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from rewards.combination import failed
from rlstack.errors import WorkerError
from rlstack.types import Score
from workers.scoring.connection import ScorerProcess
from workers.scoring.lane import Call, Driven, Lane
from workers.scoring.messages import Reply, timed_out

_TEAR_DOWN_S = 5.0
_CLOSED = "the scorer pool was closed while it was judging"
_logger = logging.getLogger(__name__)


class Dispatcher:
    """Owns the processes of all lanes: sends, receives, ends those that hang, replaces the dead.

    A call that failed on its own account is answered with a text. One whose process dies or hangs
    is, too; the others that the process had been given are judged by another.
    """

    def __init__(self, lanes: Sequence[Lane], directory: Path) -> None:
        """Start every process; returns while they are starting."""
        self._directory = directory
        self._inbox: deque[tuple[Lane, Call]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._answers: dict[asyncio.AbstractEventLoop, list[tuple[Call, object]]]
        self._answers = defaultdict(list)
        self._lanes: dict[Lane, list[Driven]] = {lane: [] for lane in lanes}
        self._started: dict[Driven, Future[None]] = {}
        for lane in lanes:
            for _ in range(lane.num_processes):
                driven = self._start(lane)
                self._started[driven] = Future()
        self.started = tuple(self._started.values())
        """One for each process: done when it is ready, or failed."""
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, lane: Lane, call: Call) -> None:
        """Hand over a call; its future gets the answer.

        Raises:
            WorkerError: if the dispatcher was closed.
        """
        with self._lock:
            if self._closed:
                raise WorkerError(_CLOSED)
            self._inbox.append((lane, call))
            # Under the lock: the descriptor is closed under it.
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End everything: what is under way fails, idle processes tear their rewards down."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.eventfd_write(self._wake, 1)
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        finally:
            self._end()

    def _turn(self) -> None:
        """Wait for something to happen, and do what follows."""
        for key, events in self._selector.select(self._seconds_left()):
            if key.fd == self._wake:
                os.eventfd_read(self._wake)
                continue
            driven = cast(Driven, key.data)
            if events & selectors.EVENT_READ:
                self._receive(driven)
            if events & selectors.EVENT_WRITE and driven.usable:
                self._sent(driven)
        now = time.monotonic()
        for processes in self._lanes.values():
            for driven in list(processes):
                deadline = driven.deadline
                if deadline is not None and now >= deadline:
                    first = next(iter(driven.under_way.values()))
                    limit_s = driven.lane.setup.timeouts_s[first.index]
                    self._give_up(driven, lambda _, limit_s=limit_s: timed_out(limit_s))
        while self._inbox:
            lane, call = self._inbox.popleft()
            lane.waiting.append(call)
        for lane in self._lanes:
            self._fill(lane)
        self._deliver()

    def _seconds_left(self) -> float | None:
        deadlines = [
            driven.deadline
            for processes in self._lanes.values()
            for driven in processes
            if driven.deadline is not None
        ]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _fill(self, lane: Lane) -> None:
        """Give waiting calls to the processes that have room; start those that are missing."""
        if not lane.waiting:
            return
        for driven in list(self._lanes[lane]):
            if not driven.usable:
                self._replace(driven)
        processes = self._lanes[lane]
        share = max(1, len(lane.waiting) // len(processes))
        for driven in processes:
            idle = not driven.under_way
            now = time.monotonic()
            calls = list(driven.take(share))
            for call in calls:
                call.sent_at = now
            if calls:
                driven.since = now if idle else driven.since
                driven.process.send(*(call.message for call in calls))
                self._sent(driven)

    def _sent(self, driven: Driven) -> None:
        """Be told when the rest can be sent, if there is one."""
        driven.process.flush()
        events = selectors.EVENT_READ
        if driven.process.has_unsent:
            events |= selectors.EVENT_WRITE
        if self._selector.get_key(driven.process.socket).events != events:
            self._selector.modify(driven.process.socket, events, driven)

    def _receive(self, driven: Driven) -> None:
        if not driven.usable:
            return
        messages, alive = driven.process.receive()
        now = time.monotonic()
        for message in messages:
            if isinstance(message, Reply):
                self._answer(driven, driven.finish(message.call, now), message.result)
            elif message is None:
                driven.ready = True
                self._settle(driven, None)
            else:
                self._cannot_start(driven, str(message))
        if alive or not driven.usable:
            return
        if not driven.ready:
            self._cannot_start(driven, "it died while starting; see its output above")
        elif driven.under_way:
            self._give_up(
                driven,
                lambda dead: (
                    f"the scorer process died with exit code {dead.exit_code} while judging"
                ),
            )
        else:
            driven.gone = True
            self._selector.unregister(driven.process.socket)

    def _cannot_start(self, driven: Driven, problem: str) -> None:
        driven.problem = f"a scorer process could not start: {problem}"
        self._selector.unregister(driven.process.socket)
        self._settle(driven, driven.problem)
        lane = driven.lane
        if not any(other.usable for other in self._lanes[lane]):
            for call in lane.waiting:
                self._reply(call, WorkerError(driven.problem))
            lane.waiting.clear()

    def _settle(self, driven: Driven, problem: str | None) -> None:
        started = self._started.pop(driven, None)
        if started is None:
            return
        if problem is None:
            started.set_result(None)
        else:
            started.set_exception(WorkerError(problem))

    def _answer(self, driven: Driven, call: Call, result: object) -> None:
        lane = driven.lane
        if call.kind == "snapshot" and isinstance(result, bytes):
            lane.snapshots[call.index] = result
        if call.kind == "restore" and isinstance(result, str) and call.loop is None:
            _logger.error("a reward could not go on from its state: %s", result)
        broken = isinstance(result, str) or (
            call.kind == "judge" and any(failed(score) for score in cast(list[Score], result))
        )
        if broken and call.attempts_left:
            call.attempts_left -= 1
            lane.put_back([call])
        else:
            self._reply(call, result)

    def _reply(self, call: Call, result: object) -> None:
        if call.loop is not None:
            self._answers[call.loop].append((call, result))

    def _give_up(self, driven: Driven, reason: Callable[[ScorerProcess], str]) -> None:
        """Replace a process that died or hangs; each call it had is judged by another or fails."""
        driven.process.kill()
        text = reason(driven.process)
        guilty, others = driven.split_blame()
        driven.lane.put_back([call for call in others if call.kind != "restore"])
        for call in guilty:
            if call.kind == "restore":  # not again: it would not end
                driven.lane.snapshots.pop(call.index, None)
            self._answer(driven, call, text)
        self._replace(driven)

    def _replace(self, driven: Driven) -> None:
        lane = driven.lane
        driven.process.kill()
        with suppress(KeyError):
            self._selector.unregister(driven.process.socket)
        driven.process.release()
        driven.gone = True  # the same call of select may have told of it twice
        self._lanes[lane].remove(driven)
        self._start(lane)
        if not lane.stateful:
            return
        if driven.has_judged:
            labels = [lane.setup.spec.components[index].key for index in lane.setup.components]
            _logger.warning(
                "the process of reward %s died: what it remembered since %s is lost",
                ", ".join(labels),
                "the last checkpoint" if lane.snapshots else "the start",
            )
        lane.put_back(
            [
                Call(-index, "restore", index, state, 0, loop=None, future=None)
                for index, state in lane.snapshots.items()
            ]
        )

    def _start(self, lane: Lane) -> Driven:
        driven = Driven(lane, ScorerProcess(lane.setup, directory=self._directory))
        self._lanes[lane].append(driven)
        self._selector.register(driven.process.socket, selectors.EVENT_READ, driven)
        self._sent(driven)
        return driven

    def _deliver(self) -> None:
        for loop, answers in self._answers.items():
            # A loop that was closed has nobody left who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_set_results, answers)
        self._answers.clear()

    def _end(self) -> None:
        """Fail what is left, then end the processes."""
        everything = [driven for processes in self._lanes.values() for driven in processes]
        calls = [call for _, call in self._inbox]
        calls += [call for lane in self._lanes for call in lane.waiting]
        calls += [call for driven in everything for call in driven.under_way.values()]
        idle = [d for d in everything if d.ready and d.usable and not d.under_way]
        for driven in everything:
            self._settle(driven, _CLOSED)
            if driven in idle:
                driven.process.send(None)
            else:
                driven.process.kill()
        for call in calls:
            self._reply(call, WorkerError(_CLOSED))
        self._deliver()
        deadline = time.monotonic() + _TEAR_DOWN_S
        for driven in idle:
            driven.process.wait_for_end(max(0.01, deadline - time.monotonic()))
            driven.process.kill()
        for driven in everything:
            driven.process.release()
        self._selector.close()
        with self._lock:
            self._closed = True
            os.close(self._wake)


def _set_results(answers: list[tuple[Call, Any]]) -> None:
    for call, result in answers:
        future = call.future
        if future is None or future.done():  # whoever waited was cancelled
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
