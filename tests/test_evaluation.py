"""pass@k and majority voting against enumeration."""

import dataclasses
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlstack.evaluation import evaluation_metrics, majority_at_k, pass_at_k, rollout_metrics
from rlstack.types import FinishReason, Group, Prompt, Rollout, Score, Turn, TurnRecord


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_pass_at_k_equals_enumeration_of_all_draws(num_samples: int) -> None:
    for num_correct in range(num_samples + 1):
        marks = [index < num_correct for index in range(num_samples)]
        for k in range(1, num_samples + 1):
            draws = list(combinations(marks, k))
            expected = sum(map(any, draws)) / len(draws)
            assert pass_at_k(num_samples, num_correct, k=k) == pytest.approx(expected)


@given(num_samples=st.integers(1, 2000), data=st.data())
def test_pass_at_k_is_a_probability_that_grows_with_k(
    num_samples: int, data: st.DataObject
) -> None:
    num_correct = data.draw(st.integers(0, num_samples))
    chances = [pass_at_k(num_samples, num_correct, k=k) for k in range(1, min(num_samples, 64) + 1)]
    assert chances[0] == pytest.approx(num_correct / num_samples)
    assert all(0 <= low <= high + 1e-12 <= 1 + 1e-12 for low, high in pairwise(chances))


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k"), [(4, 0, 8), (4, 0, 0), (4, 5, 1), (4, -1, 1)]
)
def test_pass_at_k_refuses_what_cannot_be_drawn(num_samples: int, num_correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"got k={k}, num_samples={num_samples}"):
        pass_at_k(num_samples, num_correct, k=k)


def score(answer: str | None, value: float | None) -> Score:
    return Score(value=value, extracted_answer=answer)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([score("4", 1.0), score("4", 1.0), score("5", 0.0)], 1.0),
        ([score("4", 1.0), score("5", 0.0), score("5", 0.0)], 0.0),
        ([score("4", 1.0), score("5", 0.0)], 0.5),
        ([score("4", 1.0), score(None, 0.0), score(None, 0.0)], 1.0),
        ([score(None, 0.0)], 0.0),
    ],
)
def test_majority_vote(scores: list[Score], expected: float) -> None:
    assert majority_at_k(scores) == expected


ANSWERS = ("7", "8", "9", None)


def test_majority_vote_equals_drawing_the_winner_every_way() -> None:
    for answers in product(ANSWERS, repeat=4):
        scores = [score(answer, float(answer == "7")) for answer in answers]
        voted = [answer for answer in answers if answer is not None]
        tied = [a for a in set(voted) if all(voted.count(a) >= voted.count(b) for b in voted)]
        expected = float("7" in tied) / len(tied) if tied else 0.0
        assert majority_at_k(scores) == expected


@given(st.permutations([("7", 1.0), ("7", 1.0), ("8", 0.0), ("8", 0.0), ("9", 0.0), (None, 0.0)]))
def test_majority_vote_does_not_depend_on_the_order(votes: list[tuple[str | None, float]]) -> None:
    assert majority_at_k([score(*vote) for vote in votes]) == 0.5


def group(values: list[float | None], *, source: str, lengths: list[int]) -> Group:
    prompt = Prompt(
        prompt_id="p",
        data_source=source,
        text="",
        token_ids=np.array([1]),
        answer=None,
        reward=None,
        metadata={},
    )
    rollouts = [
        Rollout(
            prompt=prompt,
            sample_index=index,
            text="",
            response_ids=np.zeros(length, dtype=np.int64),
            logprobs=np.zeros(length, dtype=np.float32),
            loss_mask=np.ones(length, dtype=np.bool_),
            finish_reason=FinishReason.LENGTH if length == 8 else FinishReason.STOP,
            policy_versions=np.zeros(length, dtype=np.int32),
        )
        for index, length in enumerate(lengths)
    ]
    scores = [
        Score(value=v, parts={"exact": v})
        if v is not None
        else Score(value=None, errors=("x", "y"), num_errors={"exact": 1, "other": 1})
        for v in values
    ]
    return Group(number=0, prompt=prompt, rollouts=tuple(rollouts), scores=tuple(scores))


def test_metrics_by_source() -> None:
    groups = [
        group([1.0, 0.0], source="a", lengths=[2, 8]),
        group([None, 1.0], source="b", lengths=[4, 4]),
    ]
    values = evaluation_metrics(groups).values()
    assert values["eval/pass@1"] == 0.5
    assert values["eval/pass@2"] == 1.0
    assert values["eval/a/pass@1"] == 0.5
    assert values["eval/part/exact"] == pytest.approx(2 / 3)
    assert values["eval/unjudged"] == 0.25
    assert values["eval/response_tokens"] == 4.5
    assert values["eval/a/truncated_fraction"] == 0.5
    assert values["eval/b/truncated_fraction"] == 0.0


def test_rollout_metrics() -> None:
    groups = [group([1.0, 0.5], source="a", lengths=[2, 8])]
    values = rollout_metrics(groups, max_response_tokens=8).values()
    assert values["rollout/response_tokens"] == 5
    assert values["rollout/response_tokens_max"] == 8
    assert values["rollout/truncated_fraction"] == 0.5
    assert values["rollout/length_share"] == pytest.approx(5 / 8)
    assert values["reward/part/exact"] == 0.75
    assert values["reward/source/a"] == 0.75


def test_the_greedy_baseline_is_counted_apart() -> None:
    first = group([1.0, 1.0], source="s", lengths=[1, 1])
    second = group([0.0, 1.0], source="s", lengths=[1, 1])
    late = Score(value=None, errors=("late",), num_errors={"exact": 1})
    groups = [
        dataclasses.replace(first, baseline=Score(value=0.5)),
        dataclasses.replace(second, baseline=late),
    ]
    values = rollout_metrics(groups, max_response_tokens=8).values()
    assert values["reward/baseline"] == 0.5
    assert values["reward/baseline_unjudged"] == 0.5
    assert values["reward/errors"] == 1
    assert values["reward/source/s"] == 0.75


def test_tokens_and_errors_are_counted() -> None:
    groups = [
        group([1.0, None], source="a", lengths=[2, 8]),
        group([None, 1.0], source="b", lengths=[4, 4]),
    ]
    values = rollout_metrics(groups, max_response_tokens=8).values()
    assert values["rollout/num_tokens"] == 18
    assert values["reward/errors"] == 4
    assert (values["reward/errors/exact"], values["reward/errors/other"]) == (2, 2)
    assert values["reward/judged_fraction"] == 0.5
    assert values["rollout/response_tokens_min"] == 2


def test_a_response_that_could_not_be_judged_is_not_correct_and_not_zero() -> None:
    values = evaluation_metrics([group([1.0, None], source="a", lengths=[2, 2])]).values()
    assert values["eval/pass@1"] == 0.5
    assert values["eval/reward"] == 1.0
    assert "eval/a/pass@1" not in values  # one source: it would say the same again


def test_episodes_are_measured() -> None:
    plain = group([1.0, 0.0, None, None], source="a", lengths=[2, 2, 2, 2])
    called = TurnRecord(action="a", end=1, answer=Turn(tool_calls=3, tool_errors=1))
    cut = TurnRecord(action="b", end=2, answer=None)
    rollouts = [
        dataclasses.replace(
            rollout, finish_reason=reason, turns=turns, error=error, loss_mask=np.array(mask)
        )
        for rollout, reason, turns, error, mask in zip(
            plain.rollouts,
            [FinishReason.TURNS, FinishReason.LENGTH, FinishReason.ERROR, FinishReason.TIMEOUT],
            [(called, called), (called, cut), (), (cut,)],
            [None, None, "broken", "late"],
            [[True, False], [True, True], [True, True], [True, True]],
            strict=True,
        )
    ]
    played = dataclasses.replace(plain, rollouts=tuple(rollouts))
    values = rollout_metrics([played], max_response_tokens=8).values()
    assert values["rollout/num_turns"] == 5 / 4
    assert values["rollout/tool_calls"] == 9 / 4
    assert values["rollout/tool_errors"] == 3 / 4
    assert values["rollout/observation_tokens"] == 1 / 4
    assert values["rollout/num_tokens"] == 7
    assert values["rollout/truncated_fraction"] == 1 / 4
    assert values["rollout/truncated_by_turns"] == 1 / 4
    assert values["rollout/environment_errors"] == 1 / 4
    assert values["rollout/environment_timeouts"] == 1 / 4
    assert evaluation_metrics([played]).values()["eval/num_turns"] == 5 / 4
    without = rollout_metrics([plain], max_response_tokens=8).values()
    assert not any("turns" in name or "tool" in name for name in without)


def test_pass_at_k_goes_up_in_powers_of_two_and_prompts_with_answers_are_voted_on() -> None:
    plain = group([1.0] * 6, source="a", lengths=[1] * 6)
    names = {name for name in evaluation_metrics([plain]).values() if "@" in name}
    assert names == {"eval/pass@1", "eval/pass@2", "eval/pass@4"}
    answered = dataclasses.replace(plain, prompt=dataclasses.replace(plain.prompt, answer="5"))
    assert {n for n in evaluation_metrics([plain, answered]).values() if "@" in n} == {
        *names,
        "eval/maj@6",
    }
