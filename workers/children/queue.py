"""What waits for child processes and what they have under way; no threads, no waiting.

Most processes do one thing after the other; to keep one from idling between two fast tasks it is
given several ahead. Concurrent ones do all that they are given at once.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from workers.children.messages import Failure, NotStarted, Request, Setup, TimedOut
from workers.children.process import ChildProcess

_AHEAD_S = 0.02
"""A process is given about this much work ahead: if it hangs, that much waits for its time-out."""
_MAX_AHEAD = 64
_SMOOTHING = 0.1
# A concurrent process ends what takes too long by itself, unless its event loop is stuck.
_STUCK_S = 1.0
_SUSPECTED_SHARE = 4
"""When one of several ends their process, a quarter of them at a time is done again."""


@dataclass(eq=False, kw_only=True)
class ChildTask:
    """One thing to do, and whoever waits for it."""

    number: int
    """Unique among the tasks of a queue; negative for those of the queue itself."""
    content: bytes
    """A pickle, for the program."""
    timeout_s: float
    size: int = 1
    """What it counts towards `TaskQueue.max_under_way`."""
    attempts_left: int = 0
    has_failed: Callable[[object], bool] = lambda _: False
    """Whether a result (or `Failure`) is worth another attempt."""
    on_result: Callable[[object], None] = lambda _: None
    """Told of every result (or `Failure`), in the dispatcher's thread."""
    loop: asyncio.AbstractEventLoop | None = None
    """That of the future; None: nobody waits."""
    future: "asyncio.Future[object] | None" = None
    max_together: int = sys.maxsize
    """How many may be under way with it, itself included. Fewer each time its process died or got
    stuck: the one to blame is alone in the end, and the others have long been done."""
    sent_at: float = 0.0

    @property
    def request(self) -> Request:
        """What the process is told."""
        return Request(self.number, self.timeout_s, self.content)


@dataclass(eq=False)
class TaskQueue:
    """Tasks that wait for a process, any of those that are started alike."""

    program: str
    """The module they run."""
    setup: Setup
    names: Sequence[str]
    """Of its processes, one each, for messages: see `process_names`."""
    max_under_way: int = 1
    """Size of the tasks that a concurrent process has at once."""
    stateful: bool = False
    """Whether a process remembers what it did, so that nothing is sent ahead."""
    on_replaced: Callable[[], Sequence[ChildTask]] = tuple
    """What a process that stands for one that ended must do first; in the dispatcher's thread."""
    waiting: deque[ChildTask] = field(default_factory=deque[ChildTask])
    seconds_per_task: float = _AHEAD_S
    failed_starts: int = 0
    """Since a process of it was last ready."""

    @property
    def ahead(self) -> int:
        """Tasks that a process may hold, the one it is at included."""
        if self.stateful:
            return 1
        return max(1, min(_MAX_AHEAD, int(_AHEAD_S / max(self.seconds_per_task, 1e-6))))

    def observe(self, seconds: float) -> None:
        """Count in how long a task has taken."""
        self.seconds_per_task += _SMOOTHING * (seconds - self.seconds_per_task)

    def put_back(self, tasks: Sequence[ChildTask]) -> None:
        """Let tasks that were under way be the next again, in their order."""
        self.waiting.extendleft(reversed(tasks))


def process_names(
    kind: str, count: int, *, what: Sequence[str], plugins: Sequence[str]
) -> tuple[str, ...]:
    """Names that say what a process has loaded, e.g. "scorer process 1 of 2 for math_answer"."""
    loaded = f"{', '.join(what)}"
    if plugins:
        loaded += f" (plugins: {', '.join(plugins)})"
    return tuple(f"{kind} {number} of {count} for {loaded}" for number in range(1, count + 1))


@dataclass(eq=False)
class Worker:
    """A process of a queue and the tasks it has been sent."""

    queue: TaskQueue
    process: ChildProcess
    name: str
    start_by: float
    """When it must be ready."""
    started: Future[None] = field(default_factory=Future[None])
    """Done when it is ready, or failed."""
    ready: bool = False
    problem: str | None = None
    """Why it cannot start."""
    gone: bool = False
    """It ended while it was idle; another is started when there is work."""
    under_way: dict[int, ChildTask] = field(default_factory=dict[int, ChildTask])
    since: float = 0.0
    """When the first task under way became the first."""

    def __post_init__(self) -> None:
        """Let nobody who waits for the start cancel it for all."""
        self.started.set_running_or_notify_cancel()

    @property
    def usable(self) -> bool:
        """Whether it takes tasks, now or once it has started."""
        return self.problem is None and not self.gone

    def take(self, share: int) -> Iterator[ChildTask]:
        """Remove from the queue what this process should be given now; `share`: its fair part."""
        queue = self.queue
        if not (self.ready and self.usable):
            return
        while queue.waiting and self._has_room(queue.waiting[0], share):
            task = queue.waiting.popleft()
            self.under_way[task.number] = task
            share -= 1
            yield task

    def _has_room(self, task: ChildTask, share: int) -> bool:
        if not self.under_way:
            return True
        if not self.queue.setup.concurrent:
            return share > 0 and len(self.under_way) < self.queue.ahead
        together = (*self.under_way.values(), task)
        if len(together) > min(other.max_together for other in together):
            return False
        busy = sum(other.size for other in self.under_way.values())
        return busy + task.size <= self.queue.max_under_way

    def finish(self, number: int, now: float) -> ChildTask:
        """The task that was answered, which is no longer under way."""
        task = self.under_way.pop(number)
        self.queue.observe(now - self.since)
        self.since = now
        return task

    @property
    def overdue(self) -> tuple[float, Failure] | None:
        """When it must be given up, and why then; None if it is idle."""
        if not self.usable:
            return None
        if not self.ready:
            limit_s = self.queue.setup.start_timeout_s
            problem = (
                f"{self.name} did not start within {limit_s:g} s (reward.start_timeout_s); "
                "its output above may show where it hung"
            )
            return self.start_by, NotStarted(problem)
        tasks = self.under_way.values()
        if not tasks:
            return None
        if self.queue.setup.concurrent:
            first = min(tasks, key=lambda task: task.sent_at + task.timeout_s)
            return first.sent_at + first.timeout_s + _STUCK_S, TimedOut(first.timeout_s)
        first = next(iter(tasks))
        return self.since + first.timeout_s, TimedOut(first.timeout_s)

    def separate_failed(self) -> tuple[list[ChildTask], list[ChildTask]]:
        """After its death or a time-out: the tasks that caused it, and those to be done again."""
        tasks = list(self.under_way.values())
        self.under_way.clear()
        if self.queue.setup.concurrent and len(tasks) > 1:
            for task in tasks:
                task.max_together = max(1, len(tasks) // _SUSPECTED_SHARE)
            return [], tasks
        return tasks[:1], tasks[1:]
