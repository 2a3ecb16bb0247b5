"""Parts that are more than their function: composed corrections, values of the critic."""

import dataclasses

import pytest
import torch

from rlstack.algorithms.catalog import estimate_advantages
from tests.algorithms.test_catalog import algorithm, ppo, token_batch


def test_a_composed_correction_weighs_each_token_by_all_its_parts() -> None:
    batch = token_batch()
    old = torch.where(batch.loss_mask, batch.rollout_logprobs + 0.5, 0.0)
    old[0] = torch.where(batch.loss_mask[0], batch.rollout_logprobs[0] + 2.0, 0.0)
    config = algorithm(
        "algorithm/correction=composed",
        "algorithm.correction.parts=[{name: truncated, level: token, cap: 1.5},"
        "{name: rejected, level: geometric, low: 0.5, high: 3}]",
    )
    weights = estimate_advantages(batch, old, old, config=config, kl_coef=0.0).correction_weights
    assert torch.equal(weights[0][batch.loss_mask[0]].unique(), torch.tensor([0.0]))  # e^2 > 3
    assert torch.equal(weights[1:][batch.loss_mask[1:]].unique(), torch.tensor([1.5]))  # e^0.5


@pytest.mark.parametrize("bootstraps", [True, False])
def test_a_truncated_response_goes_on_with_the_critics_value(bootstraps: bool) -> None:
    """lambda 1: the return of a token k before the last is gamma^k (R + gamma V), or gamma^k R."""
    gamma, value = 0.9, 0.25
    batch = token_batch()
    batch = dataclasses.replace(batch, truncated=torch.arange(batch.num_rows) % 2 == 0)
    config = ppo(
        f"algorithm.advantage.bootstrap_truncated={str(bootstraps).lower()}",
        f"algorithm.advantage.gamma={gamma}",
        "algorithm.advantage.lam=1",
        "algorithm.advantage.whiten=false",
        "algorithm.kl.coef=0",
    ).algorithm
    values = torch.where(batch.loss_mask, value, 0.0)
    old = torch.zeros(batch.token_ids.shape)
    found = estimate_advantages(batch, old, old, values, config=config, kl_coef=0.0)
    assert found.returns is not None
    assert not found.returns[-1].any()
    for row in range(batch.num_rows - 1):  # the last one could not be judged
        mask = batch.loss_mask[row]
        steps_left = torch.arange(int(mask.sum())).flip(0)
        after = gamma * value if bootstraps and row % 2 == 0 else 0.0
        expected = gamma**steps_left * (float(batch.rewards[row]) + after)
        torch.testing.assert_close(found.returns[row][mask], expected)
        torch.testing.assert_close(found.advantages[row][mask], expected - value)
