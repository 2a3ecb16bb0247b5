"""Rewards that remember: one process, judged in order, saved, restored, lost back to the last."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.errors import RewardError
from rlstack.types import RewardRequest
from workers.scoring.pool import ScorerPool

PLUGIN = """
import os, time
from rewards.registry import register

class Remembers:
    def __init__(self):
        self.seen = []
    def state(self):
        if self.seen[-1:] == ["mute"]:
            raise LookupError("no words")
        return ",".join(self.seen).encode()
    def restore(self, state):
        if state == b"foul":
            raise ValueError("foul state")
        self.seen = state.decode().split(",")

@register("counts")
class Counts(Remembers):
    def __call__(self, request):
        if request.response == "die":
            os._exit(3)
        self.seen.append(request.response)
        return len(self.seen)

@register("ranks", batched=True)
class Ranks(Remembers):
    async def __call__(self, requests):
        self.seen += [r.response for r in requests]
        return [len(self.seen)] * len(requests)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugins") / "remembering_rewards.py"
    path.write_text(PLUGIN)
    return str(path)


@contextmanager
def running(plugin: str, *names: str) -> Iterator[ScorerPool]:
    pool = ScorerPool(
        RewardConfig(
            components=tuple(RewardComponent(name=name) for name in names),
            plugins=(plugin,),
            num_workers=2,
            timeout_s=5,
            memory_gib=16,
        )
    )
    try:
        yield pool
    finally:
        pool.close()


async def judge(pool: ScorerPool, *responses: str) -> list[float | None]:
    requests = [RewardRequest(prompt="p", response=response) for response in responses]
    return [score.value for score in await asyncio.gather(*map(pool.score, requests))]


def test_there_is_one_memory_and_another_pool_goes_on_from_it(plugin: str) -> None:
    async def run() -> None:
        with (
            running(plugin, "counts", "ranks") as pool,
            running(plugin, "ranks", "counts") as next_,
        ):
            assert await judge(pool, *"abcdefgh") == [2.0 * n for n in range(1, 9)]
            states = await pool.state()
            assert states == {"counts": b"a,b,c,d,e,f,g,h", "ranks": b"a,b,c,d,e,f,g,h"}
            await next_.restore(states)
            assert await judge(next_, "i") == await judge(pool, "i") == [18.0]

    asyncio.run(run())


def test_groups_are_judged_in_the_order_they_were_asked_for(plugin: str) -> None:
    async def run() -> None:
        with running(plugin, "counts", "ranks") as pool:
            loop = asyncio.get_running_loop()
            groups = [[loop.create_future() for _ in range(2)] for _ in range(3)]
            tasks = [asyncio.create_task(pool.score_group(group, step=0)) for group in groups]
            for number, arrival in reversed([*enumerate(a for group in groups for a in group)]):
                await asyncio.sleep(0.01)
                arrival.set_result(RewardRequest(prompt="p", response=str(number)))
            await asyncio.gather(*tasks)
            assert await pool.state() == {"counts": b"0,1,2,3,4,5", "ranks": b"0,1,2,3,4,5"}

    asyncio.run(run())


def test_a_group_that_was_cancelled_holds_up_nobody(plugin: str) -> None:
    async def run() -> None:
        with running(plugin, "counts", "ranks") as pool:
            never = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(pool.score_group([never], step=0))
            await asyncio.sleep(0)
            after = asyncio.create_task(judge(pool, "a"))
            await asyncio.sleep(0.01)
            task.cancel()
            assert await after == [2.0]

    asyncio.run(run())


def test_a_death_loses_what_came_after_the_last_state(
    plugin: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with running(plugin, "counts") as pool:
            assert await judge(pool, "a", "b") == [1.0, 2.0]
            await pool.state()
            assert await judge(pool, "c", "die", "d", "e") == [3.0, None, 3.0, 4.0]
            assert await pool.state() == {"counts": b"a,b,d,e"}

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert caplog.messages == [
        "the process of reward counts died: what it remembered since the last checkpoint is lost"
    ]


def test_one_that_cannot_give_its_state_stands_with_the_last(
    plugin: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with running(plugin, "counts") as pool:
            await judge(pool, "a")
            assert await pool.state() == {"counts": b"a"}
            await judge(pool, "mute")
            assert await pool.state() == {"counts": b"a"}

    asyncio.run(run())
    assert "reward 'counts' cannot give its state: LookupError: no words" in caplog.text


def test_a_state_that_cannot_be_taken_is_an_error(plugin: str) -> None:
    async def run() -> None:
        with (
            running(plugin, "counts") as pool,
            pytest.raises(RewardError, match=r"'counts' cannot go on .*ValueError: foul state"),
        ):
            await pool.restore({"counts": b"foul"})

    asyncio.run(run())


def test_a_row_cannot_name_one(plugin: str) -> None:
    config = RewardConfig(
        components=(RewardComponent(name="row"),),
        plugins=(plugin,),
        num_workers=1,
        timeout_s=5,
        memory_gib=16,
    )
    with pytest.raises(RewardError, match="'counts' keeps a state, so no row can name it"):
        ScorerPool(config, row_rewards=["counts"])
