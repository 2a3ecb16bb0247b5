"""What launching connects; actors that note their calls stand for GPUs that are not there."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rlstack.planning.placement import Placement, place
from rlstack.planning.spec import RunSpec
from rlstack.types import Phase
from tests.planning.clusters import cluster, run
from workers.groups.engines import EngineGroup
from workers.groups.ranks import CriticGroup, PolicyGroup
from workers.groups.reallocator import Reallocator
from workers.launch import launch
from workers.specs import EngineState, SendReport, WrittenFiles


class Noted:
    """Any object: its calls go to `events`, and `answers` has what some of them return."""

    def __init__(self, name: str, events: list[str], **answers: Any) -> None:
        self._name, self._events, self._answers = name, events, answers

    def __getattr__(self, call: str) -> Any:
        if call.startswith("__"):
            raise AttributeError(call)

        def noted(*_: Any, **__: Any) -> Any:
            self._events.append(f"{self._name} {call}")
            return self._answers.get(call)

        return noted


class Method:
    """Of an actor's handle."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    async def remote(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class Handle:
    """Of an actor that runs functions on what it has: a rank, or an engine's sampler."""

    def __init__(self, held: Noted) -> None:
        self.call = Method(lambda function, *arguments: function(held, *arguments))


def alive(_: Any) -> str:
    raise AssertionError("nobody dies here")


async def never(index: int, _: Any) -> Any:
    raise AssertionError(index)


async def reallocator(placement: Placement, events: list[str]) -> tuple[Reallocator, Any, Any]:
    wrote = WrittenFiles(node="here", sizes={})
    sent = SendReport(digests={}, num_bytes=0)
    handles: list[Any] = [Handle(Noted("policy", events, send_weights=sent, save=wrote))]
    policy = PolicyGroup(handles, role="policy", obituary=alive)
    handles = [Handle(Noted("critic", events, save=wrote))]
    critic = CriticGroup(handles, role="critic", obituary=alive)
    state = EngineState(weight_version="3", received=[], checksums=[])
    handles = [Handle(Noted("engine", events, commit=state))]
    engines = EngineGroup(handles, replace=never, max_restarts=0)
    made = await launch._reallocator(placement, policy, engines, [policy, critic])
    return made, policy, critic


SHARED = run(trainer_ranks=1)
DISAGGREGATED = run(mode="disaggregated")


@pytest.mark.parametrize("use", ["save", "load", "export", "merge_adapters", "reset_optimizer"])
def test_state_is_read_and_written_on_the_device_that_engines_take_turns_on(use: str) -> None:
    events: list[str] = []

    async def use_it() -> None:
        made, policy, critic = await reallocator(place(SHARED, cluster()), events)
        await made.enter(Phase.GENERATE, version=3)
        events.clear()
        for group in (policy, critic):
            arguments = () if use in ("merge_adapters", "reset_optimizer") else (Path("folder"),)
            await getattr(group, use)(*arguments)

    asyncio.run(use_it())
    assert events == [
        "engine sleep",
        "policy reload",
        "critic reload",
        f"policy {use}",
        f"critic {use}",
    ]


def test_engines_elsewhere_go_on_while_state_is_saved() -> None:
    events: list[str] = []

    async def save() -> None:
        made, policy, _ = await reallocator(place(DISAGGREGATED, cluster()), events)
        await made.enter(Phase.GENERATE, version=3)
        events.clear()
        await policy.save(Path("folder"))

    asyncio.run(save())
    assert events == ["policy save"]


class Started:
    """A group of ranks, or engines, that notes when it starts and leaves its devices."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    async def start(self) -> None:
        self.events.append(f"{self.name} start")

    async def offload(self) -> None:
        self.events.append(f"{self.name} offload")

    async def visible_devices(self) -> list[str]:
        return ["0", "1"]


class ActorsWithoutRay:
    """What `_start` needs of `Actors`."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.policy_gpus: list[str] = []


def start_calls(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the policy and the engines at the start, on a node with 8 GPUs."""
    events: list[str] = []
    policy = Started("policy", events)

    async def load(_: Any) -> None:
        events.append("engines start")

    async def without(*_: Any) -> None: ...

    monkeypatch.setattr(launch.RankStarter, "policy", lambda *_: policy)
    monkeypatch.setattr(launch, "start_engines", lambda *_: None)
    monkeypatch.setattr(launch, "load_engines", load)
    monkeypatch.setattr(launch, "_reallocator", without)
    start: Callable[..., Awaitable[Any]] = launch._start
    asyncio.run(start(ActorsWithoutRay(place(spec, cluster())), spec))  # type: ignore[arg-type]
    return events


def test_a_policy_without_engines_stays_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_calls(run(engines=False), monkeypatch) == ["policy start"]


def test_a_policy_leaves_its_gpu_before_the_engines_look_for_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = start_calls(SHARED, monkeypatch)
    assert events == ["policy start", "policy offload", "engines start"]
    assert "policy offload" not in start_calls(DISAGGREGATED, monkeypatch)
