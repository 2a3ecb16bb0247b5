"""Real processes that hang, stop, die or cannot be started: whoever waits is always answered."""

import asyncio
import itertools
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rlstack.errors import WorkerError
from tests.workers.children.conftest import MakeSetup
from tests.workers.children.obedient import PROGRAM, Orders
from workers.children.dispatcher import Dispatcher
from workers.children.messages import Died, NotStarted, Setup, TimedOut
from workers.children.queue import ChildTask, TaskQueue

numbers = itertools.count()


class Driver:
    """A dispatcher of one queue."""

    def __init__(self, setup: Setup, *, num_processes: int = 1) -> None:
        names = [f"helper {number}" for number in range(num_processes)]
        self.queue = TaskQueue(PROGRAM, setup, names, max_under_way=sys.maxsize)
        self.dispatcher = Dispatcher([self.queue], closed="closed by the test")

    async def ask(self, verb: str, argument: Any = None, **options: Any) -> Any:
        content = pickle.dumps((verb, argument))
        task = ChildTask(number=next(numbers), content=content, **({"timeout_s": 20.0} | options))
        async with asyncio.timeout(60):
            return await self.dispatcher.submit(self.queue, task)


@contextmanager
def driving(setup: Setup, *, num_processes: int = 1) -> Iterator[Driver]:
    driver = Driver(setup, num_processes=num_processes)
    try:
        yield driver
    finally:
        driver.dispatcher.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_one_that_hangs_at_first_is_named(make_setup: MakeSetup, orders: Orders) -> None:
    orders.hang.touch()

    async def scenario() -> None:
        with driving(make_setup(start_timeout_s=1.0)) as driver:
            waiting = asyncio.create_task(driver.ask("echo", 1))
            with pytest.raises(WorkerError, match="helper 0 did not start within 1 s"):
                await driver.dispatcher.ready()
            assert isinstance(await waiting, NotStarted)

    run(scenario)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_replacements_that_hang_cost_what_waits_for_them(
    make_setup: MakeSetup, orders: Orders, num_processes: int
) -> None:
    async def scenario() -> None:
        with driving(make_setup(start_timeout_s=2.0), num_processes=num_processes) as driver:
            await driver.dispatcher.ready()
            orders.hang.touch()
            deaths = [driver.ask("exit", 3) for _ in range(num_processes)]
            assert await asyncio.gather(*deaths) == [Died(3)] * num_processes
            found = await asyncio.gather(*(driver.ask("echo", n) for n in range(5)))
            assert {type(result) for result in found} == {NotStarted}
            assert "helper" in found[0].problem
            assert "did not start within 2 s (reward.start_timeout_s)" in found[0].problem
            orders.hang.unlink()
            assert await driver.ask("echo", "fine") == "fine"

    run(scenario)


def test_what_is_tried_again_outlives_a_start_that_hangs(
    make_setup: MakeSetup, orders: Orders
) -> None:
    async def scenario() -> None:
        with driving(make_setup(start_timeout_s=1.5)) as driver:
            await driver.dispatcher.ready()
            orders.hang.touch()
            await driver.ask("exit", 3)
            failures: list[object] = []

            def note(result: object) -> None:
                failures.append(result)
                orders.hang.unlink(missing_ok=True)

            result = await driver.ask(
                "echo",
                "fine",
                attempts_left=1,
                has_failed=lambda result: isinstance(result, NotStarted),
                on_result=note,
            )
            assert result == "fine"
            assert [type(failure) for failure in failures] == [NotStarted, str]

    run(scenario)


def test_processes_that_cannot_start_do_not_wait_for_each_other_for_ever(
    make_setup: MakeSetup, orders: Orders
) -> None:
    async def scenario() -> None:
        with driving(make_setup(), num_processes=2) as driver:
            await driver.dispatcher.ready()
            orders.refuse.touch()
            await asyncio.gather(driver.ask("exit", 3), driver.ask("exit", 3))
            with pytest.raises(WorkerError, match=r"helper \d could not start: told to by refuse"):
                await driver.ask("echo", 1)

    run(scenario)


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_stopped_process_is_found_by_its_next_task(
    make_setup: MakeSetup, *, concurrent: bool
) -> None:
    async def scenario() -> None:
        with driving(make_setup(concurrent=concurrent)) as driver:
            stopped = await driver.ask("pid")
            os.kill(stopped, signal.SIGSTOP)
            assert await driver.ask("echo", 1, timeout_s=0.5) == TimedOut(0.5)
            assert await driver.ask("pid") != stopped
            with pytest.raises(ProcessLookupError):
                os.kill(stopped, 0)

    run(scenario)


def test_a_process_that_is_stopped_while_it_starts_is_given_up(make_setup: MakeSetup) -> None:
    async def scenario() -> None:
        with driving(make_setup(start_timeout_s=1.0, seconds=0.5)) as driver:
            (worker,) = driver.dispatcher._everyone()
            os.kill(worker.process._process.pid, signal.SIGSTOP)
            with pytest.raises(WorkerError, match="helper 0 did not start within 1 s"):
                await driver.dispatcher.ready()

    run(scenario)


def test_tasks_beside_one_that_kills_their_process_are_done_together(
    make_setup: MakeSetup,
) -> None:
    async def scenario() -> None:
        with driving(make_setup(concurrent=True)) as driver:
            # While it starts, so that it is given all of them at once.
            others = [driver.ask("await", 0.1) for _ in range(64)]
            died, *found = await asyncio.gather(driver.ask("exit", 4), *others)
            assert found == [0.1] * 64
            assert died == Died(4)
            # In its last process, after groups of 16, 4 and 1 have ended theirs.
            assert await driver.ask("most") == 16

    run(scenario)


def test_whoever_waits_for_the_start_may_give_up(make_setup: MakeSetup) -> None:
    async def scenario() -> None:
        with driving(make_setup(seconds=0.5)) as driver:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(driver.dispatcher.ready(), timeout=0.1)
            assert await driver.ask("echo", "fine") == "fine"
            await driver.dispatcher.ready()

    run(scenario)


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Opening a file or starting a process fails inside."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_when_the_thread_fails_all_callers_get_the_cause(make_setup: MakeSetup) -> None:
    cause = r"the thread that serves the child processes failed: OSError: .*Too many open files"

    async def scenario() -> None:
        with driving(make_setup(seconds=1.0), num_processes=3) as driver:
            await driver.dispatcher.ready()
            with no_more_descriptors():
                asking = asyncio.create_task(driver.ask("sleep", 30))
                assert await driver.ask("exit", 3) == Died(3)
                with pytest.raises(WorkerError, match=cause) as caught:
                    await asking
                assert isinstance(caught.value.__cause__, OSError)
                # While the third, idle process takes its time to close.
                with pytest.raises(WorkerError, match=cause):
                    await driver.ask("echo", 1)

    run(scenario)


def test_closing_answers_what_is_under_way_and_what_waits(make_setup: MakeSetup) -> None:
    async def scenario() -> None:
        with driving(make_setup()) as driver:
            await driver.dispatcher.ready()
            asking = [asyncio.create_task(driver.ask("sleep", 30)) for _ in range(3)]
            await asyncio.sleep(0.1)
            await asyncio.to_thread(driver.dispatcher.close)
            found = await asyncio.gather(*asking, return_exceptions=True)
            assert [str(error) for error in found] == ["closed by the test"] * 3
            with pytest.raises(WorkerError, match="closed by the test"):
                await driver.ask("echo", 1)

    run(scenario)
