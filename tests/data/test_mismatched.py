"""Responses behind other prompts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlstack.data.mismatched import mismatched
from rlstack.errors import DataError
from rlstack.types import JudgedResponse


def judged(prompts: list[int]) -> list[JudgedResponse]:
    return [
        JudgedResponse(
            prompt_id=str(index),
            data_source="s",
            text=f"prompt {prompt}",
            response=f"{prompt}.{index}",
            prompt_ids=np.array([prompt]),
            response_ids=np.array([index]),
            desirable=True,
            metadata={},
        )
        for index, prompt in enumerate(prompts)
    ]


@given(prompts=st.lists(st.integers(0, 4), min_size=2, max_size=30), seed=st.integers(0, 9))
def test_no_prompt_meets_its_own_responses(prompts: list[int], seed: int) -> None:
    rows = judged(prompts)
    if len(set(prompts)) == 1:
        with pytest.raises(DataError, match="all rows have the same prompt"):
            mismatched(rows, seed=seed)
        return
    found = mismatched(rows, seed=seed)
    assert [f.prompt_id for f in found] == [r.prompt_id for r in rows]
    for row, other in zip(rows, found, strict=True):
        assert not other.response.startswith(f"{row.text.split()[1]}.")
        assert other.prompt_ids is row.prompt_ids
    most = max(prompts.count(p) for p in prompts)
    if 2 * most <= len(prompts):
        assert len({f.response for f in found}) == len(rows), "every response is used once"
    assert [f.response for f in mismatched(rows, seed=seed)] == [f.response for f in found]
