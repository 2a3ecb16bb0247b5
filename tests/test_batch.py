"""Batches check themselves, and collation follows the one index rule."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlstack.batch import collate
from rlstack.batches.preferences import PairBatch, collate_judged, collate_pairs
from rlstack.metrics import Metrics, merge
from rlstack.types import (
    FinishReason,
    Group,
    JudgedResponse,
    PreferencePair,
    Prompt,
    Rollout,
    Score,
)
from tests.algorithms.test_catalog import algorithm, policy_batch, token_batch


def group(prompt_ids: list[int], responses: list[list[int]], rewards: list[float | None]) -> Group:
    prompt = Prompt(
        prompt_id="p",
        data_source="s",
        text="",
        token_ids=np.array(prompt_ids, dtype=np.int64),
        answer=None,
        reward=None,
        metadata={},
    )
    rollouts = [
        Rollout(
            prompt=prompt,
            sample_index=index,
            text="",
            response_ids=np.array(ids, dtype=np.int64),
            logprobs=np.array([-float(i) for i in ids], dtype=np.float32),
            loss_mask=np.array([i != 7 for i in ids]),
            finish_reason=FinishReason.STOP,
            policy_versions=np.zeros(len(ids), dtype=np.int32),
        )
        for index, ids in enumerate(responses)
    ]
    return Group(
        number=0,
        prompt=prompt,
        rollouts=tuple(rollouts),
        scores=tuple(Score(value=value) for value in rewards),
    )


def test_collate_pads_right_and_masks_what_the_policy_did_not_write() -> None:
    batch = collate(
        [group([1, 2], [[3, 7, 4]], [1.0]), group([5], [[6], [8, 9]], [None, 0.5])],
        pad_token_id=0,
    )
    assert batch.token_ids.tolist() == [[1, 2, 3, 7, 4], [5, 6, 0, 0, 0], [5, 8, 9, 0, 0]]
    assert batch.loss_mask.int().tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    assert batch.rollout_logprobs.tolist() == [
        [0, 0, -3, 0, -4],
        [0, -6, 0, 0, 0],
        [0, -8, -9, 0, 0],
    ]
    assert batch.lengths.tolist() == [5, 2, 3]
    assert batch.group_ids.tolist() == [0, 1, 1]
    assert batch.rewards.isnan().tolist() == [False, True, False]
    assert batch.baseline_rewards is None


def test_every_row_has_the_baseline_of_its_group() -> None:
    first = dataclasses.replace(group([1], [[3], [4]], [1.0, 0.0]), baseline=Score(value=0.5))
    second = dataclasses.replace(group([2], [[3]], [1.0]), baseline=Score(value=None))
    batch = collate([first, second], pad_token_id=0)
    assert batch.baseline_rewards is not None
    assert batch.baseline_rewards.dtype == torch.float32
    assert batch.baseline_rewards[:2].tolist() == [0.5, 0.5]
    assert batch.baseline_rewards.isnan().tolist() == [False, False, True]
    chosen = batch.select(torch.tensor([2, 0])).baseline_rewards
    assert chosen is not None
    assert chosen.isnan().tolist() == [True, False]


def test_collate_needs_a_rollout() -> None:
    with pytest.raises(ValueError, match="no rollouts"):
        collate([], pad_token_id=0)


def test_wrong_shapes_types_and_masks_are_named() -> None:
    batch = token_batch()
    with pytest.raises(ValueError, match=r"TokenBatch\.rewards: expected torch.float32 \[8\]"):
        dataclasses.replace(batch, rewards=torch.zeros(3))
    with pytest.raises(ValueError, match=r"TokenBatch\.loss_mask: expected torch.bool"):
        dataclasses.replace(batch, loss_mask=batch.loss_mask.float())
    with pytest.raises(ValueError, match="loss_mask is True on padding"):
        dataclasses.replace(batch, loss_mask=torch.ones_like(batch.loss_mask))


def test_selected_rows_keep_their_order() -> None:
    batch = token_batch()
    rows = torch.tensor([5, 0])
    assert torch.equal(batch.select(rows).rollout_logprobs, batch.rollout_logprobs[rows])


def test_selected_rows_keep_the_numbers_of_their_optimizer_step() -> None:
    batch = policy_batch(algorithm("algorithm.kl.coef=0.3"))
    part = batch.select(torch.tensor([2]))
    assert (part.num_rows, part.num_rollouts, part.kl_coef) == (1, batch.num_rollouts, 0.3)


def test_metrics_add_up_over_parts_of_different_size() -> None:
    whole = merge(
        [
            Metrics.mean("loss", total=6.0, count=3),
            Metrics.mean("loss", total=1.0, count=1),
            Metrics(maxima={"ratio": 2.0}, minima={"low": 0.5}),
            Metrics(maxima={"ratio": 1.5}, minima={"low": 0.7}),
            Metrics.mean("empty", total=0.0, count=0),
        ]
    )
    assert whole.values() == {"loss": 7 / 4, "ratio": 2.0, "low": 0.5}


def pair(
    prompt: list[int],
    chosen: list[int],
    rejected: list[int],
    *,
    margin: float | None = None,
    features: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()),
) -> PreferencePair:
    return PreferencePair(
        prompt_id="p",
        data_source="s",
        text="",
        chosen="",
        rejected="",
        prompt_ids=np.array(prompt, dtype=np.int64),
        chosen_ids=np.array(chosen, dtype=np.int64),
        rejected_ids=np.array(rejected, dtype=np.int64),
        margin=margin,
        chosen_features=features[0],
        rejected_features=features[1],
        metadata={},
    )


def test_pairs_are_collated_chosen_first() -> None:
    batch = collate_pairs(
        [
            pair([1, 2], [3, 4], [5], margin=0.5, features=((1.0, 2.0), (3.0, 4.0))),
            pair([6], [7], [8, 9], features=((5.0, 6.0), (7.0, 8.0))),
        ],
        pad_token_id=0,
    )
    assert batch.token_ids.tolist() == [[1, 2, 3, 4], [1, 2, 5, 0], [6, 7, 0, 0], [6, 8, 9, 0]]
    assert batch.loss_mask.int().tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
    ]
    assert batch.lengths.tolist() == [4, 3, 2, 3]
    assert batch.sample_lengths.tolist() == [7, 5]
    assert batch.margins.tolist() == [0.5, 0.0]
    assert batch.features.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert batch.num_pairs == 2


def test_pairs_may_have_no_features() -> None:
    batch = collate_pairs([pair([1], [2], [3])], pad_token_id=0)
    assert batch.features.shape == (2, 0)
    assert batch.features.dtype == batch.margins.dtype == torch.float32


def test_wrong_pairs_are_named() -> None:
    with pytest.raises(ValueError, match="nothing to make a batch of"):
        collate_pairs([], pad_token_id=0)
    with pytest.raises(ValueError, match=r"pairs with \[0, 1\] features"):
        collate_pairs(
            [pair([1], [2], [3]), pair([1], [2], [3], features=((1.0,), (2.0,)))], pad_token_id=0
        )
    batch = collate_pairs([pair([1], [2], [3])], pad_token_id=0)
    with pytest.raises(ValueError, match=r"PairBatch.margins: expected torch.float32 \[1\]"):
        dataclasses.replace(batch, margins=torch.zeros(2))
    with pytest.raises(ValueError, match="PairBatch: 3 rows; expected two for each pair"):
        PairBatch(
            token_ids=torch.zeros((3, 1), dtype=torch.int64),
            attention_mask=torch.ones((3, 1), dtype=torch.bool),
            loss_mask=torch.ones((3, 1), dtype=torch.bool),
            margins=torch.zeros(1),
            features=torch.zeros((3, 0)),
            num_pairs=1,
            data_sources=("rows",),
        )


TOKENS = st.lists(st.integers(1, 9), min_size=1, max_size=5)
PAIRS = st.lists(
    st.builds(pair, TOKENS, TOKENS, TOKENS, margin=st.none() | st.floats(-4, 4, width=32)),
    min_size=1,
    max_size=6,
)


@given(PAIRS, st.randoms(use_true_random=False), st.integers(-1, 9))
def test_every_pair_can_be_read_back_from_any_selection(
    pairs: list[PreferencePair], order_of: random.Random, pad_token_id: int
) -> None:
    order = order_of.sample(range(len(pairs)), k=order_of.randint(1, len(pairs)))
    batch = collate_pairs(pairs, pad_token_id=pad_token_id).select(torch.tensor(order))
    assert batch.num_pairs == len(pairs)
    for index, original in enumerate(pairs[i] for i in order):
        for row, response in (
            (2 * index, original.chosen_ids),
            (2 * index + 1, original.rejected_ids),
        ):
            tokens = batch.token_ids[row][batch.attention_mask[row]]
            assert tokens.tolist() == [*original.prompt_ids, *response]
            assert batch.token_ids[row][batch.loss_mask[row]].tolist() == response.tolist()
            assert set(batch.token_ids[row][~batch.attention_mask[row]].tolist()) <= {pad_token_id}
        assert batch.margins[index] == (original.margin or 0.0)
    assert batch.data_sources == tuple(pairs[i].data_source for i in order)
    assert batch.sample_lengths.sum() == batch.lengths.sum() == batch.attention_mask.sum()


def test_judged_responses_are_collated() -> None:
    responses = [
        JudgedResponse(
            prompt_id="p",
            data_source="s",
            text="",
            response="",
            prompt_ids=np.array(prompt, dtype=np.int64),
            response_ids=np.array(response, dtype=np.int64),
            desirable=desirable,
            metadata={},
        )
        for prompt, response, desirable in (([1, 2], [3], True), ([4], [5, 6, 7], False))
    ]
    batch = collate_judged(responses, pad_token_id=0)
    assert batch.token_ids.tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert batch.loss_mask.int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]
    assert batch.desirable.tolist() == [True, False]
    assert batch.lengths.tolist() == [3, 4]
    part = batch.select(torch.tensor([1]))
    assert (part.desirable.tolist(), part.num_responses) == ([False], 2)
