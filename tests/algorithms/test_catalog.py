"""The whole loss from configuration: equal however a batch is split, and to a plain loop."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from rlstack.algorithms import measurements, policy_losses, sequence_losses
from rlstack.algorithms.catalog import (
    critic_loss,
    estimate_advantages,
    next_kl_coef,
    policy_loss,
)
from rlstack.batch import CriticBatch, PolicyBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.metrics import Metrics, merge
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
    estimate = estimate_advantages(batch, old, reference, config=config, kl_coef=config.kl.coef)
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
        kl_coef=config.kl.coef,
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
    ["algorithm.kl.coef=0.2", "algorithm.kl.estimator=k3_corrected"],
    ["algorithm=gspo", "algorithm.policy_loss.clip_low=0.2", "algorithm.policy_loss.clip_high=0.2"],
    ["algorithm=gspo_token", "algorithm.policy_loss.clip_low=0.2",
     "algorithm.policy_loss.clip_high=0.2", "algorithm/correction=masked"],
    ["algorithm=cispo", "algorithm/correction=rejected", "algorithm.correction.low=0.9",
     "algorithm.correction.high=1.1"],
    ["algorithm=sapo", "algorithm/correction=none"],
    ["algorithm=gmpo"],
    ["algorithm=gpg", "algorithm/correction=icepop"],
    ["algorithm=m2po"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda v: " ".join(v) or "grpo")
@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_parts_add_up_to_the_whole(overrides: list[str], num_parts: int) -> None:
    config = algorithm(*overrides)
    batch = policy_batch(config)
    logprobs = (batch.old_logprobs + 0.1 * batch.loss_mask).requires_grad_()
    entropy = torch.where(batch.loss_mask, 1.0 + logprobs.square(), 0.0)

    def loss(rows: torch.Tensor) -> Any:
        return policy_loss(batch.select(rows), logprobs[rows], entropy[rows], config=config)

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
    loss, metrics = policy_loss(batch, logprobs, torch.zeros_like(logprobs), config=config)
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


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["algorithm=gspo"], partial(sequence_losses.gspo, clip_low=3e-4, clip_high=4e-4)),
        (
            ["algorithm=gspo_token"],
            partial(sequence_losses.gspo_token, clip_low=3e-4, clip_high=4e-4),
        ),
        (["algorithm=gmpo"], partial(sequence_losses.gmpo, log_clip=0.4)),
        (["algorithm=cispo"], partial(policy_losses.cispo, cap=5.0)),
        (["algorithm=sapo"], partial(policy_losses.sapo, tau_positive=1.0, tau_negative=1.05)),
        (["algorithm=gpg"], policy_losses.policy_gradient),
        (
            ["algorithm=dapo", "algorithm.policy_loss.dual_clip=3"],
            partial(policy_losses.ppo_clip, clip_low=0.2, clip_high=0.28, dual_clip=3.0),
        ),
    ],
)
def test_the_configured_loss_is_the_one_that_is_used(
    overrides: list[str], expected: Callable[..., policy_losses.PolicyLoss]
) -> None:
    """On advantages that differ within a row, with the published settings."""
    config = algorithm(
        *overrides, "algorithm.reduction={name: token_mean}", "algorithm/correction=none"
    )
    batch = policy_batch(config)
    mask, columns = batch.loss_mask, torch.arange(COLUMNS)
    batch = dataclasses.replace(batch, advantages=torch.where(mask, columns.cos(), 0.0))
    logprobs = (batch.old_logprobs + 0.5 * columns.sin() * mask).requires_grad_()
    loss, _ = policy_loss(batch, logprobs, torch.zeros_like(logprobs), config=config)
    direct = expected(logprobs, batch.old_logprobs, batch.advantages, mask).loss.sum() / mask.sum()
    torch.testing.assert_close(loss, direct)
    gradients = [torch.autograd.grad(value, logprobs)[0] for value in (loss, direct)]
    torch.testing.assert_close(*gradients)


def test_the_kl_coefficient_of_the_batch_weighs_the_kl_term() -> None:
    config = algorithm("algorithm.kl.coef=0.2")
    batch = policy_batch(config)
    logprobs = batch.old_logprobs

    def loss(kl_coef: float) -> tuple[float, float]:
        value, metrics = policy_loss(
            dataclasses.replace(batch, kl_coef=kl_coef),
            logprobs,
            torch.zeros_like(logprobs),
            config=config,
        )
        return value.item(), metrics.values()["policy/ref_kl"]

    (without, measured), (with_kl, _) = loss(0.0), loss(3.0)
    assert with_kl - without == pytest.approx(3.0 * measured, rel=1e-5)


def test_the_kl_coefficient_of_the_step_weighs_the_penalty() -> None:
    config = algorithm(
        "algorithm.kl.coef=1",
        "algorithm.kl.placement=reward",
        "algorithm.kl.estimator=k1",
        "algorithm=dr_grpo",
    )
    batch = dataclasses.replace(token_batch(), rewards=torch.zeros(ROWS))
    reference = torch.zeros_like(batch.rollout_logprobs)

    def advantages(kl_coef: float) -> torch.Tensor:
        return estimate_advantages(
            batch, batch.rollout_logprobs, reference, config=config, kl_coef=kl_coef
        ).advantages

    assert advantages(0.5).abs().sum() > 0
    torch.testing.assert_close(advantages(1.5), 3 * advantages(0.5))


def test_the_share_of_corrected_tokens_is_measured() -> None:
    batch = token_batch()
    old = batch.rollout_logprobs.clone()
    first = batch.loss_mask.nonzero()[0]
    old[first[0], first[1]] += 4.0
    share = 1 / float(batch.loss_mask.sum())
    for name in ("truncated", "masked", "icepop", "rejected", "second_moment", "none"):
        config = algorithm(f"algorithm/correction={name}")
        estimate = estimate_advantages(batch, old, old, config=config, kl_coef=0.0)
        found = estimate.metrics.values()["mismatch/corrected_fraction"]
        length = int(batch.loss_mask[first[0]].sum())
        whole_row = name in ("masked", "rejected")
        expected = 0.0 if name == "none" else share * (length if whole_row else 1)
        assert found == pytest.approx(expected), name


@pytest.mark.parametrize("target", ["null", "0.05"])
def test_the_kl_coefficient_follows_the_measured_kl(target: str) -> None:
    config = algorithm("algorithm.kl.coef=0.2", f"algorithm.kl.target={target}")
    after = next_kl_coef(0.3, Metrics.of({"policy/ref_kl": 1.0}), num_rollouts=5000, config=config)
    assert after == pytest.approx(0.3 if target == "null" else 0.3 * 1.1)
    assert next_kl_coef(0.3, Metrics(), num_rollouts=5000, config=config) == 0.3


def test_ratio_extremes_are_those_of_loss_tokens() -> None:
    config = algorithm()
    batch = policy_batch(config)
    logprobs = batch.old_logprobs + 0.15 * batch.loss_mask
    _, metrics = policy_loss(batch, logprobs, torch.zeros_like(logprobs), config=config)
    ratio = math.exp(0.15)
    assert metrics.values()["policy/ratio_max"] == pytest.approx(ratio)
    assert metrics.values()["policy/ratio_min"] == pytest.approx(ratio)  # not the 1 of padding


def test_rows_without_loss_tokens_have_no_ratio_extremes() -> None:
    config = algorithm()
    batch = policy_batch(config)
    empty = dataclasses.replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    zeros = torch.zeros_like(batch.old_logprobs)
    loss, metrics = policy_loss(empty, zeros, zeros, config=config)
    assert loss.item() == 0
    assert "policy/ratio_max" not in metrics.values()


def test_an_unjudged_rollout_trains_nothing_and_is_counted() -> None:
    batch = token_batch()
    zeros = torch.zeros_like(batch.rollout_logprobs)
    estimate = estimate_advantages(batch, zeros, zeros, config=algorithm(), kl_coef=0.0)
    assert not estimate.advantages[7].any()
    values = measurements.of_rewards(batch).values()
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
    estimate = estimate_advantages(batch, old, reference, config=config, kl_coef=config.kl.coef)
    first = estimate.advantages[0][batch.loss_mask[0]]
    others = estimate.advantages[1:4][batch.loss_mask[1:4]]
    assert float(first.max()) < float(others.min())


def test_remax_compares_with_the_greedy_response_alone() -> None:
    baselines = torch.tensor([0.0] * 4 + [1.0, 1.0, 1.0, float("nan")])
    batch = dataclasses.replace(token_batch(), baseline_rewards=baselines)
    zeros = torch.zeros_like(batch.rollout_logprobs)
    estimate = estimate_advantages(
        batch,
        zeros,
        zeros,
        config=algorithm("algorithm=remax", "rollout.num_samples=1"),
        kl_coef=0.05,
    )
    per_rollout = estimate.advantages.sum(dim=1) / batch.loss_mask.sum(dim=1)
    expected = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 0.0, -1.0, 0.0])
    torch.testing.assert_close(per_rollout, expected)
    assert measurements.of_rewards(batch).values()["reward/groups_without_signal"] == 0
    alone = dataclasses.replace(batch, group_ids=torch.arange(ROWS))
    assert measurements.of_rewards(alone).values()["reward/groups_without_signal"] == 5 / 8


def test_opo_weighs_by_loss_tokens_not_by_columns() -> None:
    batch = token_batch()
    zeros = torch.zeros_like(batch.rollout_logprobs)
    estimate = estimate_advantages(
        batch, zeros, zeros, config=algorithm("algorithm=opo"), kl_coef=0.0
    )
    lengths, rewards = batch.loss_mask[:4].sum(dim=1), batch.rewards[:4]
    expected = rewards - (lengths * rewards).sum() / lengths.sum()
    found = estimate.advantages[:4].sum(dim=1) / lengths
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(expected, rewards - rewards.mean())


def ppo(*overrides: str) -> RLConfig:
    return parse(RLConfig, rl_values("algorithm=ppo", *overrides))


def test_ppo_estimates_from_the_values_with_the_kl_taken_off_each_token() -> None:
    batch = token_batch()
    old = torch.where(batch.loss_mask, 0.3, 0.0)
    zeros = torch.zeros_like(old)
    values = torch.where(batch.loss_mask, 0.25, 0.0)
    config = ppo("algorithm.advantage.whiten=false", "algorithm.advantage.lam=1").algorithm
    found = estimate_advantages(batch, old, zeros, values, config=config, kl_coef=0.1)
    assert found.returns is not None
    for row in range(ROWS - 1):  # the last could not be judged
        mask = batch.loss_mask[row]
        # What is left of the penalties from each token on, and the reward.
        left = torch.arange(int(mask.sum()), 0, -1)
        expected = batch.rewards[row] - 0.1 * 0.3 * left
        torch.testing.assert_close(found.returns[row][mask], expected)
        torch.testing.assert_close(found.advantages[row][mask], expected - 0.25)
    assert not found.returns[-1].any()


def test_rewards_are_clipped_and_whitened_before_anything_else() -> None:
    batch = dataclasses.replace(token_batch(), rewards=torch.linspace(-4, 4, ROWS))
    zeros = torch.zeros_like(batch.rollout_logprobs)
    clipped = algorithm("algorithm=dr_grpo", "algorithm.reward.clip=1")
    by_hand = dataclasses.replace(batch, rewards=batch.rewards.clamp(-1, 1))
    plain = algorithm("algorithm=dr_grpo")
    torch.testing.assert_close(
        estimate_advantages(batch, zeros, zeros, config=clipped, kl_coef=0.0).advantages,
        estimate_advantages(by_hand, zeros, zeros, config=plain, kl_coef=0.0).advantages,
    )
    whitened = algorithm("algorithm=dr_grpo", "algorithm.reward.whiten=true")
    torch.testing.assert_close(
        estimate_advantages(batch, zeros, zeros, config=whitened, kl_coef=0.0).advantages,
        estimate_advantages(batch, zeros, zeros, config=plain, kl_coef=0.0).advantages
        / batch.rewards.std(),
    )


def test_the_critics_loss_is_the_mean_over_the_tokens_of_the_step() -> None:
    batch = token_batch()
    tokens = {f.name: getattr(batch, f.name) for f in dataclasses.fields(TokenBatch)}
    returns = torch.where(batch.loss_mask, 1.0, 0.0)
    count = int(batch.loss_mask.sum())
    whole = CriticBatch(
        **tokens, old_values=torch.zeros_like(returns), returns=returns, num_loss_tokens=count
    )
    critic = ppo("critic.value_clip=0.1").critic
    assert critic is not None
    values = torch.where(batch.loss_mask, 0.4, 0.0).requires_grad_()
    loss, metrics = critic_loss(whole, values, config=critic)
    assert loss.item() == pytest.approx(0.5 * 0.9**2)  # held back at 0.1
    assert metrics.values()["critic/clip_fraction"] == 1.0
    parts = [
        critic_loss(whole.select(rows), values[rows], config=critic)[0]
        for rows in torch.arange(ROWS).chunk(3)
    ]
    assert sum(parts).item() == pytest.approx(loss.item())
    free = ppo("critic.value_clip=null").critic
    assert free is not None
    assert critic_loss(whole, values, config=free)[0].item() == pytest.approx(0.5 * 0.6**2)
