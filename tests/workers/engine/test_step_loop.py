"""Commands are carried out between steps, in order, on one thread; failures reach who waits."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from rlstack.errors import WorkerError
from workers.engine.step_loop import StepLoop


class Counter:
    """Counts down what it is given, one a step, and notes where it stood at each command."""

    def __init__(self) -> None:
        self.left = 0
        self.log: list[str] = []
        self.failures: list[WorkerError] = []
        self.thread = threading.get_ident()
        self.broken = False

    def give(self, count: int) -> None:
        self.log.append(f"given {count}")
        self.left += count

    def has_work(self) -> bool:
        return self.left > 0

    def step(self) -> None:
        assert threading.get_ident() == self.thread
        if self.broken:
            raise RuntimeError("the kernel failed")
        time.sleep(1e-4)
        self.left -= 1
        self.log.append("step")

    def fail(self, error: WorkerError) -> None:
        self.failures.append(error)


def run(scenario: Callable[[StepLoop[Counter]], Awaitable[None]]) -> None:
    async def whole() -> None:
        loop = StepLoop(Counter)
        await loop.start()
        await scenario(loop)

    asyncio.run(whole())


async def idle(loop: StepLoop[Counter]) -> list[str]:
    while await loop.call(Counter.has_work):
        await asyncio.sleep(0.001)
    return await loop.call(lambda counter: list(counter.log))


def test_commands_that_wait_are_all_carried_out_before_the_next_step() -> None:
    async def scenario(loop: StepLoop[Counter]) -> None:
        await asyncio.gather(*(loop.call(Counter.give, count) for count in (2, 3)))
        assert await idle(loop) == ["given 2", "given 3", *["step"] * 5]

    run(scenario)


def test_a_command_comes_between_two_steps_of_what_is_under_way() -> None:
    async def scenario(loop: StepLoop[Counter]) -> None:
        await loop.call(Counter.give, 2_000)
        while (left := await loop.call(lambda counter: counter.left)) == 2_000:
            await asyncio.sleep(0.001)
        assert left > 0
        await loop.call(Counter.give, 1)
        log = await idle(loop)
        assert log.index("given 1") > 2_000 - left > 0
        assert log.count("step") == 2_001

    run(scenario)


def test_a_command_that_raises_fails_alone() -> None:
    async def scenario(loop: StepLoop[Counter]) -> None:
        with pytest.raises(ZeroDivisionError):
            await loop.call(lambda _: 1 / 0)
        await loop.call(Counter.give, 1)
        assert await idle(loop) == ["given 1", "step"]

    run(scenario)


def test_what_cannot_be_made_says_so_at_the_start() -> None:
    async def scenario() -> None:
        def fail() -> Counter:
            raise ValueError("no such model")

        with pytest.raises(ValueError, match="no such model"):
            await StepLoop(fail).start()

    asyncio.run(scenario())


def test_a_step_that_raises_fails_everything_from_then_on() -> None:
    async def scenario(loop: StepLoop[Counter]) -> None:
        counter = await loop.call(lambda counter: counter)
        counter.broken = True
        await loop.call(Counter.give, 1)
        while not counter.failures:
            await asyncio.sleep(0.001)
        with pytest.raises(WorkerError, match=r"vLLM failed: RuntimeError: the kernel failed"):
            await loop.call(Counter.has_work)
        assert len(counter.failures) == 1

    run(scenario)


def test_a_loop_that_is_stuck_is_busy_and_does_not_count_on() -> None:
    async def scenario(loop: StepLoop[Counter]) -> None:
        await loop.call(Counter.give, 3)
        await idle(loop)
        while loop.busy:
            await asyncio.sleep(0.001)
        done = loop.done
        assert done >= 1 + 1 + 3
        stuck = asyncio.create_task(loop.call(lambda _: time.sleep(0.2)))
        await asyncio.sleep(0.05)
        assert loop.busy
        assert loop.done == done
        await stuck

    run(scenario)
