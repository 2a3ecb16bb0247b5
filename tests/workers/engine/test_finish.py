"""A response that vLLM gave up is no response."""

import pytest

from rlstack.errors import WorkerError
from rlstack.types import FinishReason
from workers.engine.finish import finish_reason


def test_the_ends_of_a_response_keep_their_names() -> None:
    assert finish_reason("stop") is FinishReason.STOP
    assert finish_reason("length") is FinishReason.LENGTH


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", None])
def test_other_ends_are_a_failure_of_the_engine(reason: str | None) -> None:
    with pytest.raises(WorkerError, match=f"{reason!r} instead of 'stop' or 'length'"):
        finish_reason(reason)
