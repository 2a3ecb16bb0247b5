"""What was sampled is kept as it is, in order; nothing between is trained on."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlstack.data.transcript import Transcript
from rlstack.types import FinishReason, Prompt, Turn

PROMPT = Prompt(
    prompt_id="p",
    data_source="d",
    text="",
    token_ids=np.array([7, 8, 9]),
    answer=None,
    reward=None,
    metadata={},
)
PIECES = st.lists(
    st.tuples(st.lists(st.integers(0, 99), min_size=1), st.lists(st.integers(0, 99))), max_size=6
)


@given(PIECES)
def test_tokens_are_only_ever_appended(pieces: list[tuple[list[int], list[int]]]) -> None:
    transcript = Transcript(PROMPT, 2)
    contexts = [transcript.context()]
    expected: list[tuple[int, bool, float, int]] = []
    for number, (action, observation) in enumerate(pieces):
        logprobs = -np.arange(1, len(action) + 1, dtype=np.float32)
        versions = np.full(len(action), number, dtype=np.int32)
        transcript.add_action(f"a{number}", np.array(action), logprobs, policy_versions=versions)
        transcript.add_answer(Turn(observation=str(number), reward=number))
        expected += [(t, True, float(p), number) for t, p in zip(action, logprobs, strict=True)]
        assert transcript.turns[-1].end == transcript.length == len(expected)
        transcript.add_observation(np.array(observation, dtype=np.int64))
        expected += [(token, False, 0.0, number) for token in observation]
        contexts.append(transcript.context())
    for shorter, longer in itertools.pairwise(contexts):
        assert longer[: len(shorter)] == shorter
    rollout = transcript.rollout(FinishReason.STOP)
    found = zip(
        rollout.response_ids.tolist(),
        rollout.loss_mask.tolist(),
        rollout.logprobs.tolist(),
        rollout.policy_versions.tolist(),
        strict=True,
    )
    assert list(found) == expected
    assert contexts[-1] == [*PROMPT.token_ids.tolist(), *rollout.response_ids.tolist()]
    assert [turn.action for turn in rollout.turns] == [f"a{n}" for n in range(len(pieces))]
    assert rollout.text == (rollout.turns[-1].action if pieces else "")


def test_an_episode_that_failed_before_its_first_action_has_no_tokens() -> None:
    rollout = Transcript(PROMPT, 0).rollout(FinishReason.ERROR, error="broken")
    assert len(rollout.response_ids) == len(rollout.loss_mask) == 0
    assert rollout.response_ids.dtype == np.int64
    assert (rollout.text, rollout.turns, rollout.error) == ("", (), "broken")
