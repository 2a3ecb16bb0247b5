"""Real scorer processes running a plugin file that misbehaves in every way a reward can."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.errors import RewardError, WorkerError
from rlstack.types import RewardRequest, Score
from workers.scoring.pool import ScorerPool

TIMEOUT_S = 1.5

PLUGIN = """
import ctypes, os, signal, subprocess, sys, time
from rewards.registry import register
from rlstack.types import RewardRequest, Score

@register("misbehave")
def misbehave(request: RewardRequest) -> float | Score:
    what, _, argument = request.response.partition(" ")
    if what == "loop":
        while True:
            pass
    if what == "stuck":  # in C, with the interpreter lock held
        ctypes.PyDLL(None).sleep(60)
    if what == "exit":
        os._exit(int(argument))
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "child":
        child = subprocess.Popen(["sleep", "60"])
        with open(argument, "w") as file:
            file.write(str(child.pid))
        time.sleep(60)
    if what == "raise":
        raise LookupError(argument)
    if what == "print":
        print("printed by a reward")
        return 1.0
    if what == "pid":
        return Score(value=1.0, extracted_answer=str(os.getpid()))
    if what == "modules":
        return Score(value=1.0, extracted_answer=" ".join(sys.modules))
    return float(len(request.response))
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugins") / "user_rewards.py"
    path.write_text(PLUGIN)
    return str(path)


def config(plugin: str, *, num_workers: int = 2, name: str = "misbehave") -> RewardConfig:
    return RewardConfig(
        components=(RewardComponent(name=name),),
        plugins=(plugin,),
        num_workers=num_workers,
        timeout_s=TIMEOUT_S,
        memory_gib=16,
    )


@pytest.fixture(scope="module")
def pool(plugin: str) -> Iterator[ScorerPool]:
    pool = ScorerPool(config(plugin))
    asyncio.run(pool.ready())
    yield pool
    pool.close()


def scores(pool: ScorerPool, *responses: str) -> list[Score]:
    async def gather() -> list[Score]:
        requests = [RewardRequest(prompt="p", response=response) for response in responses]
        return await asyncio.gather(*(pool.score(request) for request in requests))

    return asyncio.run(gather())


def process_ids(pool: ScorerPool) -> set[int]:
    """The pool's processes: whoever answers while more requests wait than it has processes."""
    return {int(score.extracted_answer or "") for score in scores(pool, *["pid"] * 16)}


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_every_request_gets_its_own_score(pool: ScorerPool) -> None:
    responses = ["x" * length for length in range(200)]
    assert [score.value for score in scores(pool, *responses)] == [float(n) for n in range(200)]


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("loop", "timed out after 1.5 s"),
        ("stuck", "timed out after 1.5 s"),
        ("exit 0", "the scorer process died with exit code 0 while judging"),
        ("exit 3", "the scorer process died with exit code 3 while judging"),
        ("crash", f"the scorer process died with exit code {-signal.SIGSEGV} while judging"),
        ("raise no gold", "misbehave: LookupError: no gold"),
    ],
)
def test_a_bad_reward_costs_one_sample(pool: ScorerPool, response: str, error: str) -> None:
    around = ["a", "bb", "ccc", "dddd"]
    before_and_after = scores(pool, *around, response, *around)
    bad = before_and_after.pop(len(around))
    assert bad == Score(value=None, errors=(error,), num_errors={"misbehave": 1})
    assert [score.value for score in before_and_after] == [1.0, 2.0, 3.0, 4.0] * 2


def test_time_out_starts_when_a_process_takes_the_request(pool: ScorerPool) -> None:
    results = scores(pool, *["loop"] * 4, "fine")
    assert [score.value for score in results] == [None] * 4 + [4.0]


def test_every_process_may_die_at_once(pool: ScorerPool) -> None:
    results = scores(pool, *["exit 1"] * 6, "fine")
    assert [score.value for score in results] == [None] * 6 + [4.0]


def test_an_idle_process_that_dies_costs_nothing(pool: ScorerPool) -> None:
    victims = process_ids(pool)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    assert wait_until(lambda: not any(is_running(victim) for victim in victims))
    assert [score.errors for score in scores(pool, *["fine"] * 8)] == [()] * 8
    assert process_ids(pool).isdisjoint(victims)


def test_a_stopped_process_costs_one_sample(plugin: str) -> None:
    pool = ScorerPool(config(plugin, num_workers=1))
    (stopped,) = process_ids(pool)
    os.kill(stopped, signal.SIGSTOP)
    assert scores(pool, "fine")[0].errors == ("timed out after 1.5 s",)
    assert process_ids(pool) != {stopped}
    assert not is_running(stopped)
    pool.close()


def test_what_a_reward_started_ends_with_it(pool: ScorerPool, tmp_path: Path) -> None:
    note = tmp_path / "child.pid"
    (score,) = scores(pool, f"child {note}")
    assert score.errors == ("timed out after 1.5 s",)
    assert wait_until(lambda: not is_running(int(note.read_text())))


def test_huge_response(pool: ScorerPool) -> None:
    (score,) = scores(pool, "y" * 5_000_000)
    assert score.value == 5_000_000.0


def test_a_request_that_cannot_be_pickled(pool: ScorerPool) -> None:
    request = RewardRequest(prompt="p", response="r", metadata={"lock": threading.Lock()})
    score = asyncio.run(pool.score(request))
    assert score.value is None
    assert score.errors[0].startswith("the request cannot be sent to a scorer process: cannot")


def test_processes_stay_light(pool: ScorerPool) -> None:
    (score,) = scores(pool, "modules")
    modules = set((score.extracted_answer or "").split())
    assert "rewards.registry" in modules
    assert modules.isdisjoint({"torch", "ray", "vllm", "transformers", "pytest"})


def test_prints_of_a_reward_go_to_standard_error(
    plugin: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = ScorerPool(config(plugin, num_workers=1))
    assert scores(pool, "print")[0].value == 1.0
    pool.close()
    pool.close()  # closing twice is harmless
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "printed by a reward\n")


def test_close_ends_the_processes_and_the_scores_under_way(plugin: str) -> None:
    pool = ScorerPool(config(plugin, num_workers=1))
    (process_id,) = process_ids(pool)

    async def close_while_scoring() -> None:
        task = asyncio.create_task(pool.score(RewardRequest(prompt="p", response="loop")))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(pool.close)
        with pytest.raises(WorkerError, match="the scorer pool was closed"):
            await task

    started = time.monotonic()
    asyncio.run(close_while_scoring())
    assert time.monotonic() - started < TIMEOUT_S
    assert not is_running(process_id)


def test_a_wrong_reward_is_an_error_in_the_caller(plugin: str) -> None:
    with pytest.raises(RewardError, match=r"'misbehaved' is unknown\. Did you mean 'misbehave'"):
        ScorerPool(config(plugin, name="misbehaved"))


def test_a_broken_plugin_is_an_error_in_the_caller(tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("import no_such_module")
    with pytest.raises(RewardError, match=r"reward plugin .* ModuleNotFoundError"):
        ScorerPool(config(str(plugin)))


def test_an_unknown_row_reward_is_an_error_in_the_caller(plugin: str) -> None:
    with pytest.raises(RewardError, match="Did you mean 'math_answer'"):
        ScorerPool(config(plugin, name="row"), row_rewards=["math_answr"])


def test_row_rewards_are_imported_before_the_first_request(plugin: str) -> None:
    pool = ScorerPool(
        RewardConfig(
            components=(RewardComponent(name="row"), RewardComponent(name="misbehave")),
            plugins=(plugin,),
            num_workers=1,
            timeout_s=TIMEOUT_S,
            memory_gib=16,
        ),
        row_rewards=["math_answer"],
    )
    (score,) = scores(pool, "modules")
    pool.close()
    assert "math_verify" in (score.extracted_answer or "").split()


def test_a_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    plugin = tmp_path / "vanishing.py"
    plugin.write_text(PLUGIN.replace("misbehave", "vanishing"))
    pool = ScorerPool(config(str(plugin), name="vanishing", num_workers=1))
    asyncio.run(pool.ready())
    plugin.unlink()
    scores(pool, "exit 1")
    with pytest.raises(WorkerError, match=r"could not start: reward plugin '.*vanishing\.py'"):
        scores(pool, "fine")
    plugin.write_text(PLUGIN.replace("misbehave", "vanishing"))
    assert [score.value for score in scores(pool, *["fine"] * 4)] == [4.0] * 4
    pool.close()


@pytest.mark.parametrize("on_error", ["unjudged", "raise"])
def test_a_set_up_that_hangs_in_a_replacement_costs_samples(tmp_path: Path, on_error: str) -> None:
    note, name = tmp_path / "started", f"starts_once_{on_error}"
    plugin = tmp_path / "starts_once.py"
    plugin.write_text(
        "import os, pathlib, time\n"
        "from rewards.registry import register\n"
        f"note = pathlib.Path({str(note)!r})\n"
        f"@register({name!r})\n"
        "class StartsOnce:\n"
        "    def __init__(self):\n"
        "        if note.exists():\n"
        "            time.sleep(60)\n"
        "        note.touch()\n"
        "    def __call__(self, request):\n"
        "        return os._exit(3) if request.response == 'die' else 1.0\n"
    )
    components = ({"name": name, "on_error": on_error},)
    pool = ScorerPool(
        RewardConfig.model_validate(
            config(str(plugin), num_workers=1).model_dump()
            | {"components": components, "start_timeout_s": 4.0}
        )
    )
    asyncio.run(pool.ready())
    hangs = (
        rf"scorer process 1 of 1 for {name} \(plugins: .*starts_once\.py\) did not start "
        r"within 4 s \(reward\.start_timeout_s\)"
    )
    try:
        if on_error == "raise":
            with pytest.raises(RewardError, match="exit code 3"):
                scores(pool, "die")
            with pytest.raises(RewardError, match=hangs):
                scores(pool, "fine")
            return
        died, waited = scores(pool, "die", "fine")
        assert died.num_errors == waited.num_errors == {name: 1}
        assert re.search(hangs, waited.errors[0])
        note.unlink()
        assert scores(pool, "fine")[0].value == 1.0
    finally:
        pool.close()


def test_processes_end_when_the_driver_is_killed(plugin: str) -> None:
    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import asyncio, sys, time\n"
            "from rlstack.config.reward import RewardComponent, RewardConfig\n"
            "from rlstack.types import RewardRequest\n"
            "from workers.scoring.pool import ScorerPool\n"
            "pool = ScorerPool(RewardConfig(components=(RewardComponent(name='misbehave'),),\n"
            "    plugins=(sys.argv[1],), num_workers=1, timeout_s=60, memory_gib=16))\n"
            "score = asyncio.run(pool.score(RewardRequest(prompt='', response='pid')))\n"
            "print(score.extracted_answer, flush=True)\n"
            "time.sleep(60)",
            plugin,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    process_id = int(driver.stdout.readline())
    assert is_running(process_id)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    assert wait_until(lambda: not is_running(process_id))
