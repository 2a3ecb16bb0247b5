"""Preferences in a raw row: two responses to one prompt, or one response and its label.

What `chosen` and `rejected` hold decides how they are read:

| schema                   | `chosen` and `rejected`                    | prompt                         | margin                            |
|--------------------------|--------------------------------------------|--------------------------------|-----------------------------------|
| rlstack, TRL             | text, or one assistant turn                | `prompt` or `messages`         | `margin`                          |
| UltraFeedback binarized  | whole conversations                        | the turns that they share      | `score_chosen` - `score_rejected` |
| open-instruct            | whole conversations                        | the turns that they share      |                                   |
| Anthropic HH             | text of a whole conversation               | the turns that they share      |                                   |

A text of a whole conversation is "\\n\\nHuman: ...\\n\\nAssistant: ...". Beside whole conversations
a column `prompt` becomes metadata. `chosen_features` and `rejected_features` are lists of numbers.
"""  # noqa: E501 (a table)

import math
import re
from collections.abc import Sequence
from typing import Any, cast

from rlstack.config.data import ColumnNames
from rlstack.data.columns import Columns
from rlstack.data.values import RowError, show, to_messages
from rlstack.types import Comparison, Message

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}

Response = tuple[tuple[Message, ...], str]
"""The turns before a response (none: the prompt has a column of its own), and the response."""


def has_comparison(row: Columns, columns: ColumnNames) -> bool:
    """Whether the row has both responses."""
    return {columns.chosen or "chosen", columns.rejected or "rejected"} <= row.values.keys()


def read_comparison(
    row: Columns, columns: ColumnNames
) -> tuple[tuple[Message, ...], Comparison | None]:
    """The turns that both responses share, if they hold whole conversations; and the comparison.

    None: this is no preference row.

    Raises:
        RowError: with the reason and the fix.
    """
    for name, key in ((columns.chosen, "chosen"), (columns.rejected, "rejected")):
        if name is not None:
            row.take_named(name, key=f"columns.{key}")
    if not has_comparison(row, columns):
        return (), None
    text_is_conversation = columns.prompt is None and not {"prompt", "messages"} & row.values.keys()
    sides: list[Response] = []
    for column in (columns.chosen or "chosen", columns.rejected or "rejected"):
        value = row.take_named(column, key=column)
        sides.append(_response(value, column=column, text_is_conversation=text_is_conversation))
    (prompt, chosen), (other_prompt, rejected) = sides
    if prompt != other_prompt:
        raise RowError("different prompts", _difference(prompt, other_prompt))
    if prompt and columns.prompt is not None:
        raise RowError(
            "two prompts",
            f"column '{columns.prompt}', which columns.prompt names, and the conversations in "
            "chosen and rejected; leave columns.prompt out",
        )
    if prompt:
        row.take("messages")  # the chosen conversation once more
    chosen_features, rejected_features = _features(row)
    comparison = Comparison(
        chosen=chosen,
        rejected=rejected,
        margin=_margin(row),
        chosen_features=chosen_features,
        rejected_features=rejected_features,
    )
    return prompt, comparison


def read_label(row: Columns, columns: ColumnNames) -> bool | None:
    """Whether the row's response is desirable; None: the row has no label.

    Raises:
        RowError: if the label is neither true nor false.
    """
    column = columns.label or "label"
    found = row.take(column)
    if found is None:
        return None
    if not isinstance(found[1], bool):
        raise RowError(
            "malformed label", f"column '{column}' holds {show(found[1])}; expected true or false"
        )
    return found[1]


def _response(value: Any, *, column: str, text_is_conversation: bool) -> Response:
    if not isinstance(value, str):
        turns = to_messages(value, column=column)
    elif not text_is_conversation:
        return (), value
    else:
        turns = _parse_transcript(value, column=column)
    *before, last = turns
    if last.role != "assistant":
        raise RowError(
            "malformed conversation",
            f"column '{column}' ends in a turn of {last.role}; its last turn must be the "
            "assistant's, which is what is compared",
        )
    if before and before[0].role == "assistant":
        raise RowError(
            "no prompt",
            f"column '{column}' starts with the assistant's turn; put a user turn before it, or "
            "leave only one turn and put those before it into a column prompt",
        )
    return tuple(before), last.content


def _parse_transcript(text: str, *, column: str) -> tuple[Message, ...]:
    """Turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    before, *parts = SPEAKER.split(text)
    if before.strip() or not parts:
        raise RowError(
            "no prompt",
            f"column '{column}' holds {show(text)} and there is no column prompt or messages; add "
            "one, or name it in columns.prompt (without one, chosen and rejected must be whole "
            'conversations: lists of turns, or text like "\\n\\nHuman: ...\\n\\nAssistant: ...")',
        )
    speakers, contents = parts[::2], parts[1::2]
    return tuple(
        Message(role=ROLES[speaker], content=content.strip())
        for speaker, content in zip(speakers, contents, strict=True)
    )


def _difference(prompt: Sequence[Message], other: Sequence[Message]) -> str:
    fix = "all turns but the last must be the same in both; correct or remove the row"
    if len(prompt) != len(other):
        sizes = f"{len(prompt)} turns before the response in chosen, {len(other)} in rejected"
        return f"{sizes}; {fix}"
    pairs = zip(prompt, other, strict=True)
    turn = next(index for index, (one, two) in enumerate(pairs) if one != two)
    return (
        f"turn {turn} is {show(prompt[turn].content)} ({prompt[turn].role}) in chosen and "
        f"{show(other[turn].content)} ({other[turn].role}) in rejected; {fix}"
    )


def _margin(row: Columns) -> float | None:
    """By how much the chosen response is better, in the units of the row's scores."""
    found = row.take("margin")
    chosen, rejected = row.take("score_chosen"), row.take("score_rejected")
    if found is not None:
        return _number(found[1], where="column 'margin'", reason="malformed margin")
    if chosen is None and rejected is None:
        return None
    if chosen is None or rejected is None:
        there, missing = "score_chosen", "score_rejected"
        if chosen is None:
            there, missing = missing, there
        raise RowError(
            "malformed margin", f"column '{there}' has a value and '{missing}' has none; add it"
        )
    better, worse = (
        _number(value, where=f"column '{column}'", reason="malformed margin")
        for column, value in (chosen, rejected)
    )
    return better - worse


def _features(row: Columns) -> tuple[tuple[float, ...], tuple[float, ...]]:
    names = ("chosen_features", "rejected_features")
    chosen, rejected = (_numbers(row, name) for name in names)
    if len(chosen) != len(rejected):
        raise RowError(
            "different numbers of features",
            f"{len(chosen)} in column '{names[0]}', {len(rejected)} in '{names[1]}'; both "
            "responses must have the same ones, in the same order",
        )
    return chosen, rejected


def _numbers(row: Columns, column: str) -> tuple[float, ...]:
    found = row.take(column)
    if found is None:
        return ()
    reason, value = "malformed features", found[1]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError(reason, f"column '{column}' holds {show(value)}; expected a list of numbers")
    items = cast(Sequence[Any], value)
    return tuple(
        _number(item, where=f"{column}[{index}]", reason=reason) for index, item in enumerate(items)
    )


def _number(value: Any, *, where: str, reason: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(reason, f"{where} holds {show(value)}; expected a finite number")
    return float(value)
