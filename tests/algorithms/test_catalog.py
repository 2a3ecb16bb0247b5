"""The whole loss from configuration: equal however a batch is split, and to a plain loop."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from rlstack.algorithms.catalog import estimate_advantages, policy_loss
from rlstack.batch import PolicyBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.metrics import merge
from tests.config.test_load import rl_values

ROWS, COLUMNS = 8, 7


def algorithm(*overrides: str) -> AlgorithmConfig:
    return parse(RLConfig, rl_values(*overrides)).algorithm


def token_batch(seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, COLUMNS + 1, (ROWS, 1), generator=generator)
    columns = torch.arange(COLUMNS)
    attention_mask = columns < lengths
    loss_mask = attention_mask & (columns >= 2)
    logprobs = -torch.rand(ROWS, COLUMNS, generator=generator)
    return TokenBatch(
        token_ids=torch.ones(ROWS, COLUMNS, dtype=torch.int64),
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        rollout_logprobs=torch.where(loss_mask, logprobs, 0.0),
        group_ids=torch.arange(ROWS) // 4,
        rewards=torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.0, float("nan")]),
    )


def policy_batch(config: AlgorithmConfig, seed: int = 0) -> PolicyBatch:
    batch = token_batch(seed)
    if config.needs_baseline:
        baselines = torch.tensor([0.25] * 4 + [1.0] * 4)
        batch = dataclasses.replace(batch, baseline_rewards=baselines)
    noise = torch.Generator().manual_seed(seed + 1)

    def near(values: torch.Tensor) -> torch.Tensor:
        moved = values + 0.3 * torch.randn(values.shape, generator=noise)
        return torch.where(batch.loss_mask, moved, 0.0)

    old, reference = near(batch.rollout_logprobs), near(batch.rollout_logprobs)
    estimate = estimate_advantages(batch, old, reference, config=config)
    fields: dict[str, Any] = {
        field.name: getattr(batch, field.name) for field in dataclasses.fields(TokenBatch)
    }
    return PolicyBatch(
        **fields,
        old_logprobs=old,
        ref_logprobs=reference,
        advantages=estimate.advantages,
        correction_weights=estimate.correction_weights,
        num_loss_tokens=int(batch.loss_mask.sum()),
        num_rollouts=int(batch.loss_mask.any(dim=1).sum()),
    )


VARIANTS = [
    [],
    ["algorithm=dr_grpo"],
    ["algorithm=rloo", "algorithm.kl.coef=0.1", "algorithm.kl.placement=reward"],
    ["algorithm=reinforce_plus_plus", "algorithm.kl.coef=0.1", "algorithm.kl.placement=reward",
     "algorithm.kl.estimator=k1"],
    ["algorithm=reinforce_plus_plus_baseline"],
    ["algorithm=remax"],
    ["algorithm=opo"],
    ["algorithm/advantage=gpg"],
    ["algorithm/advantage=maxrl"],
    ["algorithm=dapo", "algorithm.entropy_coef=0.01"],
    ["algorithm.kl.coef=0.2", "algorithm.kl.estimator=k2", "algorithm.policy_loss.dual_clip=1.5"],
    ["algorithm.reduction={name: sequence_mean}", "algorithm.correction.level=sequence"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda v: " ".join(v) or "grpo")
@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_parts_add_up_to_the_whole(overrides: list[str], num_parts: int) -> None:
    config = algorithm(*overrides)
    batch = policy_batch(config)
    logprobs = (batch.old_logprobs + 0.1 * batch.loss_mask).requires_grad_()
    entropy = torch.where(batch.loss_mask, 1.0 + logprobs.square(), 0.0)

    def loss(rows: torch.Tensor) -> Any:
        return policy_loss(
            batch.select(rows), logprobs[rows], entropy[rows], config=config, max_response_tokens=5
        )

    whole, whole_metrics = loss(torch.arange(ROWS))
    (expected,) = torch.autograd.grad(whole, logprobs, retain_graph=True)
    parts = [loss(torch.arange(ROWS)[part::num_parts]) for part in range(num_parts)]
    (found,) = torch.autograd.grad(sum(part for part, _ in parts), logprobs, retain_graph=True)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)
    assert found.abs().sum() > 0
    merged = merge(metrics for _, metrics in parts).values()
    for name, value in whole_metrics.values().items():
        assert merged[name] == pytest.approx(value, abs=1e-5), name
    assert whole_metrics.values()["policy/loss"] == pytest.approx(whole.item(), abs=1e-6)


def test_grpo_loss_equals_a_plain_loop() -> None:
    config = algorithm("algorithm.kl.coef=0.2")
    batch = policy_batch(config)
    logprobs = batch.old_logprobs + 0.15 * batch.loss_mask
    loss, metrics = policy_loss(
        batch, logprobs, torch.zeros_like(logprobs), config=config, max_response_tokens=5
    )
    total, count = 0.0, 0
    for row in range(ROWS):
        for column in range(COLUMNS):
            if not batch.loss_mask[row, column]:
                continue
            ratio = torch.exp(logprobs[row, column] - batch.old_logprobs[row, column])
            advantage = batch.advantages[row, column]
            surrogate = min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            x = logprobs[row, column] - batch.ref_logprobs[row, column]
            mismatch = batch.old_logprobs[row, column] - batch.rollout_logprobs[row, column]
            weight = mismatch.exp().clamp(max=2.0)
            total += float(-surrogate * weight + 0.2 * (torch.exp(-x) - 1 + x))
            count += 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    assert metrics.values()["policy/ref_kl"] > 0


def test_ratio_extremes_are_those_of_loss_tokens() -> None:
    config = algorithm()
    batch = policy_batch(config)
    logprobs = batch.old_logprobs + 0.15 * batch.loss_mask
    _, metrics = policy_loss(
        batch, logprobs, torch.zeros_like(logprobs), config=config, max_response_tokens=5
    )
    ratio = math.exp(0.15)
    assert metrics.values()["policy/ratio_max"] == pytest.approx(ratio)
    assert metrics.values()["policy/ratio_min"] == pytest.approx(ratio)  # not the 1 of padding


def test_rows_without_loss_tokens_have_no_ratio_extremes() -> None:
    config = algorithm()
    batch = policy_batch(config)
    empty = dataclasses.replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    zeros = torch.zeros_like(batch.old_logprobs)
    loss, metrics = policy_loss(empty, zeros, zeros, config=config, max_response_tokens=5)
    assert loss.item() == 0
    assert "policy/ratio_max" not in metrics.values()


def test_an_unjudged_rollout_trains_nothing_and_is_counted() -> None:
    batch = token_batch()
    zeros = torch.zeros_like(batch.rollout_logprobs)
    estimate = estimate_advantages(batch, zeros, zeros, config=algorithm())
    assert not estimate.advantages[7].any()
    values = estimate.metrics.values()
    assert values["reward/unjudged"] == 1 / 8
    assert values["reward/mean"] == pytest.approx(3.5 / 7)
    assert values["reward/groups_without_signal"] == 0


def test_kl_in_the_reward_lowers_the_advantage_of_what_drifted() -> None:
    batch = dataclasses.replace(token_batch(), rewards=torch.full((ROWS,), 0.5))
    reference = torch.zeros_like(batch.rollout_logprobs)
    old = torch.where(batch.loss_mask, 0.1, 0.0)
    old[0] = torch.where(batch.loss_mask[0], 2.0, 0.0)
    config = algorithm(
        "algorithm.kl.coef=1", "algorithm.kl.placement=reward", "algorithm.kl.estimator=k1"
    )
    estimate = estimate_advantages(batch, old, reference, config=config)
    first = estimate.advantages[0][batch.loss_mask[0]]
    others = estimate.advantages[1:4][batch.loss_mask[1:4]]
    assert float(first.max()) < float(others.min())


def test_remax_compares_with_the_greedy_response_alone() -> None:
    baselines = torch.tensor([0.0] * 4 + [1.0, 1.0, 1.0, float("nan")])
    batch = dataclasses.replace(token_batch(), baseline_rewards=baselines)
    zeros = torch.zeros_like(batch.rollout_logprobs)
    estimate = estimate_advantages(
        batch, zeros, zeros, config=algorithm("algorithm=remax", "rollout.num_samples=1")
    )
    per_rollout = estimate.advantages.sum(dim=1) / batch.loss_mask.sum(dim=1)
    expected = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 0.0, -1.0, 0.0])
    torch.testing.assert_close(per_rollout, expected)
    assert estimate.metrics.values()["reward/groups_without_signal"] == 0
    alone = dataclasses.replace(batch, group_ids=torch.arange(ROWS))
    estimate = estimate_advantages(alone, zeros, zeros, config=algorithm("algorithm=remax"))
    assert estimate.metrics.values()["reward/groups_without_signal"] == 5 / 8


def test_opo_weighs_by_loss_tokens_not_by_columns() -> None:
    batch = token_batch()
    zeros = torch.zeros_like(batch.rollout_logprobs)
    estimate = estimate_advantages(batch, zeros, zeros, config=algorithm("algorithm=opo"))
    lengths, rewards = batch.loss_mask[:4].sum(dim=1), batch.rewards[:4]
    expected = rewards - (lengths * rewards).sum() / lengths.sum()
    found = estimate.advantages[:4].sum(dim=1) / lengths
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(expected, rewards - rewards.mean())
