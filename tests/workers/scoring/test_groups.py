"""Real scorer processes: whole groups, class-based rewards, error policies of single components."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlstack.config.reward import RewardComponent, RewardConfig, WeightSchedule
from rlstack.errors import RewardError, WorkerError
from rlstack.types import RewardRequest, Score
from workers.scoring.pool import ScorerPool

TIMEOUT_S = 5.0

PLUGIN = """
import asyncio, os, time
from rewards.registry import register

@register("length")
def length(request):
    return float(len(request.response))

@register("note")
def note(request):
    "Leaves a file behind, so that a test sees when it judged."
    open(request.metadata["folder"] + "/" + request.response, "w").close()
    return 1.0

@register("ranked", batched=True)
def ranked(requests):
    if any(r.response == "die" for r in requests):
        os._exit(3)
    order = sorted(r.response for r in requests)
    return [order.index(r.response) for r in requests]

@register("later")
async def later(request):
    await asyncio.sleep(0.01)
    return 2.0

@register("moody")
def moody(request, *, folder: str):
    "Fails in the way the response names until it has been called three times."
    calls = folder + "/calls"
    with open(calls, "a") as file:
        file.write(".")
    if os.path.getsize(calls) < 3:
        if request.response == "raise":
            raise LookupError("moody")
        if request.response == "die":
            os._exit(7)
        time.sleep(60)
    return 1.0

@register("connection")
class Connection:
    def __init__(self, *, folder: str, fails: bool = False):
        if fails:
            raise ConnectionError("nobody there")
        self.path = f"{folder}/{os.getpid()}"
        open(self.path, "w").close()

    def __call__(self, request):
        if request.response == "hang":
            time.sleep(60)
        return float(os.path.exists(self.path))

    async def close(self):
        await asyncio.sleep(0.01)
        os.remove(self.path)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugins") / "group_rewards.py"
    path.write_text(PLUGIN)
    return str(path)


@contextmanager
def running(
    plugin: str, *components: RewardComponent, num_workers: int = 1
) -> Iterator[ScorerPool]:
    pool = ScorerPool(
        RewardConfig(
            components=components,
            plugins=(plugin,),
            num_workers=num_workers,
            timeout_s=TIMEOUT_S,
            memory_gib=16,
        )
    )
    try:
        yield pool
    finally:
        pool.close()


def request(response: str, **fields: Any) -> RewardRequest:
    return RewardRequest(prompt="p", response=response, **fields)


def judge(pool: ScorerPool, *requests: RewardRequest, step: int = 0) -> list[Score]:
    async def arrived(request: RewardRequest) -> RewardRequest:
        return request

    async def score() -> list[Score]:
        return await pool.score_group([arrived(r) for r in requests], step=step)

    return asyncio.run(score())


def values(scores: Sequence[Score]) -> list[float | None]:
    return [score.value for score in scores]


def test_batched_async_scheduled_and_routed_components_join(plugin: str) -> None:
    components = (
        RewardComponent(name="ranked"),
        RewardComponent(name="later", weight=WeightSchedule(start=0.0, end=10.0, steps=10)),
        RewardComponent(name="length", data_sources=("elsewhere",)),
    )
    with running(plugin, *components) as pool:
        group = [request("b"), request("c"), request("a")]
        assert values(judge(pool, *group)) == [1.0, 2.0, 0.0]
        assert values(judge(pool, *group, step=5)) == [11.0, 12.0, 10.0]
        elsewhere = judge(pool, request("four", data_source="elsewhere"))
        assert elsewhere == [Score(value=4.0, parts={"ranked": 0.0, "later": 2.0, "length": 4.0})]


def test_single_components_judge_before_their_group_is_there(plugin: str, tmp_path: Path) -> None:
    async def score(pool: ScorerPool) -> list[Score]:
        loop = asyncio.get_running_loop()
        arrivals = [loop.create_future() for _ in range(2)]
        task = asyncio.create_task(pool.score_group(arrivals, step=0))
        for response, arrival in zip(("first", "second"), arrivals, strict=True):
            assert not task.done()
            arrival.set_result(request(response, metadata={"folder": str(tmp_path)}))
            while not (tmp_path / response).exists():
                await asyncio.sleep(0.01)
        return await task

    with running(plugin, RewardComponent(name="note"), RewardComponent(name="ranked")) as pool:
        assert values(asyncio.run(score(pool))) == [1.0, 2.0]


def test_a_death_costs_only_the_component_that_was_judging(plugin: str) -> None:
    with running(plugin, RewardComponent(name="ranked"), RewardComponent(name="length")) as pool:
        error = "ranked: the scorer process died with exit code 3 while judging"
        assert judge(pool, request("die"), request("a")) == [
            Score(value=n, parts={"length": n}, errors=(error,), num_errors={"ranked": 1})
            for n in (3.0, 1.0)
        ]


@pytest.mark.parametrize("response", ["raise", "die", "hang"])
def test_retry_survives_exceptions_deaths_and_time_outs(
    plugin: str, tmp_path: Path, response: str
) -> None:
    moody = RewardComponent(
        name="moody", params={"folder": str(tmp_path)}, on_error="retry", timeout_s=0.4
    )
    with running(plugin, moody) as pool:
        assert judge(pool, request(response)) == [Score(value=1.0, parts={"moody": 1.0})]
    assert (tmp_path / "calls").read_text() == "..."


@pytest.mark.parametrize(
    ("on_error", "value"), [("unjudged", 4.0), ("zero", 4.0), ("drop", None), ("raise", None)]
)
def test_error_policies_of_a_time_out(
    plugin: str, tmp_path: Path, on_error: Any, value: float | None
) -> None:
    moody = RewardComponent(
        name="moody", params={"folder": str(tmp_path)}, on_error=on_error, timeout_s=0.3
    )
    with running(plugin, moody, RewardComponent(name="length")) as pool:
        if on_error == "raise":
            with pytest.raises(RewardError, match=r"'moody' failed .* timed out after 0\.3 s"):
                judge(pool, request("hang"))
            return
        (score,) = judge(pool, request("hang"))
    assert (score.value, score.errors) == (value, ("moody: timed out after 0.3 s",))
    assert score.parts == {"length": 4.0} | ({"moody": 0.0} if on_error == "zero" else {})


def test_a_class_is_set_up_in_every_process_and_torn_down_at_the_end(
    plugin: str, tmp_path: Path
) -> None:
    connection = RewardComponent(name="connection", params={"folder": str(tmp_path)})
    with running(plugin, connection, num_workers=2) as pool:
        assert list(tmp_path.iterdir()) == []  # checking the configuration sets nothing up
        asyncio.run(pool.ready())
        assert len(list(tmp_path.iterdir())) == 2
        assert values(judge(pool, request("a"), request("b"))) == [1.0, 1.0]
    assert list(tmp_path.iterdir()) == []


def test_close_does_not_wait_for_a_busy_process(plugin: str, tmp_path: Path) -> None:
    connection = RewardComponent(name="connection", params={"folder": str(tmp_path)})

    async def close_while_judging(pool: ScorerPool) -> float:
        await pool.ready()
        task = asyncio.create_task(pool.score(request("hang")))
        await asyncio.sleep(0.1)
        start = time.monotonic()
        await asyncio.to_thread(pool.close)
        with pytest.raises(WorkerError, match="closed"):
            await task
        return time.monotonic() - start

    with running(plugin, connection) as pool:
        assert asyncio.run(close_while_judging(pool)) < TIMEOUT_S


def test_a_class_that_cannot_be_set_up_is_said_at_the_start(plugin: str, tmp_path: Path) -> None:
    params = {"folder": str(tmp_path), "fails": True}
    with running(plugin, RewardComponent(name="connection", params=params)) as pool:
        message = "'connection' cannot be set up: ConnectionError: nobody there"
        with pytest.raises(WorkerError, match=message):
            asyncio.run(pool.ready())
