"""Why vLLM ended a response, in the words of this project."""

from rlstack.errors import WorkerError
from rlstack.types import FinishReason


def finish_reason(reason: str | None) -> FinishReason:
    """The same reason, where it was the model's end or the limit of tokens.

    Raises:
        WorkerError: if the engine gave the response up ("abort", "error"): it is no sample of the
            policy, and is redone, as after the engine's death.
    """
    if reason not in (FinishReason.STOP, FinishReason.LENGTH):
        raise WorkerError(
            f"vLLM ended a response with {reason!r} instead of 'stop' or 'length': the engine gave "
            "it up; its own log says why"
        )
    return FinishReason(reason)
