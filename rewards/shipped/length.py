"""Reward `cosine_length`: correctness and length in one figure."""

from inspect import isclass, iscoroutinefunction
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field

from rewards.registry import REWARDS, Reward, build, register
from rlstack.algorithms.shaping import cosine_length as along_cosine
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score


def _build(correct: Any) -> Reward:
    if callable(correct):
        return cast(Reward, correct)
    if isinstance(correct, str):
        found = REWARDS.info(correct)
        if found.batched or isclass(found.target) or iscoroutinefunction(found.target):
            raise ValueError(f"{correct!r} is batched, async or a class; expected a plain function")
        return build(correct, {})
    raise ValueError("expected the name of a registered reward")


Correctness = Annotated[Any, BeforeValidator(_build)]
"""The name of the reward that says whether the response is correct; becomes that reward, built."""


@register("cosine_length")
def cosine_length(
    request: RewardRequest,
    *,
    correct: Correctness,
    correct_shortest: float = 2.0,
    correct_longest: float = 1.0,
    wrong_shortest: float = -10.0,
    wrong_longest: float = 0.0,
    threshold: Annotated[float, Field(gt=0)] = 1.0,
) -> Score:
    """What a correct, or a wrong, response of this length earns, along half a cosine.

    `shaping.cosine_length` ("Demystifying Long Chain-of-Thought", arXiv 2502.03373; the default
    values are the paper's) with max_tokens = `request.max_response_tokens`.

    correct: the name of the reward that judges correctness, e.g. `math_answer`.
    threshold: the response is correct if that reward is at least this.

    The value is None if the correctness cannot be judged or the request states no limit; the
    correctness itself is the part `correct`.

    Raises:
        RewardError: if a branch runs the wrong way.
    """
    judged = _build(correct)(request)
    score = judged if isinstance(judged, Score) else Score(value=judged)
    if score.value is None or request.max_response_tokens <= 0:
        return Score(value=None, extracted_answer=score.extracted_answer, errors=score.errors)
    try:
        value = along_cosine(
            request.response_tokens,
            correct=score.value >= threshold,
            max_tokens=request.max_response_tokens,
            correct_shortest=correct_shortest,
            correct_longest=correct_longest,
            wrong_shortest=wrong_shortest,
            wrong_longest=wrong_longest,
        )
    except ValueError as error:
        raise RewardError(f"{error}. Correct the params of cosine_length.") from None
    return Score(
        value=value,
        parts={"correct": score.value},
        extracted_answer=score.extracted_answer,
        errors=score.errors,
    )
