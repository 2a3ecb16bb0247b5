"""Real environment processes running a plugin that misbehaves in every way one can."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlstack.errors import EnvironmentSetupError, EpisodeError, EpisodeTimeoutError, WorkerError
from rlstack.types import Task, Turn
from tests.workers.conftest import environment_pool
from workers.environments.pool import EnvironmentPool

TIMEOUT_S = 1.5

PLUGIN = """
import asyncio, ctypes, os, random, sys, time
from rewards.environments.registry import register_environment
from rlstack.types import Task, Turn

@register_environment("misbehave")
class Misbehave:
    opened, closed = [], []

    def __init__(self, *, fails: bool = False) -> None:
        if fails:
            raise LookupError("no such file")

    def reset(self, task: Task) -> str | None:
        self.said = []
        Misbehave.opened.append(self)
        if task.prompt == "bad":
            raise LookupError("no such row")
        if task.prompt == "count":
            return f"{len(Misbehave.opened)} opened, {len(Misbehave.closed)} closed"
        return task.prompt or None

    async def step(self, action: str) -> Turn:
        return await self.answer(action)

    async def answer(self, action: str) -> Turn:
        what, _, argument = action.partition(" ")
        if what == "loop":
            while True:
                pass
        if what == "stuck":  # in C, with the interpreter lock held
            ctypes.PyDLL(None).sleep(60)
        if what == "await":
            await asyncio.sleep(60)
        if what == "exit":
            os._exit(int(argument))
        if what == "raise":
            raise LookupError(argument)
        if what == "print":
            print("printed by an environment")
        if what == "no_turn":
            return argument
        if what == "pid":
            return Turn(observation=str(os.getpid()))
        if what == "modules":
            return Turn(observation=" ".join(sys.modules))
        if what == "random":
            return Turn(observation=str(random.SystemRandom().random()))
        self.said.append(action)
        return Turn(observation=" ".join(self.said))

    def close(self) -> None:
        Misbehave.closed.append(self)
        if "open" in self.said:
            raise LookupError("cannot close")

@register_environment("misbehave_in_order")
class MisbehaveInOrder(Misbehave):
    def step(self, action: str) -> Turn:
        return asyncio.run(self.answer(action))

@register_environment("starts_once")
class StartsOnce:
    def __init__(self, *, note: str) -> None:
        # The driver makes none; the first process makes several.
        if os.path.exists(note) and open(note).read() != str(os.getpid()):
            time.sleep(60)
        with open(note, "w") as file:
            file.write(str(os.getpid()))

    def reset(self, task: Task) -> str | None:
        return "begun"

    def step(self, action: str) -> Turn:
        os._exit(3)

@register_environment("waits")
class Waits:
    "Says how many were inside at once, of those in its process."
    inside = most = closed = 0

    async def reset(self, task: Task) -> str | None:
        if task.prompt == "hang":
            await asyncio.sleep(60)
        return str(Waits.closed) if task.prompt == "closed" else None

    async def close(self) -> None:
        Waits.closed += 1

    async def step(self, action: str) -> Turn:
        what, _, argument = action.partition(" ")
        Waits.inside += 1
        Waits.most = max(Waits.most, Waits.inside)
        try:
            if what == "until":  # as many are inside
                while Waits.most < int(argument):
                    await asyncio.sleep(0.01)
            if what == "hang":
                await asyncio.sleep(60)
            if what == "block":
                time.sleep(60)
            if what == "die":
                os._exit(7)
            await asyncio.sleep(0.1)
            return Turn(observation=str(Waits.most) if what == "until" else action)
        finally:
            Waits.inside -= 1
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugins") / "user_environments.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture(params=["misbehave", "misbehave_in_order"])
def pool(plugin: str, request: pytest.FixtureRequest) -> Iterator[EnvironmentPool]:
    pool = environment_pool(request.param, {}, plugins=(plugin,), timeout_s=TIMEOUT_S)
    yield pool
    pool.close()


@pytest.fixture
def waiting(plugin: str) -> Iterator[EnvironmentPool]:
    pool = environment_pool("waits", {}, plugins=(plugin,), timeout_s=4.0, num_workers=1)
    yield pool
    pool.close()


async def say(pool: EnvironmentPool, *actions: str, prompt: str = "") -> list[str]:
    episode = await pool.begin(Task(prompt=prompt))
    observations = [(await pool.step(episode, action)).observation for action in actions]
    await pool.end(episode)
    return observations


def test_episodes_are_kept_apart(pool: EnvironmentPool) -> None:
    async def scenario() -> None:
        first, second, third = [await pool.begin(Task(prompt=str(i))) for i in range(3)]
        assert [e.observation for e in (first, second, third)] == ["0", "1", "2"]
        # The first and the third share a process.
        assert first.process == third.process != second.process
        await asyncio.gather(pool.step(first, "a"), pool.step(second, "b"), pool.step(third, "c"))
        assert await pool.step(first, "d") == Turn(observation="a d")
        assert await pool.step(third, "e") == Turn(observation="c e")
        for episode in (first, second, third):
            await pool.end(episode)

    asyncio.run(scenario())


@pytest.mark.parametrize("action", ["loop", "stuck", "await"])
def test_one_that_hangs_is_ended(pool: EnvironmentPool, action: str) -> None:
    with pytest.raises(EpisodeTimeoutError, match=r"no answer after 1\.5 s"):
        asyncio.run(say(pool, action))
    assert asyncio.run(say(pool, "a", "b")) == ["a", "a b"]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("exit 3", "its process died with exit code 3"),
        ("raise no such thing", "LookupError: no such thing"),
        ("no_turn x", "step returned str; expected"),
    ],
)
def test_failures_end_their_own_episode(pool: EnvironmentPool, action: str, message: str) -> None:
    async def scenario() -> None:
        with pytest.raises(EpisodeError, match=message):
            await say(pool, action)
        with pytest.raises(EpisodeError, match="LookupError: no such row"):
            await say(pool, prompt="bad")
        with pytest.raises(EpisodeError, match="LookupError: cannot close"):
            await say(pool, "open")
        assert await say(pool, "print it") == ["print it"]

    asyncio.run(scenario())


def test_an_environment_whose_reset_fails_is_closed(plugin: str) -> None:
    pool = environment_pool("misbehave", {}, plugins=(plugin,), num_workers=1)

    async def scenario() -> None:
        for _ in range(3):
            with pytest.raises(EpisodeError, match="no such row"):
                await pool.begin(Task(prompt="bad"))
        assert (await pool.begin(Task(prompt="count"))).observation == "4 opened, 3 closed"

    try:
        asyncio.run(scenario())
    finally:
        pool.close()


def test_an_environment_whose_reset_took_too_long_is_closed(plugin: str) -> None:
    pool = environment_pool("waits", {}, plugins=(plugin,), num_workers=1, timeout_s=1.5)

    async def scenario() -> None:
        with pytest.raises(EpisodeTimeoutError, match=r"no answer after 1\.5 s"):
            await pool.begin(Task(prompt="hang"))
        assert (await pool.begin(Task(prompt="closed"))).observation == "1"

    try:
        asyncio.run(scenario())
    finally:
        pool.close()


def test_the_others_of_a_process_that_dies_are_played_again(pool: EnvironmentPool) -> None:
    async def scenario() -> None:
        innocent = await pool.begin(Task(prompt="p"))
        unlucky = await pool.begin(Task(prompt="p"))
        guilty = await pool.begin(Task(prompt="p"))
        drawn = await pool.begin(Task(prompt="p"))
        fifth = await pool.begin(Task(prompt="p"))
        assert innocent.process == guilty.process == fifth.process
        for episode in (innocent, fifth):
            await pool.step(episode, "a")
        await pool.step(fifth, "random")
        with pytest.raises(EpisodeError, match="died with exit code 5"):
            await pool.step(guilty, "exit 5")
        assert await pool.step(innocent, "b") == Turn(observation="a b")
        # What cannot be played again is not guessed about.
        with pytest.raises(EpisodeError, match=r"it answered otherwise; draw what is random"):
            await pool.step(fifth, "b")
        assert (await pool.step(unlucky, "c")).observation == "c"
        await pool.end(drawn)

    asyncio.run(scenario())


def test_a_stopped_process_costs_the_turn_that_finds_it(pool: EnvironmentPool) -> None:
    async def scenario() -> None:
        (stopped,) = await say(pool, "pid")
        _, second = [await pool.begin(Task(prompt="p")) for _ in range(2)]
        await pool.step(second, "a")
        os.kill(int(stopped), signal.SIGSTOP)
        await pool.begin(Task(prompt="p"))  # in the other process
        with pytest.raises(EpisodeTimeoutError, match=r"no answer after 1\.5 s"):
            await pool.begin(Task(prompt="p"))
        assert await pool.step(second, "b") == Turn(observation="a b")

    asyncio.run(scenario())


def test_they_run_in_other_processes_and_print_nowhere(
    pool: EnvironmentPool, capfd: pytest.CaptureFixture[str]
) -> None:
    pid, modules = asyncio.run(say(pool, "pid", "modules"))
    assert int(pid) != os.getpid()
    assert not {"torch", "ray", "transformers"} & set(modules.split())  # light to start
    asyncio.run(say(pool, "print"))
    assert "printed by an environment" not in capfd.readouterr().out


def test_mistakes_are_found_at_once(plugin: str) -> None:
    with pytest.raises(EnvironmentSetupError, match="'misbehve' is unknown"):
        environment_pool("misbehve", {}, plugins=(plugin,))
    broken = environment_pool("misbehave", {"fails": True}, plugins=(plugin,))
    try:
        with pytest.raises(
            WorkerError, match=r"process \d of 2 for misbehave .* start: LookupError"
        ):
            asyncio.run(broken.ready())
    finally:
        broken.close()


def test_a_pool_that_is_closed_says_so(plugin: str) -> None:
    pool = environment_pool("misbehave", {}, plugins=(plugin,), timeout_s=30)

    async def scenario() -> None:
        await pool.ready()
        episode = await pool.begin(Task(prompt="p"))
        stepping = asyncio.create_task(pool.step(episode, "await"))
        await asyncio.sleep(0.3)
        pool.close()
        with pytest.raises(WorkerError, match="were closed"):
            await stepping

    asyncio.run(scenario())
    pool.close()


def test_rows_that_cannot_be_sent_are_their_episodes_failure(
    pool: EnvironmentPool, tmp_path: Path
) -> None:
    with (tmp_path / "open").open("w") as file:
        task = Task(prompt="p", metadata={"file": file})
        with pytest.raises(EpisodeError, match="cannot be sent to a process"):
            asyncio.run(pool.begin(task))


def test_steps_that_await_are_inside_their_process_at_once(waiting: EnvironmentPool) -> None:
    async def scenario() -> None:
        episodes = [await waiting.begin(Task(prompt="p")) for _ in range(64)]
        # None is answered before all are inside.
        turns = await asyncio.gather(*(waiting.step(e, "until 64") for e in episodes))
        assert {turn.observation for turn in turns} == {"64"}
        for episode in episodes:
            await waiting.end(episode)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("hang", "no answer after 4 s"),
        ("block", "no answer after 4 s"),
        ("die", "its process died with exit code 7"),
    ],
)
def test_of_those_inside_at_once_the_bad_one_fails(
    waiting: EnvironmentPool, bad: str, message: str
) -> None:
    async def scenario() -> None:
        episodes = [await waiting.begin(Task(prompt="p")) for _ in range(6)]
        await asyncio.gather(*(waiting.step(episode, "before") for episode in episodes))
        actions = ["fine", "fine", bad, "fine", "fine", "fine"]
        found = await asyncio.gather(
            *(waiting.step(e, action) for e, action in zip(episodes, actions, strict=True)),
            return_exceptions=True,
        )
        assert isinstance(failure := found.pop(2), EpisodeError)
        assert str(failure) == message
        assert found == [Turn(observation="fine")] * 5
        assert (await waiting.step(episodes[0], "after")).observation == "after"

    asyncio.run(scenario())


def test_an_environment_that_hangs_at_its_second_start_costs_its_episodes(
    plugin: str, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    pool = environment_pool(
        "starts_once",
        {"note": str(first)},
        plugins=(plugin,),
        num_workers=1,
        start_timeout_s=4.0,
    )

    async def scenario() -> None:
        await pool.ready()
        died, other = [await pool.begin(Task(prompt="p")) for _ in range(2)]
        with pytest.raises(EpisodeError, match="died with exit code 3"):
            await pool.step(died, "")
        hangs = (
            r"environment process 1 of 1 for starts_once \(plugins: .*user_environments\.py\) "
            r"did not start within 4 s \(reward\.start_timeout_s\)"
        )
        with pytest.raises(EpisodeError, match=hangs):
            await pool.step(other, "")
        for episode in (died, other):
            await pool.end(episode)  # there is nothing to end, nor a process to wait for
        first.unlink()
        assert (await pool.begin(Task(prompt="p"))).observation == "begun"

    try:
        asyncio.run(scenario())
    finally:
        pool.close()
