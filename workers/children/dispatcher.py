"""The thread between those who want something done and the child processes that do it."""

import asyncio
import logging
import os
import selectors
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from rlstack.errors import WorkerError
from workers.children.messages import Died, Failure, NotStarted, Reply
from workers.children.process import ChildProcess
from workers.children.queue import ChildTask, TaskQueue, Worker

_logger = logging.getLogger(__name__)
_TEAR_DOWN_S = 5.0


class Dispatcher:
    """Owns the processes of all queues: sends, receives, ends those that hang, replaces the dead.

    A task whose process dies or hangs is answered with a `Failure`; the others that the process
    had been given are done by another. So are those that wait, if all processes of a queue hang
    while they start.
    """

    def __init__(self, queues: Sequence[TaskQueue], *, closed: str) -> None:
        """Start every process; returns while they are starting.

        closed: the message of the error that what is under way when the dispatcher is closed gets.
        """
        self._why_closed = closed
        self._cause: Exception | None = None
        self._directory = Path.cwd()
        self._inbox: deque[tuple[TaskQueue, ChildTask]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._answers: dict[asyncio.AbstractEventLoop, list[tuple[ChildTask, object]]]
        self._answers = defaultdict(list)
        self._workers: dict[TaskQueue, list[Worker]] = {queue: [] for queue in queues}
        for queue in queues:
            for name in queue.names:
                self._start(queue, name)
        self._first_workers = tuple(self._everyone())
        self._thread = threading.Thread(target=self._run, name="children", daemon=True)
        self._thread.start()

    async def ready(self) -> None:
        """Wait until every process has started.

        Raises:
            WorkerError: if one cannot, or hangs; the message says which and why.
        """
        await asyncio.gather(*(asyncio.wrap_future(w.started) for w in self._first_workers))

    def submit(self, queue: TaskQueue, task: ChildTask) -> "asyncio.Future[object]":
        """Hand over a task; the future gets its result or `Failure`.

        Raises:
            WorkerError: if the dispatcher was closed, or failed.
        """
        task.loop = asyncio.get_running_loop()
        task.future = task.loop.create_future()
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._inbox.append((queue, task))
            # Under the lock: the descriptor is closed under it.
            os.eventfd_write(self._wake, 1)
        return task.future

    def close(self) -> None:
        """End everything: what is under way fails, idle processes tear down what they set up."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.eventfd_write(self._wake, 1)
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        except Exception as error:
            what = "the thread that serves the child processes failed"
            _logger.exception(what)
            self._why_closed, self._cause = f"{what}: {type(error).__name__}: {error}", error
        self._end()

    def _turn(self) -> None:
        """Wait for something to happen, and do what follows."""
        for key, events in self._selector.select(self._seconds_left()):
            if key.fd == self._wake:
                os.eventfd_read(self._wake)
                continue
            worker = cast(Worker, key.data)
            if events & selectors.EVENT_READ:
                self._receive(worker)
            if events & selectors.EVENT_WRITE and worker.usable:
                self._flush(worker)
        now = time.monotonic()
        for worker in self._everyone():
            overdue = worker.overdue
            if overdue is not None and now >= overdue[0]:
                self._give_up(worker, overdue[1])
        while self._inbox:
            queue, task = self._inbox.popleft()
            queue.waiting.append(task)
        for queue in self._workers:
            self._fill(queue)
        self._deliver()

    def _everyone(self) -> list[Worker]:
        return [worker for workers in self._workers.values() for worker in workers]

    def _seconds_left(self) -> float | None:
        overdue = [worker.overdue for worker in self._everyone()]
        deadlines = [found[0] for found in overdue if found is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _fill(self, queue: TaskQueue) -> None:
        """Give waiting tasks to the processes that have room; start those that are missing."""
        if not queue.waiting:
            return
        for worker in list(self._workers[queue]):
            if not worker.usable:
                self._replace(worker)
        workers = self._workers[queue]
        share = max(1, len(queue.waiting) // len(workers))
        for worker in workers:
            idle = not worker.under_way
            now = time.monotonic()
            tasks = list(worker.take(share))
            for task in tasks:
                task.sent_at = now
            if tasks:
                worker.since = now if idle else worker.since
                worker.process.send(*(task.request for task in tasks))
                self._flush(worker)

    def _flush(self, worker: Worker) -> None:
        """Send what can be sent, and be told when the rest can."""
        worker.process.flush()
        events = selectors.EVENT_READ
        if worker.process.has_unsent:
            events |= selectors.EVENT_WRITE
        if self._selector.get_key(worker.process.socket).events != events:
            self._selector.modify(worker.process.socket, events, worker)

    def _receive(self, worker: Worker) -> None:
        if not worker.usable:
            return
        messages, alive = worker.process.receive()
        now = time.monotonic()
        for message in messages:
            if isinstance(message, Reply):
                task = worker.finish(message.number, now)
                self._answer(worker.queue, task, message.result)
            elif message is None:
                worker.ready = True
                worker.queue.failed_starts = 0
                worker.started.set_result(None)
            else:
                self._cannot_start(worker, f"{worker.name} could not start: {message}")
        if alive or not worker.usable:
            return
        if not worker.ready:
            problem = f"{worker.name} could not start: it died; see its output above"
            self._cannot_start(worker, problem)
        elif worker.under_way:
            worker.process.kill()  # and what it started
            self._give_up(worker, Died(worker.process.exit_code))
        else:
            worker.gone = True
            self._selector.unregister(worker.process.socket)

    def _cannot_start(self, worker: Worker, problem: str, failure: Failure | None = None) -> None:
        """Answer those who wait, unless another process may still do what they wait for.

        failure: what they get; None: they raise WorkerError.
        """
        worker.problem = problem
        self._selector.unregister(worker.process.socket)
        worker.started.set_exception(WorkerError(problem))
        queue = worker.queue
        queue.failed_starts += 1
        others_ready = any(other.ready and other.usable for other in self._workers[queue])
        if others_ready or queue.failed_starts < len(queue.names):
            return
        queue.failed_starts = 0
        waiting = list(queue.waiting)
        queue.waiting.clear()
        for task in reversed(waiting):  # one that is tried again goes to the front
            if failure is None:
                self._reply(task, WorkerError(problem))
            elif task.loop is not None:  # what the queue itself asked for, it will ask again
                self._answer(queue, task, failure)

    def _answer(self, queue: TaskQueue, task: ChildTask, result: object) -> None:
        task.on_result(result)
        if task.attempts_left and task.has_failed(result):
            task.attempts_left -= 1
            queue.put_back([task])
        else:
            self._reply(task, result)

    def _reply(self, task: ChildTask, result: object) -> None:
        if task.loop is not None:
            self._answers[task.loop].append((task, result))

    def _give_up(self, worker: Worker, failure: Failure) -> None:
        """Replace a process that died or hangs; its tasks are done by another or fail."""
        if isinstance(failure, NotStarted):
            _logger.error(failure.problem)
            worker.process.kill()
            self._cannot_start(worker, failure.problem, failure)
            return
        failed, others = worker.separate_failed()
        # What the queue itself asked for, it asks the next process for.
        worker.queue.put_back([task for task in others if task.loop is not None])
        for task in failed:
            self._answer(worker.queue, task, failure)
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        worker.process.kill()
        with suppress(KeyError):
            self._selector.unregister(worker.process.socket)
        worker.process.release()
        worker.gone = True  # the same call of select may have told of it twice
        self._workers[worker.queue].remove(worker)
        self._start(worker.queue, worker.name)
        worker.queue.put_back(worker.queue.on_replaced())

    def _start(self, queue: TaskQueue, name: str) -> None:
        start_by = time.monotonic() + queue.setup.start_timeout_s
        process = ChildProcess(queue.program, queue.setup, directory=self._directory)
        worker = Worker(queue, process, name, start_by)
        self._workers[queue].append(worker)
        self._selector.register(process.socket, selectors.EVENT_READ, worker)
        self._flush(worker)

    def _deliver(self) -> None:
        for loop, answers in self._answers.items():
            # A loop that was closed has nobody left who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_set_results, answers)
        self._answers.clear()

    def _end(self) -> None:
        """Fail what is left, then end the processes."""
        everyone = self._everyone()
        with self._lock:  # from here on `submit` raises: nothing is left in the inbox
            self._closed = True
            tasks = [task for _, task in self._inbox]
        tasks += [task for queue in self._workers for task in queue.waiting]
        tasks += [task for worker in everyone for task in worker.under_way.values()]
        idle = [w for w in everyone if w.ready and w.usable and not w.under_way]
        for worker in everyone:
            if not worker.started.done():
                worker.started.set_exception(self._closed_error())
            if worker in idle:
                worker.process.send(None)
            else:
                worker.process.kill()
        for task in tasks:
            self._reply(task, self._closed_error())
        self._deliver()
        deadline = time.monotonic() + _TEAR_DOWN_S
        for worker in idle:
            worker.process.wait_for_end(max(0.01, deadline - time.monotonic()))
            worker.process.kill()
        for worker in everyone:
            worker.process.release()
        self._selector.close()
        with self._lock:
            os.close(self._wake)

    def _closed_error(self) -> WorkerError:
        error = WorkerError(self._why_closed)
        error.__cause__ = self._cause
        return error


def _set_results(answers: list[tuple[ChildTask, Any]]) -> None:
    for task, result in answers:
        future = task.future
        if future is None or future.done():  # whoever waited was cancelled
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
