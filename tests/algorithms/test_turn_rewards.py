"""What single turns were given: where it lies, what is made of it, and that totals stay."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from rlstack.algorithms.catalog import AdvantageEstimate, estimate_advantages
from rlstack.algorithms.gae import token_rewards
from rlstack.batch import TokenBatch, collate
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.minibatches import Forward, critic_batch, filtered, policy_batch
from rlstack.types import (
    Candidates,
    FinishReason,
    Group,
    Prompt,
    Rollout,
    Score,
    Turn,
    TurnRecord,
)
from tests.config.test_load import rl_values

EXACT_PPO = ["algorithm=ppo", "algorithm.advantage.whiten=false", "algorithm.kl.coef=0"]


def configured(*overrides: str) -> AlgorithmConfig:
    return parse(RLConfig, rl_values(*overrides)).algorithm


def rollout(sizes: list[int], *, num_prompt: int = 2, gap: int = 2) -> Rollout:
    """Actions of these numbers of tokens, with `gap` tokens of observation between them."""
    mask: list[bool] = []
    turns: list[TurnRecord] = []
    for size in sizes:
        mask += [False] * (gap if turns else 0) + [True] * size
        turns.append(TurnRecord(action="a", end=len(mask), answer=Turn()))
    prompt = Prompt(
        prompt_id="p",
        data_source="d",
        text="",
        token_ids=np.full(num_prompt, 3, dtype=np.int64),
        answer=None,
        reward=None,
        metadata={},
    )
    return Rollout(
        prompt=prompt,
        sample_index=0,
        text="a",
        response_ids=np.full(len(mask), 5, dtype=np.int64),
        logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        loss_mask=np.array(mask),
        finish_reason=FinishReason.STOP,
        policy_versions=np.zeros(len(mask), dtype=np.int32),
        turns=tuple(turns),
    )


def batch_of(*rows: tuple[list[int], Score]) -> TokenBatch:
    """One group of these episodes."""
    rollouts = tuple(rollout(sizes) for sizes, _ in rows)
    scores = tuple(score for _, score in rows)
    return collate(
        [Group(number=0, prompt=rollouts[0].prompt, rollouts=rollouts, scores=scores)],
        pad_token_id=0,
    )


def estimated(
    batch: TokenBatch, config: AlgorithmConfig, values: Tensor | None = None
) -> AdvantageEstimate:
    zeros = torch.zeros_like(batch.rollout_logprobs)
    return estimate_advantages(batch, zeros, zeros, values, config=config, kl_coef=0.0)


TWO_TURNS = ([2, 2], Score(value=0.5 + 0.25 + 1.0, turn_rewards=(0.5, 0.25)))
"""Columns: prompt 0 1, action 2 3, observation 4 5, action 6 7; 1.0 is due at the end."""


def test_a_turns_reward_lies_on_its_last_token_and_the_rest_on_the_rows() -> None:
    batch = batch_of(TWO_TURNS, ([1], Score(value=2.0)))
    assert batch.turn_rewards is not None
    assert batch.turn_rewards.tolist() == [[0, 0, 0, 0.5, 0, 0, 0, 0.25], [0] * 8]
    found = token_rewards(
        batch.rewards, batch.loss_mask, kl_penalty=None, turn_rewards=batch.turn_rewards
    )
    assert found.tolist() == [[0, 0, 0, 0.5, 0, 0, 0, 1.25], [0, 0, 2, 0, 0, 0, 0, 0]]


def test_gae_over_two_turns_by_hand() -> None:
    batch = batch_of(TWO_TURNS)
    gamma, lam, critic_lam = 0.9, 0.8, 0.6
    config = configured(
        *EXACT_PPO,
        f"algorithm.advantage.gamma={gamma}",
        f"algorithm.advantage.lam={lam}",
        f"algorithm.advantage.critic_lam={critic_lam}",
    )
    v2, v3, v6, v7 = 0.3, 0.1, -0.2, 0.7
    values = torch.tensor([[0, 0, v2, v3, 9, 9, v6, v7]])
    estimate = estimated(batch, config, values)

    def by_hand(decay: float) -> list[float]:
        a7 = 0.25 + 1.0 - v7
        a6 = gamma * v7 - v6 + decay * a7
        a3 = 0.5 + gamma * v6 - v3 + decay * a6  # the observation takes no time
        a2 = gamma * v3 - v2 + decay * a3
        return [0, 0, a2, a3, 0, 0, a6, a7]

    torch.testing.assert_close(estimate.advantages, torch.tensor([by_hand(gamma * lam)]))
    assert estimate.returns is not None
    returns = torch.tensor([by_hand(gamma * critic_lam)]) + values
    torch.testing.assert_close(estimate.returns, torch.where(batch.loss_mask, returns, 0.0))


@pytest.mark.parametrize("name", ["ppo", "vapo", "pf_ppo"])
def test_methods_with_a_critic_tell_turns_apart(name: str) -> None:
    """Both episodes earn 1 in all, in different turns."""
    batch = batch_of(
        ([30, 30], Score(value=1.0, turn_rewards=(1.0, 0.0))),
        ([30, 30], Score(value=1.0, turn_rewards=(0.0, 1.0))),
    )
    values = torch.where(batch.loss_mask, 0.5, 0.0)
    config = configured(f"algorithm={name}", "algorithm.kl.coef=0")
    early, late = estimated(batch, config, values).advantages
    assert (late[-30:] > early[-30:]).all()
    assert early[31] > late[31]
    whole = estimated(dataclasses.replace(batch, turn_rewards=None), config, values).advantages
    assert torch.equal(whole[0], whole[1])


def test_reinforce_plus_plus_pays_no_token_for_an_earlier_turn() -> None:
    batch = batch_of(TWO_TURNS, ([1], Score(value=2.0)))
    found = estimated(batch, configured("algorithm=reinforce_plus_plus")).advantages
    returns = torch.tensor([1.75, 1.75, 1.25, 1.25, 2.0])
    expected = (returns - returns.mean()) / returns.std()
    torch.testing.assert_close(found[batch.loss_mask], expected)
    assert not found[~batch.loss_mask].any()


@pytest.mark.parametrize(
    "name", ["grpo", "dr_grpo", "rloo", "opo", "gpg", "maxrl", "reinforce_plus_plus_baseline"]
)
def test_methods_that_compare_whole_rollouts_use_the_total(name: str) -> None:
    rows = (TWO_TURNS, ([3], Score(value=2.0)), ([1, 1], Score(value=0.0, turn_rewards=(1, -1))))
    batch = batch_of(*rows)
    config = configured(f"algorithm={name}", "algorithm.kl.coef=0")
    total = estimated(dataclasses.replace(batch, turn_rewards=None), config).advantages
    assert torch.equal(estimated(batch, config).advantages, total)
    assert total.any()


@pytest.mark.parametrize("overrides", [EXACT_PPO, ["algorithm=reinforce_plus_plus"]])
@pytest.mark.parametrize("shaping", [[], ["algorithm.reward.clip=1"]])
def test_rows_without_turns_are_bit_for_bit_as_they_were(
    overrides: list[str], shaping: list[str]
) -> None:
    batch = batch_of(([5], Score(value=0.3)), ([3], Score(value=1.7)), ([4], Score(value=None)))
    assert batch.turn_rewards is None
    values = torch.where(batch.loss_mask, 0.37, 0.0)
    config = configured(*overrides, *shaping)
    before = estimated(batch, config, values)
    beside = dataclasses.replace(batch, turn_rewards=torch.zeros_like(batch.rollout_logprobs))
    after = estimated(beside, config, values)
    assert torch.equal(before.advantages, after.advantages)
    if before.returns is not None and after.returns is not None:
        assert torch.equal(before.returns, after.returns)


def returns_of(batch: TokenBatch, *overrides: str) -> Tensor:
    """Without values and discount: what is due from each token on."""
    config = configured(*EXACT_PPO, "algorithm.advantage.lam=1", *overrides)
    found = estimated(batch, config, torch.zeros_like(batch.rollout_logprobs)).returns
    assert found is not None
    return found


def test_a_clip_shortens_turns_as_it_does_the_rollout() -> None:
    batch = batch_of(
        ([1, 1], Score(value=4.0, turn_rewards=(1.0, 2.0))),
        ([1, 1], Score(value=-4.0, turn_rewards=(1.0, -5.0))),
        ([1, 1], Score(value=0.0, turn_rewards=(3.0, -3.0))),
    )
    found = returns_of(batch, "algorithm.reward.clip=2")[batch.loss_mask].view(3, 2)
    torch.testing.assert_close(found, torch.tensor([[2.0, 1.5], [-2.0, -2.5], [0.0, -3.0]]))


def test_whitening_divides_turns_by_the_deviation_of_rollouts() -> None:
    batch = batch_of(
        ([1, 1], Score(value=4.0, turn_rewards=(1.0, 3.0))),
        ([1, 1], Score(value=0.0, turn_rewards=(1.0, -1.0))),
        ([1, 1], Score(value=None)),
    )
    found = returns_of(batch, "algorithm.reward.whiten=true")[batch.loss_mask].view(3, 2)
    std = math.sqrt(8.0)
    totals = torch.tensor([2.0 + 2.0 / std, 2.0 - 2.0 / std])
    torch.testing.assert_close(found[:2, 0], totals)
    torch.testing.assert_close(found[:2, 1], totals - 1.0 / std)
    assert not found[2].any()


def test_equal_rewards_have_no_deviation_to_divide_turns_by() -> None:
    batch = batch_of(
        ([1, 1], Score(value=1.0, turn_rewards=(1.0, 0.0))),
        ([1, 1], Score(value=1.0, turn_rewards=(0.25, 0.75))),
    )
    found = returns_of(batch, "algorithm.reward.whiten=true")[batch.loss_mask].view(2, 2)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [1.0, 0.75]]))


def test_what_an_action_without_tokens_was_given_is_due_at_the_end() -> None:
    empty = rollout([2, 1])
    turns = (dataclasses.replace(empty.turns[0], end=0), empty.turns[1])
    empty = dataclasses.replace(empty, turns=turns)
    score = Score(value=3.0, turn_rewards=(1.0, 0.5))
    group = Group(number=0, prompt=empty.prompt, rollouts=(empty,), scores=(score,))
    batch = collate([group], pad_token_id=0)
    assert batch.turn_rewards is not None
    assert batch.turn_rewards.tolist() == [[0, 0, 0, 0, 0, 0, 0.5]]
    assert returns_of(batch)[0].tolist() == [0, 0, 3, 3, 0, 0, 3]


def test_updates_do_not_carry_what_the_advantages_were_made_of() -> None:
    batch = batch_of(TWO_TURNS, ([1], Score(value=2.0)))
    zeros = torch.zeros_like(batch.rollout_logprobs)
    estimate = estimated(batch, configured(*EXACT_PPO), zeros)
    forward = Forward(old_logprobs=zeros, ref_logprobs=zeros, values=zeros)
    rows = torch.tensor([1, 0])
    assert policy_batch(batch, forward, estimate, rows, kl_coef=0.0).turn_rewards is None
    assert critic_batch(batch, forward, estimate, rows).turn_rewards is None


class KeepFirst:
    """Of every batch the first row."""

    def select(self, candidates: Candidates, *, seed: int) -> NDArray[np.int64]:
        return np.array([0], dtype=np.int64)


def test_rows_that_fill_a_filtered_batch_are_due_nothing() -> None:
    rollouts = (rollout([2, 2]), rollout([1, 1]))
    scores = (TWO_TURNS[1], Score(value=1.0, turn_rewards=(0.5, 0.5)))
    groups = [Group(number=0, prompt=rollouts[0].prompt, rollouts=rollouts, scores=scores)]
    batch = collate(groups, pad_token_id=0)
    found = filtered(batch, groups, filtration=KeepFirst(), multiple=2, seed=0).turn_rewards
    assert batch.turn_rewards is not None
    assert found is not None
    assert torch.equal(found[0], batch.turn_rewards[0])
    assert not found[1].any()


def test_a_wrong_shape_is_named() -> None:
    batch = batch_of(TWO_TURNS)
    with pytest.raises(ValueError, match=r"TokenBatch\.turn_rewards: expected torch.float32"):
        dataclasses.replace(batch, turn_rewards=torch.zeros(3))


REWARD = st.floats(-4, 4, width=32)


@st.composite
def episodes(draw: Any) -> tuple[list[int], Score]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    if draw(st.booleans()):
        return sizes, Score(value=draw(st.none() | REWARD))
    turns = tuple(draw(REWARD) for _ in sizes)
    return sizes, Score(value=sum(turns) + draw(REWARD), turn_rewards=turns)


@settings(max_examples=60, deadline=None)
@given(st.lists(episodes(), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_every_token_is_paid_what_is_still_due_in_its_row(
    rows: list[tuple[list[int], Score]], order_of: Any
) -> None:
    """However rows are chosen and padded; in all, every row is paid its reward."""
    batch = batch_of(*rows)
    order = order_of.sample(range(len(rows)), k=len(rows))
    found = returns_of(batch.select(torch.tensor(order)))
    for position, (sizes, score) in enumerate(rows[row] for row in order):
        row_mask = batch.loss_mask[order[position]]
        value = 0.0 if score.value is None else score.value
        turns = score.turn_rewards or (0.0,) * len(sizes)
        earned = np.repeat(np.cumsum((0.0, *turns[:-1])), sizes)
        expected = torch.tensor(value - earned, dtype=torch.float32)
        torch.testing.assert_close(found[position][row_mask], expected, atol=1e-5, rtol=1e-5)
        assert not found[position][~row_mask].any()
        # Alone, and so without padding, it is the same.
        alone = returns_of(batch_of((sizes, score)))[0]
        torch.testing.assert_close(found[position][: len(alone)], alone)
