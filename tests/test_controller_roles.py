"""The critic, filtration and broken-off episodes in a step, on fake roles."""

from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlstack.types import (
    GenerationRequest,
    RewardRequest,
    Rollout,
    SamplingSettings,
    Score,
    TurnRecord,
)
from tests.fakes import FakeCritic, FakeEngines, FakeMovingReference, FakeReference, FakeScorer
from tests.test_controller import make_controller, run


def test_a_critic_learns_beside_the_policy_and_alone_while_it_warms_up(tmp_path: Path) -> None:
    controller, journal, policy = make_controller(
        tmp_path,
        "algorithm=ppo",
        "algorithm.updates_per_epoch=2",
        "algorithm.kl.coef=0",
        "critic.warmup_steps=1",
    )
    result = run(controller.step(1))
    update = ["critic update 8"] * 2
    assert journal.events == [
        *("generate v0", "generate 16", "train v0", "logprobs", "values"),
        *update,
        "generate v0",
    ]
    assert controller.policy_version == 0
    assert result.metrics.values()["critic/value_mean"] == 0.5
    journal.events.clear()
    run(controller.step(2))
    assert journal.events[-5:] == [*["update 8", "critic update 8"] * 2, "generate v1"]
    critic = controller.roles.critic
    assert isinstance(critic, FakeCritic)
    for batch, lesson in zip(policy.batches, critic.batches[2:], strict=True):
        # One reward at the end, no discount: every token's return is its rollout's reward.
        per_token = torch.where(lesson.loss_mask, lesson.rewards.unsqueeze(1), 0.0)
        torch.testing.assert_close(lesson.returns, per_token)
        assert torch.equal(batch.token_ids, lesson.token_ids)


def test_the_reference_moves_after_the_updates_of_its_steps_alone(tmp_path: Path) -> None:
    controller, journal, _ = make_controller(
        tmp_path,
        "algorithm.kl.coef=0.1",
        "reference.update.every=2",
        "reference.update.mix=0.5",
    )
    controller.roles = replace(
        controller.roles,
        reference=FakeReference(journal),
        moving_reference=FakeMovingReference(journal),
    )
    moved = []
    for step in (1, 2, 3, 4):
        run(controller.step(step))
        moved.append(journal.events[-2:] == ["reference moves 0.5", f"generate v{step}"])
        assert journal.events.count("reference moves 0.5") == moved[-1]
        journal.events.clear()
    assert moved == [False, True, False, True]


def test_filtration_trains_on_the_chosen_rollouts_alone(tmp_path: Path) -> None:
    controller, _, policy = make_controller(
        tmp_path,
        "algorithm.filtration.name=best_worst",
        "placement.trainer_ranks=3",
        "data.prompts_per_step=6",
    )
    result = run(controller.step(1))
    batch = policy.batches[0]
    taught = batch.loss_mask.any(dim=1)
    # Best and worst of every group, filled up to what three ranks can share.
    expected = sorted(
        reward for group in result.groups for reward in (group.rewards.min(), group.rewards.max())
    )
    assert sorted(batch.rewards[taught].tolist()) == expected
    assert (int(taught.sum()), batch.num_rows) == (12, 12)
    values = result.metrics.values()
    assert values["reward/mean"] == pytest.approx(
        np.mean([group.rewards for group in result.groups])
    )
    assert values["filtration/kept_fraction"] == 12 / sum(len(g.rollouts) for g in result.groups)
    assert values["filtration/reward"] == pytest.approx(np.mean(expected))
    assert values["update/num_tokens"] == batch.loss_mask.sum() < values["rollout/num_tokens"]


def test_rows_that_fill_a_filtered_batch_teach_nothing(tmp_path: Path) -> None:
    controller, _, policy = make_controller(
        tmp_path,
        "algorithm.filtration.name=length",
        "+algorithm.filtration.params.max_tokens=2",
        "algorithm.updates_per_epoch=2",
        "placement.trainer_ranks=4",
    )
    result = run(controller.step(1))
    short = sum(len(r.response_ids) <= 2 for g in result.groups for r in g.rollouts)
    rows = sum(batch.num_rows for batch in policy.batches)
    taught = sum(int(batch.loss_mask.any(dim=1).sum()) for batch in policy.batches)
    assert 0 < short < 16
    assert taught == short
    assert rows == -(-short // 8) * 8
    for batch in policy.batches:
        assert bool(batch.rewards[~batch.loss_mask.any(dim=1)].isnan().all())


class BrokenEpisodes(FakeEngines):
    """The environment fails in every second rollout, after an action."""

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings
    ) -> AsyncIterator[tuple[int, Rollout]]:
        async for number, rollout in super().generate(requests, sampling):
            turns = (TurnRecord(action=rollout.text, end=1, answer=None),)
            error = "environment: broken" if number % 2 else None
            yield number, replace(rollout, turns=turns, error=error)


class ListeningScorer(FakeScorer):
    """Remembers what it was asked to judge."""

    def __init__(self) -> None:
        self.requests: list[RewardRequest] = []

    async def score_group(
        self, requests: Sequence[Awaitable[RewardRequest]], *, step: int
    ) -> list[Score]:
        self.requests += [await request for request in requests]
        scores = await super().score_group(requests, step=step)
        return [replace(score, turn_rewards=(score.value or 0.0,)) for score in scores]


def test_an_episode_that_its_environment_broke_off_has_no_reward(tmp_path: Path) -> None:
    scorer = ListeningScorer()
    controller, _, _ = make_controller(tmp_path, engines_class=BrokenEpisodes, scorer=scorer)
    result = run(controller.step(1))
    for group in result.groups:
        for rollout, score in zip(group.rollouts, group.scores, strict=True):
            if rollout.error is None:
                assert score.value == float(rollout.text)
            else:
                assert score == Score(value=None, errors=("environment: broken",))
    assert {request.turns[0].action for request in scorer.requests} == {"0", "1"}
    values = result.metrics.values()
    assert values["reward/errors"] == 8
    assert values["rollout/num_turns"] == 1
