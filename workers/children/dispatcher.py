"""The thread between those who want something done and the child processes that do it."""

import asyncio
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
from workers.children.messages import Died, Failure, Reply, TimedOut
from workers.children.process import ChildProcess
from workers.children.queue import ChildTask, TaskQueue, Worker

_TEAR_DOWN_S = 5.0


class Dispatcher:
    """Owns the processes of all queues: sends, receives, ends those that hang, replaces the dead.

    A task whose process dies or hangs is answered with a `Failure`; the others that the process
    had been given are done by another.
    """

    def __init__(self, queues: Sequence[TaskQueue], *, process_name: str, closed: str) -> None:
        """Start every process; returns while they are starting.

        process_name: e.g. "a scorer process", for messages. closed: the message of the error that
            what is under way when the dispatcher is closed gets.
        """
        self._process_name = process_name
        self._closed_message = closed
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
            for _ in range(queue.num_processes):
                self._start(queue)
        self._first_workers = tuple(self._everyone())
        self._thread = threading.Thread(target=self._run, name="children", daemon=True)
        self._thread.start()

    async def ready(self) -> None:
        """Wait until every process has started.

        Raises:
            WorkerError: if one cannot; the message says why.
        """
        await asyncio.gather(*(asyncio.wrap_future(w.started) for w in self._first_workers))

    def submit(self, queue: TaskQueue, task: ChildTask) -> "asyncio.Future[object]":
        """Hand over a task; the future gets its result or `Failure`.

        Raises:
            WorkerError: if the dispatcher was closed.
        """
        task.loop = asyncio.get_running_loop()
        task.future = task.loop.create_future()
        with self._lock:
            if self._closed:
                raise WorkerError(self._closed_message)
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
        finally:
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
                self._give_up(worker, TimedOut(overdue[1].timeout_s))
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
                self._answer(worker, worker.finish(message.number, now), message.result)
            elif message is None:
                worker.ready = True
                worker.started.set_result(None)
            else:
                self._cannot_start(worker, str(message))
        if alive or not worker.usable:
            return
        if not worker.ready:
            self._cannot_start(worker, "it died while starting; see its output above")
        elif worker.under_way:
            worker.process.kill()  # and what it started
            self._give_up(worker, Died(worker.process.exit_code))
        else:
            worker.gone = True
            self._selector.unregister(worker.process.socket)

    def _cannot_start(self, worker: Worker, problem: str) -> None:
        worker.problem = f"{self._process_name} could not start: {problem}"
        self._selector.unregister(worker.process.socket)
        worker.started.set_exception(WorkerError(worker.problem))
        queue = worker.queue
        if not any(other.usable for other in self._workers[queue]):
            for task in queue.waiting:
                self._reply(task, WorkerError(worker.problem))
            queue.waiting.clear()

    def _answer(self, worker: Worker, task: ChildTask, result: object) -> None:
        task.on_result(result)
        if task.attempts_left and task.has_failed(result):
            task.attempts_left -= 1
            worker.queue.put_back([task])
        else:
            self._reply(task, result)

    def _reply(self, task: ChildTask, result: object) -> None:
        if task.loop is not None:
            self._answers[task.loop].append((task, result))

    def _give_up(self, worker: Worker, failure: Failure) -> None:
        """Replace a process that died or hangs; its tasks are done by another or fail."""
        failed, others = worker.separate_failed()
        # What the queue itself asked for, it asks the next process for.
        worker.queue.put_back([task for task in others if task.loop is not None])
        for task in failed:
            self._answer(worker, task, failure)
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        worker.process.kill()
        with suppress(KeyError):
            self._selector.unregister(worker.process.socket)
        worker.process.release()
        worker.gone = True  # the same call of select may have told of it twice
        self._workers[worker.queue].remove(worker)
        self._start(worker.queue)
        worker.queue.put_back(worker.queue.on_replaced())

    def _start(self, queue: TaskQueue) -> Worker:
        process = ChildProcess(queue.program, queue.setup, directory=self._directory)
        worker = Worker(queue, process)
        self._workers[queue].append(worker)
        self._selector.register(process.socket, selectors.EVENT_READ, worker)
        self._flush(worker)
        return worker

    def _deliver(self) -> None:
        for loop, answers in self._answers.items():
            # A loop that was closed has nobody left who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_set_results, answers)
        self._answers.clear()

    def _end(self) -> None:
        """Fail what is left, then end the processes."""
        everyone = self._everyone()
        tasks = [task for _, task in self._inbox]
        tasks += [task for queue in self._workers for task in queue.waiting]
        tasks += [task for worker in everyone for task in worker.under_way.values()]
        idle = [w for w in everyone if w.ready and w.usable and not w.under_way]
        for worker in everyone:
            if not worker.started.done():
                worker.started.set_exception(WorkerError(self._closed_message))
            if worker in idle:
                worker.process.send(None)
            else:
                worker.process.kill()
        for task in tasks:
            self._reply(task, WorkerError(self._closed_message))
        self._deliver()
        deadline = time.monotonic() + _TEAR_DOWN_S
        for worker in idle:
            worker.process.wait_for_end(max(0.01, deadline - time.monotonic()))
            worker.process.kill()
        for worker in everyone:
            worker.process.release()
        self._selector.close()
        with self._lock:
            self._closed = True
            os.close(self._wake)


def _set_results(answers: list[tuple[ChildTask, Any]]) -> None:
    for task, result in answers:
        future = task.future
        if future is None or future.done():  # whoever waited was cancelled
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
