"""What waits for scorer processes and what they have under way; no threads, no waiting.

A lane is the components that share processes. Most judge one thing after the other; to keep a
process from idling between two fast checks it is given several ahead. Those of a concurrent lane
judge all that they are given at once.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from workers.scoring.connection import ScorerProcess
from workers.scoring.messages import Judge, Restore, Setup, Snapshot

_AHEAD_S = 0.02
"""A process is given about this much work ahead: if it hangs, that much waits for its time-out."""
_MAX_AHEAD = 64
_SMOOTHING = 0.1
# A concurrent process ends what takes too long by itself, unless its event loop is stuck.
_STUCK_S = 1.0


@dataclass(eq=False)
class Call:
    """One thing to do for one component, and whoever waits for it."""

    number: int
    kind: Literal["judge", "snapshot", "restore"]
    index: int
    payload: bytes
    num_results: int
    loop: asyncio.AbstractEventLoop | None
    """That of the future; None: nobody waits."""
    future: "asyncio.Future[object] | None"
    attempts_left: int = 0
    alone: bool = False
    """Beside others in a process that died or got stuck: it may be to blame, so it runs alone."""
    sent_at: float = 0.0

    @property
    def message(self) -> Judge | Snapshot | Restore:
        """What the process is told."""
        if self.kind == "judge":
            return Judge(self.number, self.index, self.payload)
        if self.kind == "snapshot":
            return Snapshot(self.number, self.index)
        return Restore(self.number, self.index, self.payload)


@dataclass(eq=False)
class Lane:
    """Components that share processes, and the calls that wait for one."""

    setup: Setup
    num_processes: int
    max_under_way: int
    """Rollouts that a concurrent process judges at once."""
    stateful: bool = False
    waiting: deque[Call] = field(default_factory=deque[Call])
    seconds_per_call: float = _AHEAD_S
    snapshots: dict[int, bytes] = field(default_factory=dict[int, bytes])
    """The last known states, by component."""

    @property
    def ahead(self) -> int:
        """Calls that a process may hold, the one it judges included."""
        if self.stateful:
            return 1
        return max(1, min(_MAX_AHEAD, int(_AHEAD_S / max(self.seconds_per_call, 1e-6))))

    def observe(self, seconds: float) -> None:
        """Count in how long a call has taken."""
        self.seconds_per_call += _SMOOTHING * (seconds - self.seconds_per_call)

    def put_back(self, calls: list[Call]) -> None:
        """Let calls that were under way be the next again, in their order."""
        self.waiting.extendleft(reversed(calls))


@dataclass(eq=False)
class Driven:
    """A process of a lane and the calls it has been sent."""

    lane: Lane
    process: ScorerProcess
    ready: bool = False
    problem: str | None = None
    """Why it cannot start."""
    gone: bool = False
    """It ended while it was idle; another is started when there is work."""
    under_way: dict[int, Call] = field(default_factory=dict[int, Call])
    since: float = 0.0
    """When the first call under way became the first."""
    has_judged: bool = False

    @property
    def usable(self) -> bool:
        """Whether it takes calls, now or once it has started."""
        return self.problem is None and not self.gone

    def take(self, share: int) -> Iterator[Call]:
        """Remove from the lane what this process should be given now; `share`: its fair part."""
        lane = self.lane
        if not (self.ready and self.usable):
            return
        while lane.waiting and self._has_room(lane.waiting[0], share):
            call = lane.waiting.popleft()
            self.under_way[call.number] = call
            share -= 1
            yield call

    def _has_room(self, call: Call, share: int) -> bool:
        if not self.under_way:
            return True
        if not self.lane.setup.concurrent:
            return share > 0 and len(self.under_way) < self.lane.ahead
        if call.alone or any(other.alone for other in self.under_way.values()):
            return False
        busy = sum(other.num_results for other in self.under_way.values())
        return busy + call.num_results <= self.lane.max_under_way

    def finish(self, number: int, now: float) -> Call:
        """The call that was answered, which is no longer under way."""
        call = self.under_way.pop(number)
        self.lane.observe(now - self.since)
        self.since = now
        self.has_judged = self.has_judged or call.kind == "judge"
        return call

    @property
    def deadline(self) -> float | None:
        """When it must be given up."""
        timeouts_s = self.lane.setup.timeouts_s
        calls = self.under_way.values()
        if not calls:
            return None
        if self.lane.setup.concurrent:
            return min(call.sent_at + timeouts_s[call.index] + _STUCK_S for call in calls)
        return self.since + timeouts_s[next(iter(calls)).index]

    def split_blame(self) -> tuple[list[Call], list[Call]]:
        """After its death or a time-out: the calls that caused it, and those to be done again."""
        calls = list(self.under_way.values())
        self.under_way.clear()
        if self.lane.setup.concurrent and len(calls) > 1:
            for call in calls:
                call.alone = True
            return [], calls
        return calls[:1], calls[1:]
