"""The order of a step, its batches, seeds and dynamic sampling, on fake roles."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlstack.commands.rl_roles import chosen_filtration
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.controller import Controller, Roles, StepResult
from rlstack.data.dataset import Dataset, SkipReport, Source
from rlstack.data.sampler import PromptSampler
from rlstack.errors import RewardError
from rlstack.generation import GroupSampler, OnDemand
from rlstack.protocols import Scorer
from rlstack.run.timeline import Timeline
from rlstack.types import (
    GenerationRequest,
    Prompt,
    RewardRequest,
    Rollout,
    SamplingSettings,
    Score,
)
from tests.config.test_load import rl_values
from tests.fakes import (
    FakeCritic,
    FakeEngines,
    FakePolicy,
    FakeReallocator,
    FakeReference,
    FakeScorer,
    Journal,
)


def prompts_of(count: int, *, dull: int = 0) -> tuple[Prompt, ...]:
    """Prompts, the first ones such that every response to them is worth nothing."""
    return tuple(
        Prompt(
            prompt_id=str(index),
            data_source="dull" if index < dull else "lively",
            text="p",
            token_ids=np.array([1, 2]),
            answer=None,
            reward=None,
            metadata={},
        )
        for index in range(count)
    )


def make_controller(
    tmp_path: Path,
    *overrides: str,
    dull: int = 0,
    engines_class: type[FakeEngines] = FakeEngines,
    scorer: Scorer | None = None,
) -> tuple[Controller, Journal, FakePolicy]:
    config = parse(
        RLConfig,
        rl_values("data.prompts_per_step=4", "rollout.num_samples=4", *overrides),
    )
    prompts = prompts_of(12, dull=dull)
    dataset = Dataset(
        sources=(Source(name="s", weight=None, samples=prompts),),
        skipped=SkipReport(counts={}, messages=()),
    )
    journal = Journal()
    engines = engines_class(journal)
    policy = FakePolicy(journal)
    roles = Roles(
        policy=policy,
        reference=None,
        critic=FakeCritic(journal) if config.critic else None,
        filtration=chosen_filtration(config),
    )
    timeline = Timeline(tmp_path, on_span=lambda _: None)
    source = OnDemand(
        config,
        GroupSampler(engines=engines, scorer=scorer or FakeScorer(), seed=config.seed),
        prompts=PromptSampler(dataset, seed=0, shuffle=False, curriculum=None),
        reallocator=FakeReallocator(journal, engines),
        timeline=timeline,
    )
    controller = Controller(config, roles, source, pad_token_id=0, timeline=timeline)
    return controller, journal, policy


def run(awaitable: Any) -> Any:
    return asyncio.run(awaitable)


def test_three_steps_in_order(tmp_path: Path) -> None:
    controller, journal, _ = make_controller(tmp_path, "algorithm.updates_per_epoch=2")
    for step in (1, 2, 3):
        run(controller.step(step))
    expected = []
    for version in range(3):
        expected += [f"generate v{version}", "generate 16", f"train v{version}", "logprobs"]
        expected += ["update 8", "update 8", f"generate v{version + 1}"]
    assert journal.events == expected
    assert controller.policy_version == 3


def test_an_epoch_trains_every_row_once_with_the_denominators_of_its_update(
    tmp_path: Path,
) -> None:
    controller, _, policy = make_controller(
        tmp_path, "algorithm.updates_per_epoch=4", "algorithm.epochs=2"
    )
    result: StepResult = run(controller.step(1))
    assert len(policy.batches) == 8
    for epoch in (policy.batches[:4], policy.batches[4:]):
        tokens = sum(int(batch.loss_mask.sum()) for batch in epoch)
        assert tokens == sum(len(r.response_ids) for g in result.groups for r in g.rollouts)
    for batch in policy.batches:
        assert batch.num_loss_tokens == int(batch.loss_mask.sum())
        assert batch.num_rollouts == batch.num_rows


def test_rollouts_meet_their_own_rewards(tmp_path: Path) -> None:
    controller, _, policy = make_controller(tmp_path)
    result: StepResult = run(controller.step(1))
    for group in result.groups:
        for rollout, score in zip(group.rollouts, group.scores, strict=True):
            assert score.value == float(rollout.text)
    (batch,) = policy.batches
    for group_id in batch.group_ids.unique():
        rows = batch.group_ids == group_id
        advantages = batch.advantages[rows].sum(dim=1) / batch.loss_mask[rows].sum(dim=1)
        above = batch.rewards[rows] > batch.rewards[rows].mean()
        assert torch.equal(advantages > 0, above)


def test_seeds_differ_between_prompts_samples_and_steps_and_repeat_with_the_run(
    tmp_path: Path,
) -> None:
    def texts() -> list[list[str]]:
        controller, _, _ = make_controller(tmp_path)
        results: list[StepResult] = [run(controller.step(step)) for step in (1, 2)]
        return [
            [r.text + str(len(r.response_ids)) for g in result.groups for r in g.rollouts]
            for result in results
        ]

    first, second = texts()
    assert [first, second] == texts()
    assert first != second
    assert len(set(first)) > 2


def test_dynamic_sampling_replaces_groups_without_signal(tmp_path: Path) -> None:
    controller, journal, _ = make_controller(
        tmp_path, "algorithm.dynamic_sampling.enabled=true", dull=3
    )
    result: StepResult = run(controller.step(1))
    assert len(result.groups) == 4
    assert all(group.has_signal for group in result.groups)
    assert journal.events[1] == "generate 16"
    assert journal.events[2] in ("generate 12", "generate 16")


def test_dynamic_sampling_fills_up_after_its_last_round(tmp_path: Path) -> None:
    controller, journal, _ = make_controller(
        tmp_path,
        "algorithm.dynamic_sampling.enabled=true",
        "algorithm.dynamic_sampling.max_rounds=2",
        dull=12,
    )
    result: StepResult = run(controller.step(1))
    assert len(result.groups) == 4
    assert journal.events.count("generate 16") == 2


@pytest.mark.parametrize(
    ("target", "expected"), [("0.1", [0.2, 0.2 * 1.02, 0.2 * 1.02**2]), ("null", [0.2, 0.2, 0.2])]
)
def test_the_kl_coefficient_is_adapted_after_each_step(
    tmp_path: Path, target: str, expected: list[float]
) -> None:
    """16 rollouts a step, a horizon of 160 and far too much KL: 2% more a step."""
    controller, _, policy = make_controller(
        tmp_path,
        "algorithm.kl.coef=0.2",
        f"algorithm.kl.target={target}",
        "algorithm.kl.horizon=160",
        "algorithm.updates_per_epoch=2",
    )
    policy.ref_kl = 5.0
    logged = [run(controller.step(step)).metrics.values()["policy/kl_coef"] for step in (1, 2, 3)]
    assert logged == pytest.approx(expected)
    assert [batch.kl_coef for batch in policy.batches[::2]] == pytest.approx(expected)
    assert [batch.kl_coef for batch in policy.batches[1::2]] == pytest.approx(expected)


def test_the_adapted_coefficient_weighs_the_penalty_on_rewards(tmp_path: Path) -> None:
    """Unwhitened advantages of rollouts that differ in length and KL follow the coefficient."""

    def advantages(kl_coef: float) -> torch.Tensor:
        controller, _, policy = make_controller(
            tmp_path,
            "algorithm=dr_grpo",
            "algorithm.kl.coef=0.2",
            "algorithm.kl.placement=reward",
            "algorithm.kl.estimator=k1",
            dull=12,
        )
        controller.roles = replace(controller.roles, reference=FakeReference())
        controller.kl_coef = kl_coef
        run(controller.step(1))
        return policy.batches[0].advantages

    assert advantages(0.5).abs().sum() > 0
    torch.testing.assert_close(advantages(1.5), 3 * advantages(0.5))


def test_without_a_reference_no_kl_coefficient_is_logged(tmp_path: Path) -> None:
    controller, _, _ = make_controller(tmp_path)
    assert "policy/kl_coef" not in run(controller.step(1)).metrics.values()


def test_evaluation_samples_every_prompt_of_the_current_policy(tmp_path: Path) -> None:
    controller, journal, _ = make_controller(tmp_path, "evaluation.num_samples=3")
    result: StepResult = run(controller.evaluate(prompts_of(5)))
    assert journal.events == ["generate v0", "generate 15"]
    assert 0 <= result.metrics.values()["eval/pass@1"] <= 1


def test_remax_scores_a_greedy_response_to_every_prompt_and_trains_on_none(tmp_path: Path) -> None:
    controller, journal, policy = make_controller(
        tmp_path, "algorithm=remax", "rollout.num_samples=2", dull=1
    )
    result: StepResult = run(controller.step(1))
    assert journal.events[:4] == ["generate v0", "generate 8", "generate 4 greedily", "train v0"]
    assert "update 8" in journal.events
    baselines = [group.baseline.value for group in result.groups if group.baseline]
    assert baselines == [0.0, 1.0, 1.0, 1.0]  # the first prompt is dull
    assert result.metrics.values()["reward/baseline"] == 0.75
    (batch,) = policy.batches
    assert batch.baseline_rewards is not None
    expected = batch.rewards - batch.baseline_rewards
    for row in range(batch.num_rows):
        assert (batch.advantages[row][batch.loss_mask[row]] == expected[row]).all()
    assert expected.min() < 0


def test_remax_needs_one_rollout_a_prompt(tmp_path: Path) -> None:
    controller, journal, policy = make_controller(
        tmp_path, "algorithm=remax", "rollout.num_samples=1"
    )
    run(controller.step(1))
    assert journal.events[1:3] == ["generate 4", "generate 4 greedily"]
    (batch,) = policy.batches
    assert batch.num_rows == 4
    assert batch.advantages.any()


def test_no_other_algorithm_asks_for_greedy_responses(tmp_path: Path) -> None:
    controller, journal, policy = make_controller(tmp_path, "algorithm=opo")
    result: StepResult = run(controller.step(1))
    assert journal.events[:3] == ["generate v0", "generate 16", "train v0"]
    assert all(group.baseline is None for group in result.groups)
    assert policy.batches[0].baseline_rewards is None
    assert "reward/baseline" not in result.metrics.values()


class WatchfulScorer(FakeScorer):
    """Notes the step of every group and when its first rollout arrives."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.first_arrived = asyncio.Event()
        self.fails = False

    async def score_group(
        self, requests: Sequence[Awaitable[RewardRequest]], *, step: int
    ) -> list[Score]:
        self.steps.append(step)
        scores: list[Score] = []
        for request in requests:
            response = (await request).response
            self.first_arrived.set()
            if self.fails:
                raise RewardError("stop")
            scores.append(Score(value=float(response)))
        return scores


class PatientEngines(FakeEngines):
    """Ends no other response before the first one is being judged."""

    scorer: WatchfulScorer

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings
    ) -> AsyncIterator[tuple[int, Rollout]]:
        async for finished in super().generate(list(reversed(requests)), sampling):
            yield finished
            await asyncio.wait_for(self.scorer.first_arrived.wait(), timeout=10)


def make_watchful(tmp_path: Path) -> tuple[Controller, WatchfulScorer]:
    scorer = WatchfulScorer()

    class Engines(PatientEngines):
        pass

    Engines.scorer = scorer
    controller, _, _ = make_controller(tmp_path, engines_class=Engines, scorer=scorer)
    return controller, scorer


def test_rollouts_are_judged_while_others_generate_and_the_scorer_knows_the_step(
    tmp_path: Path,
) -> None:
    controller, scorer = make_watchful(tmp_path)
    for step in (1, 2):
        scorer.first_arrived = asyncio.Event()
        run(controller.step(step))
    assert scorer.steps == [0] * 4 + [1] * 4


def test_a_reward_that_stops_the_run_leaves_no_group_waiting(tmp_path: Path) -> None:
    controller, scorer = make_watchful(tmp_path)
    scorer.fails = True

    async def step() -> set[Any]:
        with pytest.raises(RewardError, match="stop"):
            await controller.step(1)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert run(step()) == set()
