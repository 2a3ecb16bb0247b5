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
question: one user turn. With both `prompt` and `messages`, `messages` is the conversation.
"""  # noqa: E501 (a table)

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from rlstack.config.data import ColumnNames
from rlstack.data.values import RowError, answer_text, show, to_messages
from rlstack.types import Example, Message


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


def to_example(raw: Mapping[str, Any], *, number: int, rules: RowRules) -> Example:
    """Recognise the schema of a row and convert it; `number` names the row if it has no `id`.

    Raises:
        RowError: with the reason and the fix.
    """
    row = _Row(raw)
    messages, text = _prompt(row, rules.columns)
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
        reward=reward,
        metadata=_metadata(row),
    )


class _Row:
    """The columns of a row that are not null; remembers which were read."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.values = {name: value for name, value in raw.items() if value is not None}
        self.read: set[str] = set()

    def take(self, *names: str) -> tuple[str, Any] | None:
        """Name and value of the first of the columns that is there."""
        for name in names:
            if name in self.values:
                self.read.add(name)
                return name, self.values[name]
        return None

    def take_named(self, name: str, *, key: str) -> Any:
        """Value of a column that the configuration names."""
        found = self.take(name)
        if found is None:
            raise RowError(
                f"no value in column '{name}'",
                f"{key} names it; columns with a value: {self.describe()}",
            )
        return found[1]

    def rest(self) -> dict[str, Any]:
        return {name: value for name, value in self.values.items() if name not in self.read}

    def describe(self) -> str:
        return ", ".join(sorted(self.values)) or "none"


def _prompt(row: _Row, columns: ColumnNames) -> tuple[tuple[Message, ...], str | None]:
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


def _response(row: _Row, columns: ColumnNames, demonstration: str | None) -> str | None:
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


def _answer(row: _Row, rules: RowRules) -> str | None:
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


def _verl_answer(row: _Row) -> tuple[str, Any] | None:
    found = row.values.get("reward_model")
    if not isinstance(found, Mapping):
        return None
    reward_model = cast(Mapping[str, Any], found)
    if reward_model.get("ground_truth") is None:
        return None
    row.read.add("reward_model")
    return "reward_model.ground_truth", reward_model["ground_truth"]


def _data_source(row: _Row, rules: RowRules) -> str:
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


def _reward(row: _Row, rules: RowRules) -> str | None:
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


def _identifier(row: _Row, number: int) -> str:
    found = row.take("id")
    if found is None:
        return str(number)
    if not isinstance(found[1], str | int) or found[1] == "":
        raise RowError("malformed id", f"column 'id' holds {show(found[1])}; expected text")
    return str(found[1])


def _metadata(row: _Row) -> dict[str, Any]:
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
