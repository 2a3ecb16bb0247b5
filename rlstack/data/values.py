"""Values of a raw row: conversations and answers, and what is wrong with them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from rlstack.errors import DataError
from rlstack.types import Message


class RowError(DataError):
    """One row cannot be used. The text is `reason: detail`; rows are counted by `reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RowError"], tuple[str, str]]:
        return RowError, (self.reason, self.detail)


def to_messages(value: Any, *, column: str) -> tuple[Message, ...]:
    """A list of `{"role": str, "content": str}`.

    Raises:
        RowError: naming the turn that is not one.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise RowError(
            "malformed conversation",
            f"column '{column}' holds {show(value)}; expected text or a non-empty list of "
            '{"role": ..., "content": ...}',
        )
    turns = cast(Sequence[Any], value)
    return tuple(_to_message(turn, where=f"{column}[{i}]") for i, turn in enumerate(turns))


def _to_message(turn: Any, *, where: str) -> Message:
    reason = "malformed conversation"
    if not isinstance(turn, Mapping):
        raise RowError(reason, f'{where} is {show(turn)}; expected {{"role": ..., "content": ...}}')
    fields = cast(Mapping[str, Any], turn)
    for name in ("role", "content"):
        value = fields.get(name)
        if not isinstance(value, str):
            raise RowError(reason, f"{where}.{name} is {show(value)}; expected text")
    if not fields["role"]:
        raise RowError(reason, f"{where}.role is empty; expected system, user or assistant")
    if fields.get("tool_calls"):
        raise RowError(reason, f"{where} has tool_calls, which are not supported; write them out")
    return Message(role=fields["role"], content=fields["content"])


def answer_text(value: Any, *, column: str) -> str:
    """The answer as text.

    Text stays as it is. A number is written in its shortest form, without `.0` (Parquet columns
    turn 18 into 18.0). A list of one is its element. A longer list, a mapping or a boolean becomes
    JSON text, which a reward can read back.

    Raises:
        RowError: for NaN, an empty list or anything JSON cannot hold.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(cast(list[Any], value)) == 1:
        return answer_text(value[0], column=column)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if value is None or value == [] or isinstance(value, float):
        raise RowError("no answer", f"column '{column}' holds {show(value)}; expected an answer")
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise RowError(
            "malformed answer", f"column '{column}': {error}; write it as text"
        ) from None


def show(value: Any) -> str:
    """A short, readable form of a wrong value."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
