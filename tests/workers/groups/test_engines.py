"""Order and bookkeeping of turns when engines die; real engines: test_stack.py."""

import asyncio
from typing import Any

import pytest

from rlstack.errors import WorkerError
from rlstack.types import SamplingSettings
from tests.workers.fake_engine import FakeEngine
from workers.groups.engines import EngineGroup
from workers.specs import Completion, TokenRequest

SAMPLING = SamplingSettings(temperature=1.0, max_response_tokens=8)


def group_of(*engines: FakeEngine, max_restarts: int = 2) -> tuple[EngineGroup, list[str]]:
    events: list[str] = []

    async def replace(index: int, _: Any) -> Any:
        await asyncio.sleep(0.01)
        events.append(f"replaced {index}")
        return FakeEngine()

    async def make_room() -> None:
        events.append("room")

    async def resync() -> None:
        await group.repair()
        events.append("weights")

    handles: Any = engines
    group = EngineGroup(handles, replace=replace, max_restarts=max_restarts)
    group.serve_policy(make_room=make_room, resync=resync)
    return group, events


def turn(group: EngineGroup, number: int) -> asyncio.Task[Completion]:
    request = TokenRequest(request_id=number, token_ids=[number], seed=100 + number)
    return asyncio.create_task(group.sample(request, SAMPLING, prefer=number % 2))


async def ask(group: EngineGroup, count: int) -> list[asyncio.Task[Completion]]:
    tasks = [turn(group, number) for number in range(count)]
    await asyncio.sleep(0.001)
    return tasks


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


EXPECTED = [f"{100 + i} after {i}" for i in range(6)]


def test_turns_are_answered_by_their_preferred_engines() -> None:
    async def scenario() -> None:
        group, events = group_of(FakeEngine(), FakeEngine())
        assert texts(await asyncio.gather(*await ask(group, 6))) == EXPECTED
        assert events == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("dying", "events_before_the_last_answer"),
    [([0], []), ([0, 1], ["room", "room", "replaced 0", "replaced 1", "weights"])],
)
def test_the_turns_of_dead_engines_are_redone_alike(
    dying: list[int], events_before_the_last_answer: list[str]
) -> None:
    async def scenario() -> None:
        engines = [FakeEngine(holds=index in dying) for index in range(2)]
        group, events = group_of(*engines)
        tasks = await ask(group, 6)
        assert [len(engine.held) for engine in engines] == [3, 3 if 1 in dying else 0]
        for index in dying:
            engines[index].die()
        # One more comes while nobody may be alive.
        late = turn(group, 9)
        assert texts(await asyncio.gather(*tasks)) == EXPECTED
        assert (await late).text == "109 after 9"
        # Nobody samples before the weights are there, which come once for all replacements.
        assert events[: len(events_before_the_last_answer)] == events_before_the_last_answer
        await group.repair()
        assert events.count("weights") == (1 if len(dying) == 2 else 0)

    asyncio.run(scenario())


def test_without_replacements_the_turns_fail_and_so_do_later_ones() -> None:
    async def scenario() -> None:
        engine = FakeEngine(holds=True)
        group, _ = group_of(engine, max_restarts=0)
        (task,) = await ask(group, 1)
        engine.die()
        with pytest.raises(WorkerError, match="max_restarts is used up"):
            await task
        with pytest.raises(WorkerError, match="max_restarts is used up"):
            await turn(group, 1)

    asyncio.run(scenario())


def test_an_engine_that_dies_while_it_starts_is_started_again() -> None:
    async def scenario() -> None:
        attempts: list[int] = []

        async def replace(index: int, _: Any) -> Any:
            attempts.append(index)
            if len(attempts) == 1:
                raise WorkerError("it did not answer")
            return FakeEngine()

        engine = FakeEngine(holds=True)
        handles: Any = [engine]
        group = EngineGroup(handles, replace=replace, max_restarts=2)
        tasks = await ask(group, 2)
        engine.die()
        assert texts(await asyncio.gather(*tasks)) == EXPECTED[:2]
        assert attempts == [0, 0]

    asyncio.run(scenario())
