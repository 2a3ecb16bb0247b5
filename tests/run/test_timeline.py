"""Spans add up to metrics, may overlap, and are written once even if a step is done twice."""

import asyncio
import time
from pathlib import Path

import pytest

from rlstack.run import jsonl
from rlstack.run.observers import Observers
from rlstack.run.timeline import Timeline


def test_spans_become_metrics_and_lines(tmp_path: Path) -> None:
    begun: list[str] = []
    timeline = Timeline(tmp_path, on_span=begun.append)
    timeline.begin_step(1)
    for _ in range(2):
        with timeline.span("rollout"):
            time.sleep(0.02)
    with timeline.span("update"):
        time.sleep(0.01)
    values = timeline.end_step().values()
    spans = jsonl.read(tmp_path / "timeline.jsonl")
    assert begun == ["rollout", "rollout", "update"]
    assert [(span["step"], span["name"]) for span in spans] == [(1, name) for name in begun]
    seconds = [span["end_s"] - span["start_s"] for span in spans]
    assert values["time/rollout_s"] == pytest.approx(seconds[0] + seconds[1])
    assert values["time/update_s"] == pytest.approx(seconds[2])
    assert 0.05 <= sum(seconds) <= values["time/step_s"]


def test_a_step_starts_at_zero_and_forgets_the_last_one(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path, on_span=lambda _: None)
    timeline.begin_step(1)
    with timeline.span("rollout"):
        time.sleep(0.05)
    timeline.begin_step(2)
    with timeline.span("update"):
        pass
    assert "time/rollout_s" not in timeline.end_step().values()
    last = jsonl.read(tmp_path / "timeline.jsonl")[-1]
    assert last["step"] == 2
    assert 0 <= last["start_s"] < 0.05


def test_spans_of_concurrent_tasks_overlap(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path, on_span=lambda _: None)

    async def work(name: str, inside: asyncio.Event, other: asyncio.Event) -> None:
        with timeline.span(name):
            inside.set()
            await other.wait()

    async def both() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        await asyncio.gather(work("policy", first, second), work("reference", second, first))

    timeline.begin_step(1)
    asyncio.run(both())
    spans = {span["name"]: span for span in jsonl.read(tmp_path / "timeline.jsonl")}
    assert spans["policy"]["start_s"] < spans["reference"]["start_s"]
    assert spans["reference"]["start_s"] < spans["policy"]["end_s"]


def test_a_span_that_raises_is_recorded(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path, on_span=lambda _: None)
    with pytest.raises(KeyError), timeline.span("update"):
        raise KeyError
    assert [span["name"] for span in jsonl.read(tmp_path / "timeline.jsonl")] == ["update"]


def test_a_resumed_run_has_the_spans_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(steps: range) -> None:
        timeline = Timeline(tmp_path, on_span=lambda _: None)
        for step in steps:
            timeline.begin_step(step)
            with timeline.span("rollout"):
                pass

    run(range(1, 4))
    with (tmp_path / "timeline.jsonl").open("a") as file:
        file.write('{"step": 4, "na')  # the line a kill cut short
    run(range(3, 6))
    assert [span["step"] for span in jsonl.read(tmp_path / "timeline.jsonl")] == [1, 2, 3, 4, 5]


def test_a_span_names_the_one_around_it_in_concurrent_tasks_too(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path, on_span=lambda _: None)
    timeline.begin_step(1)

    async def role(name: str) -> None:
        with timeline.span(name):
            await asyncio.sleep(0.01)

    async def step() -> None:
        with timeline.span("update"):
            await asyncio.gather(role("policy"), role("critic"))
        await role("rollout")

    asyncio.run(step())
    within = {span["name"]: span["within"] for span in jsonl.read(tmp_path / "timeline.jsonl")}
    assert within == {"update": None, "policy": "update", "critic": "update", "rollout": None}


def test_a_span_that_cannot_be_written_is_said_and_ends_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    timeline = Timeline(tmp_path / "gone", on_span=lambda _: None, observers=Observers(said.append))
    timeline.begin_step(1)
    for _ in range(2):
        with timeline.span("rollout"):
            pass
    assert "time/rollout_s" in timeline.end_step().values()
    (line,) = said
    assert "gone/timeline.jsonl" in line
