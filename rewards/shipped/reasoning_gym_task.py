"""Reward `reasoning_gym`: the verifier that belongs to a reasoning-gym task."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

from rewards.registry import register
from rewards.shipped.extraction import last_match
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

METADATA_KEY = "reasoning_gym"
"""`request.metadata[METADATA_KEY]` is `{"task": name, "entry": {question, answer, metadata}}`."""

Verifier = Callable[[str, Mapping[str, Any]], float]


@register("reasoning_gym", requires=("reasoning_gym",))
def reasoning_gym(
    request: RewardRequest, *, answer_pattern: re.Pattern[str] | None = None
) -> Score:
    """The task's own score, 0.0 .. 1.0; many tasks give partial credit.

    answer_pattern: where the answer stands in the response, e.g. `<answer>(.*?)</answer>`: its last
        match, the first group if there is one; default: the whole response, stripped.

    Raises:
        RewardError: if the row does not come from reasoning-gym, or its task is unknown.
    """
    if METADATA_KEY not in request.metadata:
        raise RewardError(
            f"the row (data source {request.data_source!r}) has no metadata[{METADATA_KEY!r}]. "
            "This reward judges rows of a source with type=reasoning_gym only."
        )
    row = request.metadata[METADATA_KEY]
    if answer_pattern is None:
        answer = request.response.strip()
    else:
        answer = last_match(request.response, answer_pattern)
    if answer is None:
        return Score(value=0.0)
    return Score(value=verifier(row["task"])(answer, row["entry"]), extracted_answer=answer)


@cache
def verifier(task: str) -> Verifier:
    """The function `(answer, entry) -> score` of a task, 0.0 .. 1.0.

    Raises:
        RewardError: if the installed reasoning-gym has no such task.
    """
    # Imported here: the package is optional and takes long to import.
    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    if task not in DATASETS:
        raise RewardError(
            f"reasoning-gym has no task {task!r}. Correct `task` in the data source, or install "
            "the version of reasoning-gym that made the rows."
        )
    # Its annotation leaves the arguments out.
    return cast(Verifier, get_score_answer_fn(task))
