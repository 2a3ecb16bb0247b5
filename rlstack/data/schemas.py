"""From a raw row to an `Example`: which columns hold what. Reads no file and no tokenizer.

Known schemas; other columns become metadata, and a null counts as absent:

| schema        | prompt                             | answer                      | response                | data_source   | metadata       |
|---------------|------------------------------------|-----------------------------|-------------------------|---------------|----------------|
| rlstack       | `prompt` or `messages`             | `answer`                    | `response`              | `data_source` | `metadata`     |
| TRL           | `prompt` or `messages`             | `answer` or `ground_truth`  | `completion`            |               |                |
| open-instruct | `messages`                         | `ground_truth`              | final assistant turn    | `dataset`     |                |
| verl          | `prompt` (messages)                | `reward_model.ground_truth` |                         | `data_source` | `extra_info`   |

A conversation is a list of `{"role", "content"}`; where its last turn is the assistant's, that turn
is the response. `prompt` text is used as it stands. Text in a column that `columns.prompt` names is a
question: one user turn. With both `prompt` and `messages`, `messages` is the conversation. What
`comparisons` says of preferences is read where a stage asks for them; a row without a prompt of its
own takes that of its preference.
"""  # noqa: E501 (a table)

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from rlstack.config.data import ColumnNames
from rlstack.data.columns import Columns
from rlstack.data.comparisons import has_comparison, read_comparison, read_label
from rlstack.data.values import RowError, answer_text, show, to_messages
from rlstack.types import Example, Message


class RowKind(StrEnum):
    """What a stage needs of its rows."""

    PROMPT = "prompt"
    """A prompt, and an answer or a response where there is one."""
    COMPARISON = "comparison"
    """A prompt and two responses, of which one is preferred."""
    JUDGED = "judged"
    """A prompt, a response and its label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """What is the same for all rows of a source."""

    name: str
    """Prefix of the example ids."""
    default_data_source: str
    columns: ColumnNames = field(default_factory=ColumnNames)
    answer_pattern: re.Pattern[str] | None = None
    """Its first group, found in the answer column, is the answer."""
    data_source: str | None = None
    """Overrides the rows' own."""
    reward: str | None = None
    """Overrides the rows' own."""


def to_example(
    raw: Mapping[str, Any], *, number: int, rules: RowRules, kind: RowKind = RowKind.PROMPT
) -> Example:
    """Recognise the schema of a row and convert it; `number` names the row if it has no `id`.

    Raises:
        RowError: with the reason and the fix.
    """
    row = Columns(raw)
    shared, comparison = (), None
    if kind is RowKind.COMPARISON or _prompt_is_shared(row, rules.columns):
        shared, comparison = read_comparison(row, rules.columns)
    messages, text = (shared, None) if shared else _prompt(row, rules.columns)
    messages, demonstration = _split_demonstration(messages)
    response = _response(row, rules.columns, demonstration)
    answer = _answer(row, rules)
    data_source = _data_source(row, rules)
    reward = _reward(row, rules)
    return Example(
        example_id=f"{rules.name}:{_identifier(row, number)}",
        data_source=data_source,
        messages=messages,
        text=text,
        answer=answer,
        response=response,
        comparison=comparison,
        desirable=read_label(row, rules.columns) if kind is RowKind.JUDGED else None,
        reward=reward,
        metadata=_metadata(row),
    )


def _prompt_is_shared(row: Columns, columns: ColumnNames) -> bool:
    """Whether the only prompt of the row is what chosen and rejected have in common."""
    own = columns.prompt is not None or {"messages", "prompt"} & row.values.keys()
    return not own and has_comparison(row, columns)


def _prompt(row: Columns, columns: ColumnNames) -> tuple[tuple[Message, ...], str | None]:
    if columns.prompt is not None:
        value = row.take_named(columns.prompt, key="columns.prompt")
        if isinstance(value, str):
            _require_text(value, column=columns.prompt)
            return (Message(role="user", content=value),), None
        return to_messages(value, column=columns.prompt), None
    found = row.take("messages", "prompt")
    if found is None:
        raise RowError(
            "no prompt",
            "expected a column prompt or messages, or name one in columns.prompt; columns with a "
            f"value: {row.describe()}",
        )
    column, value = found
    if isinstance(value, str):
        _require_text(value, column=column)
        return (), value
    return to_messages(value, column=column), None


def _require_text(value: str, *, column: str) -> None:
    if not value.strip():
        raise RowError("empty prompt", f"column '{column}' holds no text; remove the row")


def _split_demonstration(
    messages: tuple[Message, ...],
) -> tuple[tuple[Message, ...], str | None]:
    """The turns before a final assistant turn, and that turn."""
    if not messages or messages[-1].role != "assistant":
        return messages, None
    if len(messages) == 1:
        raise RowError(
            "no prompt", "the conversation is a lone assistant turn; put a user turn before it"
        )
    return messages[:-1], messages[-1].content


def _response(row: Columns, columns: ColumnNames, demonstration: str | None) -> str | None:
    if columns.response is not None:
        column = columns.response
        value = row.take_named(column, key="columns.response")
    else:
        found = row.take("response", "completion")
        if found is None:
            return demonstration
        column, value = found
    if demonstration is not None:
        raise RowError(
            "two responses",
            f"column '{column}' and the final assistant turn of the conversation; remove one",
        )
    if isinstance(value, str):
        return value
    turns = to_messages(value, column=column)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise RowError(
            "malformed response", f"column '{column}': expected text or one assistant turn"
        )
    return turns[0].content


def _answer(row: Columns, rules: RowRules) -> str | None:
    if rules.columns.answer is not None:
        column = rules.columns.answer
        value = row.take_named(column, key="columns.answer")
    else:
        found = _verl_answer(row) or row.take("answer", "ground_truth")
        if found is None:
            if rules.answer_pattern is None:
                return None
            raise RowError(
                "no answer",
                "answer_pattern is set, but there is no answer column; name it in columns.answer; "
                f"columns with a value: {row.describe()}",
            )
        column, value = found
    answer = answer_text(value, column=column)
    if rules.answer_pattern is None:
        return answer
    match = rules.answer_pattern.search(answer)
    if match is None or match.group(1) is None:
        raise RowError(
            "no match of answer_pattern",
            f"'{rules.answer_pattern.pattern}' is not in column '{column}': {show(answer)}",
        )
    return match.group(1).strip()


def _verl_answer(row: Columns) -> tuple[str, Any] | None:
    found = row.values.get("reward_model")
    if not isinstance(found, Mapping):
        return None
    reward_model = cast(Mapping[str, Any], found)
    if reward_model.get("ground_truth") is None:
        return None
    row.read.add("reward_model")
    return "reward_model.ground_truth", reward_model["ground_truth"]


def _data_source(row: Columns, rules: RowRules) -> str:
    found = row.take("data_source", "dataset")
    if rules.data_source is not None:
        return rules.data_source
    if found is None:
        return rules.default_data_source
    column, value = found
    # open-instruct holds a list, one entry per verifier.
    if isinstance(value, list) and len(cast(list[Any], value)) == 1:
        value = cast(Any, value[0])
    if not isinstance(value, str) or not value:
        raise RowError(
            f"malformed {column}",
            f"column '{column}' holds {show(value)}; expected one name, or set the source's name",
        )
    return value


def _reward(row: Columns, rules: RowRules) -> str | None:
    found = row.take("reward")
    if rules.reward is not None or found is None:
        return rules.reward
    if not isinstance(found[1], str):
        raise RowError(
            "malformed reward",
            f"column 'reward' holds {show(found[1])}; expected the name of a reward, or set the "
            "source's reward",
        )
    return found[1]


def _identifier(row: Columns, number: int) -> str:
    found = row.take("id")
    if found is None:
        return str(number)
    if not isinstance(found[1], str | int) or found[1] == "":
        raise RowError("malformed id", f"column 'id' holds {show(found[1])}; expected text")
    return str(found[1])


def _metadata(row: Columns) -> dict[str, Any]:
    """The entries of `metadata` and `extra_info`, and every column that nothing else has read."""
    metadata: dict[str, Any] = {}
    for column in ("metadata", "extra_info"):
        found = row.take(column)
        if found is None:
            continue
        if not isinstance(found[1], Mapping):
            raise RowError(
                f"malformed {column}", f"column '{column}' holds {show(found[1])}; expected a map"
            )
        _merge(metadata, cast(Mapping[str, Any], found[1]))
    _merge(metadata, row.rest())
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise RowError(
            "malformed metadata", f"{error}; metadata must be JSON: convert or drop the column"
        ) from None
    return metadata


def _merge(metadata: dict[str, Any], more: Mapping[str, Any]) -> None:
    twice = sorted(metadata.keys() & more.keys())
    if twice:
        raise RowError(
            "malformed metadata",
            f"'{twice[0]}' is both a column and an entry of metadata or extra_info; rename one",
        )
    metadata.update(more)
