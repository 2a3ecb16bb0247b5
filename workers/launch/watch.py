"""Finds processes that are stuck and ends them, so that those who wait for them hear of a death."""

import asyncio
import logging
import time
from pathlib import Path

import ray
from ray._private import worker as ray_worker
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from rlstack.config.faults import FaultsConfig
from workers.specs import Progress

logger = logging.getLogger(__name__)

LAST_LINES = 8
MARKS_OF_RAY = (":job_id:", ":actor_name:", ":task_name:")
"""Lines that Ray writes into the log of a worker."""

INTERVALS = 8
"""A process is asked so often within the shortest bound."""


class Watch:
    """Asks actors how far they have come; one that is stuck is killed.

    A stuck process holds up whoever calls it for ever; a dead one raises RayActorError there.
    """

    def __init__(self, faults: FaultsConfig) -> None:
        self._faults = faults
        self._interval_s = min(faults.answer_s, faults.progress_s, 40.0) / INTERVALS
        self._tasks: dict[ActorHandle, asyncio.Task[None]] = {}
        self._reasons: dict[ActorHandle, str] = {}
        self._pids: dict[ActorHandle, int] = {}

    def add(self, name: str, actor: ActorHandle) -> None:
        """Watch `actor`, which has `progress`, until it dies or is left alone."""
        self._tasks[actor] = asyncio.create_task(self._watch(name, actor))

    def leave(self, actor: ActorHandle) -> None:
        """Let `actor` alone."""
        if task := self._tasks.pop(actor, None):
            task.cancel()

    def obituary(self, actor: ActorHandle) -> str:
        """Why an actor that is dead died, as far as is known here, and what it wrote last."""
        reason = self._reasons.get(actor, "its process died")
        return reason + last_words(self._pids.get(actor))

    def stop(self) -> None:
        """Leave all of them alone."""
        for actor in list(self._tasks):
            self.leave(actor)

    async def _watch(self, name: str, actor: ActorHandle) -> None:
        faults = self._faults
        answer_s, done, since = faults.start_s, -1, time.monotonic()
        while True:
            try:
                progress: Progress = await asyncio.wait_for(actor.progress.remote(), answer_s)
            except TimeoutError:
                self._kill(name, actor, f"it did not answer for {answer_s:g} s")
                return
            except RayActorError:
                return
            self._pids[actor] = progress.pid
            answer_s, now = faults.answer_s, time.monotonic()
            if progress.done != done or not progress.busy:
                done, since = progress.done, now
            # What is done first is loading the model.
            limit_s = faults.progress_s if done else faults.start_s
            if now - since > limit_s:
                self._kill(name, actor, f"it was busy and did not get on for {limit_s:g} s")
                return
            await asyncio.sleep(self._interval_s)

    def _kill(self, name: str, actor: ActorHandle, reason: str) -> None:
        logger.warning("%s is stuck (%s) and is ended", name, reason)
        self._reasons[actor] = reason
        ray.kill(actor)


def last_words(pid: int | None) -> str:
    """What the worker process `pid` of Ray wrote last, if it ran on this machine, and where."""
    node = ray_worker._global_node
    if node is None or pid is None:
        return ""
    for path in Path(node.get_logs_dir_path()).glob(f"worker-*-{pid}.err"):
        lines = path.read_text(errors="replace").strip().splitlines()
        own = [line for line in lines if not line.startswith(MARKS_OF_RAY)]
        said = "".join(f"\n    {line}" for line in own[-LAST_LINES:])
        return f"; it wrote last, in {path}:{said}" if said else f"; its log, {path}, says nothing"
    return ""
