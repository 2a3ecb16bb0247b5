"""Which samples are learned from."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlstack.batches.preferences import collate_pairs
from rlstack.data.selection import (
    best_versus_worst,
    judged_of,
    judged_record,
    judged_responses,
    kept_of,
    kept_record,
    kept_responses,
    pair_of,
    pair_record,
)
from rlstack.types import FinishReason, Group, Prompt, Rollout, Score

Sample = tuple[list[int], float | None]
"""Response tokens and reward."""


def group(*samples: Sample, cut: tuple[int, ...] = (), name: str = "p") -> Group:
    prompt = Prompt(
        prompt_id=name,
        data_source="s",
        text=f"prompt {name}",
        token_ids=np.array([1, 2]),
        answer=None,
        reward=None,
        metadata={},
    )
    rollouts = [
        Rollout(
            prompt=prompt,
            sample_index=index,
            text=f"response {index}",
            response_ids=np.array(ids, dtype=np.int64),
            logprobs=np.zeros(len(ids), dtype=np.float32),
            loss_mask=np.ones(len(ids), dtype=np.bool_),
            finish_reason=FinishReason.LENGTH if index in cut else FinishReason.STOP,
            policy_versions=np.zeros(len(ids), dtype=np.int32),
        )
        for index, (ids, _) in enumerate(samples)
    ]
    scores = tuple(Score(value=reward) for _, reward in samples)
    return Group(number=0, prompt=prompt, rollouts=tuple(rollouts), scores=scores)


def test_the_best_and_the_worst_make_a_pair() -> None:
    found = best_versus_worst(
        [group(([3], 0.5), ([4], None), ([5], 2.0), ([6], -1.0), ([7], 2.0), ([8], -1.0))]
    )
    [pair] = found.samples
    assert (pair.chosen, pair.rejected, pair.margin) == ("response 2", "response 3", 3.0)
    assert (pair.chosen_ids.tolist(), pair.rejected_ids.tolist()) == ([5], [6])
    assert pair.prompt_ids.tolist() == [1, 2]
    assert not any(found.dropped.values())


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([([3], 1.0), ([4], 1.0)], "tie"),
        ([([3], 1.0), ([4], None)], "unjudged"),
        ([([3], 1.0), ([], 0.0)], "unjudged"),
        ([], "unjudged"),
        ([([3], 1.0), ([3], 0.0)], "same_response"),
    ],
)
def test_prompts_without_a_preference_are_counted(samples: list[Sample], reason: str) -> None:
    found = best_versus_worst([group(*samples), group(([3], 1.0), ([4], 0.0))])
    assert len(found.samples) == 1
    assert {name: count for name, count in found.dropped.items() if count} == {reason: 1}


def test_what_is_kept_and_why_the_rest_is_not() -> None:
    found = kept_responses(
        [
            group(
                ([3], 0.2), ([4], 1.0), ([5], 3.0), ([4], 1.0), ([6], None), ([7], 9.0), ([8], 2.0),
                cut=(5,),
            )
        ],
        min_reward=1.0,
        per_prompt=2,
    )  # fmt: skip
    assert [(k.response, k.reward) for k in found.samples] == [
        ("response 2", 3.0),
        ("response 6", 2.0),
    ]
    # The second [4] is a duplicate only of one that is kept; here both are surplus.
    assert found.dropped == {"unjudged": 1, "cut": 1, "reward": 1, "duplicate": 0, "surplus": 2}
    demonstration = found.samples[0].demonstration()
    assert demonstration.token_ids.tolist() == [1, 2, 5]
    assert demonstration.loss_mask.tolist() == [False, False, True]


def test_the_same_response_is_kept_once() -> None:
    same = group(([4], 1.0), ([4], 1.0), ([5], 0.5))
    found = kept_responses([same], min_reward=None, per_prompt=3)
    assert [k.response for k in found.samples] == ["response 0", "response 2"]
    assert found.dropped["duplicate"] == 1


def test_responses_at_the_threshold_are_desirable_and_the_others_not() -> None:
    first = group(([3], 1.0), ([4], 0.9), ([5], None), ([6], 2.0), ([7], 0.0), cut=(3, 4))
    found = judged_responses([first, group(([3], 1.0), name="q")], threshold=1.0)
    labels = [(r.text, r.response, r.desirable, r.metadata["reward"]) for r in found.samples]
    assert labels == [
        ("prompt p", "response 0", True, 1.0),
        ("prompt p", "response 1", False, 0.9),
        ("prompt p", "response 4", False, 0.0),
        ("prompt q", "response 0", True, 1.0),
    ]
    assert found.dropped == {"unjudged": 1, "cut": 1, "one_prompt": 0, "one_kind": 0}


def test_responses_that_cannot_be_compared_are_left_out() -> None:
    both = group(([3], 1.0), ([4], 0.0))
    assert judged_responses([both], threshold=1.0).dropped["one_prompt"] == 2
    found = judged_responses([both, group(([3], 1.0), name="q")], threshold=0.0)
    assert found.samples == ()
    assert found.dropped["one_kind"] == 3


rewards = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
responses = st.lists(st.integers(3, 5), max_size=2)
groups = st.lists(st.lists(st.tuples(responses, rewards), max_size=5), max_size=4)


@given(groups=groups, per_prompt=st.integers(1, 3))
def test_everything_is_kept_or_counted(groups: list[list[Sample]], per_prompt: int) -> None:
    scored = [group(*samples) for samples in groups]
    pairs = best_versus_worst(scored)
    assert len(pairs.samples) + sum(pairs.dropped.values()) == len(scored)
    assert all(p.margin is not None and p.margin > 0 for p in pairs.samples)
    judged = judged_responses(scored, threshold=0.5)
    assert len(judged.samples) + sum(judged.dropped.values()) == sum(map(len, groups))
    kept = kept_responses(scored, min_reward=0.0, per_prompt=per_prompt)
    assert len(kept.samples) + sum(kept.dropped.values()) == sum(map(len, groups))
    assert all(k.reward >= 0 for k in kept.samples)
    for found in (pairs.samples, judged.samples, kept.samples):
        assert len({sample.prompt_id for sample in found}) == len(found)


def test_records_hold_everything() -> None:
    scored = [group(([3, 4], 1.0), ([5], 0.0), name="a")]
    [pair] = best_versus_worst(scored).samples
    row = json.loads(json.dumps(pair_record(pair)))
    assert (row["prompt"], row["chosen"]) == ("prompt a", "response 0")
    assert pair_record(pair_of(row)) == pair_record(pair)
    [kept] = kept_responses(scored, min_reward=1.0, per_prompt=1).samples
    row = json.loads(json.dumps(kept_record(kept)))
    assert kept_record(kept_of(row)) == kept_record(kept)
    again = kept_of(row).demonstration()
    other = group(([3], 0.0), name="b")
    for judged in judged_responses([*scored, other], threshold=1.0).samples:
        row = json.loads(json.dumps(judged_record(judged)))
        assert row["label"] == judged.desirable
        assert judged_record(judged_of(row)) == judged_record(judged)
    assert again.token_ids.tolist() == kept.demonstration().token_ids.tolist()


def episode(reward: float, *, opening: int = 2, last: int = 9, reason: str = "stop") -> Group:
    """A group of one: an action, an observation of two tokens, an action."""
    [rollout] = group(([3, 4, 7, 7, last], reward)).rollouts
    rollout = replace(
        rollout,
        prompt=replace(rollout.prompt, token_ids=np.array([1, opening]), text=f"open {opening}"),
        loss_mask=np.array([True, True, False, False, True]),
        finish_reason=FinishReason(reason),
    )
    prompt = group().prompt
    return Group(number=0, prompt=prompt, rollouts=(rollout,), scores=(Score(value=reward),))


def joined(*groups: Group) -> Group:
    return Group(
        number=0,
        prompt=groups[0].prompt,
        rollouts=tuple(r for g in groups for r in g.rollouts),
        scores=tuple(s for g in groups for s in g.scores),
    )


def test_what_an_environment_said_is_not_learned_from() -> None:
    scored = [joined(episode(1.0), episode(0.0, last=8))]
    [pair] = best_versus_worst(scored).samples
    # The prompt is the one that was answered, with the environment's opening.
    assert (pair.text, pair.prompt_ids.tolist()) == ("open 2", [1, 2])
    row = json.loads(json.dumps(pair_record(pair)))
    # A row that no command takes for data: its texts are not all that was said.
    assert not {"chosen", "rejected"} & row.keys()
    again = pair_of(row)
    assert pair_record(again) == pair_record(pair)
    batch = collate_pairs([again], pad_token_id=0)
    assert batch.token_ids.tolist() == [[1, 2, 3, 4, 7, 7, 9], [1, 2, 3, 4, 7, 7, 8]]
    assert batch.loss_mask.int().tolist() == [[0, 0, 1, 1, 0, 0, 1]] * 2
    [kept] = kept_responses(scored, min_reward=1.0, per_prompt=1).samples
    row = json.loads(json.dumps(kept_record(kept)))
    assert "response" not in row
    demonstration = kept_of(row).demonstration()
    assert demonstration.token_ids.tolist() == [1, 2, 3, 4, 7, 7, 9]
    assert demonstration.loss_mask.tolist() == [False, False, True, True, False, False, True]
    assert kept_record(kept_of(row)) == kept_record(kept)


def test_a_pair_answers_one_prompt() -> None:
    found = best_versus_worst([joined(episode(1.0), episode(0.0, opening=6))])
    assert not found.samples
    assert found.dropped["other_prompt"] == 1


@pytest.mark.parametrize(("reason", "is_kept"), [("turns", True), ("length", False)])
def test_an_episode_may_end_with_its_last_turn(reason: str, is_kept: bool) -> None:
    found = kept_responses([episode(1.0, reason=reason)], min_reward=None, per_prompt=1)
    assert (len(found.samples), found.dropped["cut"]) == (int(is_kept), int(not is_kept))
