"""Stuck processes are found and ended, with real processes and real signals."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from tests.workers.conftest import faults_config
from workers.actors import WATCH
from workers.launch.cluster import join
from workers.launch.watch import Watch
from workers.progress import work
from workers.specs import Progress

pytestmark = pytest.mark.real_stack


class Worker:
    """Works as a rank does."""

    def pid(self) -> int:
        return os.getpid()

    def work_for(self, seconds: float, *, advancing: bool) -> None:
        with work:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.1)
                if advancing:
                    work.advance()

    @ray.method(concurrency_group=WATCH)
    def progress(self) -> Progress:
        return work.progress()


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    join("local", cpus=8)
    yield
    ray.shutdown()


def start() -> Any:
    remote: Any = ray.remote
    return remote(concurrency_groups={WATCH: 1})(Worker).options(num_cpus=0).remote()


async def watched(workers: list[Any]) -> Watch:
    await asyncio.gather(*(worker.pid.remote() for worker in workers))
    watch = Watch(faults_config(answer_s=3.0, progress_s=3.0, start_s=60.0))
    for index, worker in enumerate(workers):
        watch.add(f"worker {index}", worker)
    return watch


def test_a_stopped_process_is_ended_and_its_callers_hear_of_it() -> None:
    async def scenario() -> None:
        stopped, idle = start(), start()
        watch = await watched([stopped, idle])
        # Its first piece of work is loading a model, which has a bound of its own.
        await stopped.work_for.remote(0.0, advancing=False)
        os.kill(await stopped.pid.remote(), signal.SIGSTOP)
        with pytest.raises(RayActorError):
            await stopped.pid.remote()
        assert watch.obituary(stopped).startswith("it did not answer for 3 s; its log, ")
        await idle.pid.remote()
        assert watch.obituary(idle).startswith("its process died")
        watch.stop()

    asyncio.run(scenario())


def test_a_process_that_does_not_get_on_is_ended_and_a_slow_one_is_not() -> None:
    async def scenario() -> None:
        stuck, slow = start(), start()
        for worker in (stuck, slow):
            await worker.work_for.remote(0.0, advancing=False)
        watch = await watched([stuck, slow])
        slowly = slow.work_for.remote(8.0, advancing=True)
        with pytest.raises(RayActorError):
            await stuck.work_for.remote(60.0, advancing=False)
        assert watch.obituary(stuck).startswith("it was busy and did not get on for 3 s")
        await slowly
        assert watch.obituary(slow).startswith("its process died")
        watch.stop()

    asyncio.run(scenario())


def test_what_is_done_first_may_take_as_long_as_a_start() -> None:
    async def scenario() -> None:
        loading = start()
        watch = await watched([loading])
        await loading.work_for.remote(6.0, advancing=False)
        assert watch.obituary(loading).startswith("its process died")
        watch.stop()

    asyncio.run(scenario())
