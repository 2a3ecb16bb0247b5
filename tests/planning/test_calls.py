"""What a step is declared to call is what `Controller.step` calls, in an order that is allowed."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.planning.calls import Call, CallKind, calls
from rlstack.types import RewardRequest, Score
from tests.config.test_load import rl_values
from tests.fakes import FakeMovingReference, FakeReference, FakeScorer, Journal
from tests.test_controller import make_controller, run

AVAILABLE = {"prompts", "weights"}
"""What is there when a step begins."""


class CountingScorer(FakeScorer):
    """Notes how many responses each group has."""

    journal: Journal

    async def score_group(
        self, requests: Sequence[Awaitable[RewardRequest]], *, step: int
    ) -> list[Score]:
        scores = await super().score_group(requests, step=step)
        self.journal.events.append(f"scored {len(scores)}")
        return scores


def observed(events: Sequence[str], *, rows: int) -> list[tuple[str, CallKind, int]]:
    """(role, kind, rows) of every call that the fakes have noted, groups of one call together."""
    found: list[tuple[str, CallKind, int]] = []
    for event in events:
        match event.split():
            case ["generate", number, *_] if number.isdecimal():
                found.append(("engines", CallKind.GENERATE, int(number)))
            case ["scored", number]:
                if found[-1][:2] == ("scorer", CallKind.SCORE):
                    found[-1] = (*found[-1][:2], found[-1][2] + int(number))
                else:
                    found.append(("scorer", CallKind.SCORE, int(number)))
            case ["logprobs"]:
                found.append(("policy", CallKind.FORWARD, rows))
            case ["reference", "logprobs"]:
                found.append(("reference", CallKind.FORWARD, rows))
            case ["reference", "moves", _]:
                found.append(("reference", CallKind.MOVE, 0))
            case ["values"]:
                found.append(("critic", CallKind.FORWARD, rows))
            case ["update", number]:
                found.append(("policy", CallKind.UPDATE, int(number)))
            case ["critic", "update", number]:
                found.append(("critic", CallKind.UPDATE, int(number)))
            case ["generate", version] if version != events[0].split()[1]:
                found.append(("policy", CallKind.PUBLISH, 0))
            case _:
                pass
    return found


def signature(call: Call) -> tuple[str, CallKind, int]:
    return call.role, call.kind, call.rows


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("algorithm.kl.coef=0.1", "algorithm.epochs=2", "algorithm.updates_per_epoch=2"),
        ("algorithm.kl.coef=0.1", "reference.update.every=2"),
        ("algorithm=remax",),
        ("algorithm=ppo", "algorithm.updates_per_epoch=2", "critic.warmup_steps=1"),
    ],
    ids=["grpo", "reference", "moving reference", "baseline", "critic"],
)
def test_a_step_makes_the_declared_calls(
    tmp_path: Path, overrides: tuple[str, ...], step: int
) -> None:
    scorer = CountingScorer()
    controller, journal, _ = make_controller(tmp_path, *overrides, scorer=scorer)
    scorer.journal = journal
    if controller.config.algorithm.needs_reference:
        controller.roles = replace(controller.roles, reference=FakeReference(journal))
    every = controller.config.reference.update.every
    if every is not None:
        moving = FakeMovingReference(journal)
        controller.roles = replace(controller.roles, moving_reference=moving)
    for number in range(1, step):
        run(controller.step(number))
        journal.events.clear()
    asyncio.run(controller.step(step))
    critic = controller.config.critic
    declared = calls(
        controller.config,
        critic_only=critic is not None and step <= critic.warmup_steps,
        moves_reference=every is not None and step % every == 0,
    )
    made = observed(journal.events, rows=16)
    assert Counter(made) == Counter(map(signature, declared))
    # In the order of what was made, each call finds what it reads.
    waiting, results = list(declared), set(AVAILABLE)
    for call in made:
        ready = [c for c in waiting if signature(c) == call and set(c.inputs) <= results]
        assert ready, (
            f"{call} was made before {[c.inputs for c in waiting if signature(c) == call]}"
        )
        waiting.remove(ready[0])
        results.add(ready[0].output)
    assert not waiting


def test_each_call_stands_behind_those_that_it_reads_from() -> None:
    declared = calls(parse(RLConfig, rl_values("algorithm=ppo", "algorithm.updates_per_epoch=4")))
    results = set(AVAILABLE)
    for call in declared:
        assert set(call.inputs) <= results, call
        results.add(call.output)
    assert len(results) == len(AVAILABLE) + len(declared)  # every result has a name of its own
