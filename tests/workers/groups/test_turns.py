"""Order and bookkeeping of turns when engines die; real engines: test_stack.py."""

import asyncio
from typing import Any

import pytest

from rlstack.errors import WorkerError
from rlstack.types import SamplingSettings
from tests.workers.fake_engine import FakeEngine
from workers.groups.engines import EngineGroup
from workers.groups.turns import TurnSession
from workers.specs import Completion

SAMPLING = SamplingSettings(temperature=1.0, max_response_tokens=8)


def group_of(*engines: FakeEngine, max_restarts: int = 2) -> tuple[EngineGroup, list[str]]:
    events: list[str] = []

    async def replace(index: int) -> Any:
        await asyncio.sleep(0.01)
        events.append(f"replaced {index}")
        return FakeEngine()

    async def resync() -> None:
        events.append("weights")

    handles: Any = engines
    group = EngineGroup(handles, start_engine=replace, max_restarts=max_restarts)
    group.on_replaced(resync)
    return group, events


async def ask(session: TurnSession, count: int) -> list[asyncio.Task[Completion]]:
    tasks = [
        asyncio.create_task(session.sample([i], SAMPLING, seed=100 + i, engine=i % 2))
        for i in range(count)
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


EXPECTED = [f"{100 + i} after {i}" for i in range(6)]


def test_turns_are_answered_by_their_preferred_engines() -> None:
    async def scenario() -> None:
        group, events = group_of(FakeEngine(), FakeEngine())
        async with TurnSession(group) as session:
            assert texts(await asyncio.gather(*await ask(session, 6))) == EXPECTED
        assert events == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("dying", "replaced"), [([0], []), ([0, 1], ["replaced 0", "replaced 1", "weights"])]
)
def test_the_turns_of_dead_engines_are_redone_alike(dying: list[int], replaced: list[str]) -> None:
    async def scenario() -> None:
        engines = [FakeEngine(holds=index in dying) for index in range(2)]
        group, events = group_of(*engines)
        async with TurnSession(group) as session:
            tasks = await ask(session, 6)
            assert [len(engine.held) for engine in engines] == [3, 3 if 1 in dying else 0]
            for index in dying:
                engines[index].die()
            # One more comes while nobody may be alive.
            late = asyncio.create_task(session.sample([9], SAMPLING, seed=9, engine=0))
            assert texts(await asyncio.gather(*tasks)) == EXPECTED
            assert (await late).text == "9 after 9"
            # Weights come once, after every replacement; one that is not waited for comes later.
            assert events == replaced
        await group.repair()

    asyncio.run(scenario())


def test_without_replacements_the_turns_fail_and_so_do_later_ones() -> None:
    async def scenario() -> None:
        engine = FakeEngine(holds=True)
        group, _ = group_of(engine, max_restarts=0)
        async with TurnSession(group) as session:
            (task,) = await ask(session, 1)
            engine.die()
            with pytest.raises(WorkerError, match="max_restarts is used up"):
                await task
            with pytest.raises(WorkerError, match="max_restarts is used up"):
                await session.sample([1], SAMPLING, seed=1, engine=0)

    asyncio.run(scenario())


def test_leaving_gives_up_what_is_under_way() -> None:
    async def scenario() -> None:
        group, _ = group_of(FakeEngine(holds=True))
        async with TurnSession(group) as session:
            (task,) = await ask(session, 1)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
