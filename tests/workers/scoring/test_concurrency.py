"""Many at once: fast checks sent ahead, and async rewards; a failure still costs only itself."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.types import RewardRequest, Score
from workers.scoring.pool import ScorerPool

TIMEOUT_S = 1.0

PLUGIN = """
import asyncio, os, time
from rewards.registry import register
from rlstack.types import Score

running = 0
most = 0

@register("waits")
async def waits(request):
    global running, most
    what, _, argument = request.response.partition(" ")
    running += 1
    most = max(most, running)
    try:
        if what == "hang":
            await asyncio.sleep(60)
        if what == "deaf":
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass
        if what == "block":
            time.sleep(60)
        if what == "die":
            os._exit(5)
        if what == "raise":
            raise LookupError("moody")
        if what == "cancel":
            raise asyncio.CancelledError
        if what == "most":
            return Score(value=float(most), extracted_answer=str(os.getpid()))
        await asyncio.sleep(float(argument or 0.2))
        return 1.0
    finally:
        running -= 1

@register("waits_for_all", batched=True)
async def waits_for_all(requests):
    return [(await waits(request)) for request in requests]

@register("fast")
def fast(request):
    if request.response == "die":
        os._exit(5)
    if request.response == "hang":
        time.sleep(60)
    return float(len(request.response))
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugins") / "waiting_rewards.py"
    path.write_text(PLUGIN)
    return str(path)


@contextmanager
def running(plugin: str, *names: str, max_concurrent: int = 32) -> Iterator[ScorerPool]:
    pool = ScorerPool(
        RewardConfig(
            components=tuple(RewardComponent(name=name) for name in names),
            plugins=(plugin,),
            num_workers=1,
            max_concurrent=max_concurrent,
            timeout_s=TIMEOUT_S,
            memory_gib=16,
        ),
        row_rewards=["waits"] if names == ("row",) else (),
    )
    try:
        yield pool
    finally:
        pool.close()


def judge(pool: ScorerPool, *responses: str, row: str | None = None) -> list[Score]:
    async def gather() -> list[Score]:
        requests = [RewardRequest(prompt="p", response=r, reward=row) for r in responses]
        return await asyncio.gather(*(pool.score(request) for request in requests))

    return asyncio.run(gather())


def values(scores: list[Score]) -> list[float | None]:
    return [score.value for score in scores]


@pytest.mark.parametrize("name", ["waits", "row"])
def test_async_rewards_wait_together_up_to_the_limit(plugin: str, name: str) -> None:
    with running(plugin, name, max_concurrent=8) as pool:
        assert values(judge(pool, *["wait"] * 20, row="waits")) == [1.0] * 20
        assert judge(pool, "most", row="waits")[0].value == 8.0


def test_a_group_counts_as_its_rollouts(plugin: str) -> None:
    async def score(pool: ScorerPool) -> list[list[Score]]:
        group = [RewardRequest(prompt="p", response="wait 0.01")] * 4
        return await asyncio.gather(*(pool.score_arrived(group, step=0) for _ in range(6)))

    with running(plugin, "waits_for_all", max_concurrent=8) as pool:
        assert [values(scores) for scores in asyncio.run(score(pool))] == [[1.0] * 4] * 6
        # Each judges its four one after the other.
        assert judge(pool, "most")[0].value == 2.0


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("hang", "timed out after 1 s"),
        ("deaf", "timed out after 1 s"),
        ("block", "timed out after 1 s"),
        ("die", "the scorer process died with exit code 5 while judging"),
        ("raise", "waits: LookupError: moody"),
        ("cancel", "the reward was cancelled"),
    ],
)
def test_a_bad_one_costs_itself_only(plugin: str, bad: str, error: str) -> None:
    with running(plugin, "waits") as pool:
        around = ["wait"] * 4
        found = judge(pool, *around, bad, *around)
        assert found.pop(4) == Score(value=None, errors=(error,), num_errors={"waits": 1})
        assert values(found) == [1.0] * 8
        assert values(judge(pool, "wait")) == [1.0]


@pytest.mark.parametrize(("bad", "reason"), [("die", "died with"), ("hang", "timed out after 1 s")])
def test_of_the_checks_that_were_sent_ahead_one_is_to_blame(
    plugin: str, bad: str, reason: str
) -> None:
    with running(plugin, "fast") as pool:
        judge(pool, *["x"] * 500)  # they are fast, so many are sent ahead from now on
        responses = ["x" * (n % 7) for n in range(300)]
        responses[100] = responses[101] = bad
        found = judge(pool, *responses)
    assert [n for n, score in enumerate(found) if score.value is None] == [100, 101]
    assert all(reason in error for n in (100, 101) for error in found[n].errors)
    assert [s.value for n, s in enumerate(found) if n not in (100, 101)] == [
        float(n % 7) for n in range(300) if n not in (100, 101)
    ]


def test_an_idle_process_that_is_killed_is_replaced(plugin: str) -> None:
    with running(plugin, "waits") as pool:
        (score,) = judge(pool, "most")
        os.kill(int(score.extracted_answer or ""), signal.SIGKILL)
        time.sleep(0.3)
        assert values(judge(pool, "wait 0", "wait 0")) == [1.0, 1.0]
