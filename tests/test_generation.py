"""The source of groups: who has the devices when, and what a checkpoint remembers of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path

import pytest

from rlstack.errors import CheckpointError, RewardError
from rlstack.generation import GroupSampler
from rlstack.seeds import Domain
from rlstack.types import GenerationRequest, RewardRequest, Rollout, SamplingSettings, Score
from tests.fakes import FakeEngines, FakeScorer, Journal
from tests.test_controller import make_controller, prompts_of, run


def test_taking_ends_with_the_devices_at_the_trainer_and_publishing_with_new_weights(
    tmp_path: Path,
) -> None:
    controller, journal, _ = make_controller(tmp_path)
    taken = run(controller.source.take(3))
    assert [group.number for group in taken.groups] == [0, 1, 2]
    assert journal.events == ["generate v0", "generate 12", "train v0"]
    run(controller.source.publish(1))
    assert journal.events[-1] == "generate v1"
    again = run(controller.source.take(2))
    assert [group.number for group in again.groups] == [3, 4]
    versions = {v for g in again.groups for r in g.rollouts for v in r.policy_versions.tolist()}
    assert versions == {1}


def test_a_restored_source_gives_the_groups_that_come_next(tmp_path: Path) -> None:
    controller, _, _ = make_controller(tmp_path)
    run(controller.step(1))
    state = controller.state()
    expected = run(controller.step(2))

    other, _, _ = make_controller(tmp_path)
    other.restore(state)
    assert (other.policy_version, other.kl_coef) == (1, controller.kl_coef)
    found = run(other.step(2))
    for one, two in zip(expected.groups, found.groups, strict=True):
        assert one.number == two.number
        assert [r.text for r in one.rollouts] == [r.text for r in two.rollouts]


def test_a_state_of_other_prompts_is_refused(tmp_path: Path) -> None:
    controller, _, _ = make_controller(tmp_path, dull=2)
    state = controller.state()
    state["source"] = {**state["source"], "fingerprint": "of others"}
    with pytest.raises(CheckpointError, match="other training data"):
        controller.restore(state)


def test_paused_gives_the_engines_with_the_published_weights(tmp_path: Path) -> None:
    controller, journal, _ = make_controller(tmp_path)
    run(controller.step(1))
    journal.events.clear()

    async def pause() -> None:
        async with controller.source.paused() as sampler:
            assert sampler.seed == controller.config.seed
            journal.events.append("inside")

    run(pause())
    assert journal.events == ["generate v1", "inside"]


def test_a_scorer_that_fails_is_told_of_while_others_generate() -> None:
    left: list[bool] = []

    class Engines(FakeEngines):
        async def generate(
            self, requests: Sequence[GenerationRequest], sampling: SamplingSettings
        ) -> AsyncIterator[tuple[int, Rollout]]:
            try:
                async for item in super().generate(requests, sampling):
                    yield item
                    await asyncio.sleep(60)
            finally:
                left.append(True)

    class Scorer(FakeScorer):
        async def score_group(
            self, requests: Sequence[Awaitable[RewardRequest]], *, step: int
        ) -> list[Score]:
            await requests[-1]
            raise RewardError("no gold answer")

    sampler = GroupSampler(engines=Engines(Journal()), scorer=Scorer(), seed=0)

    async def sample() -> None:
        async with asyncio.timeout(5):
            await sampler.sample(
                prompts_of(2),
                domain=Domain.ROLLOUT,
                numbers=[0, 1],
                num_samples=2,
                sampling=SamplingSettings(temperature=1.0, max_response_tokens=4),
                version=0,
            )

    with pytest.raises(RewardError, match="no gold answer"):
        run(sample())
    assert left == [True]
