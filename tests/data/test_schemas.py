import datetime
import re
from typing import Any

import pytest

from rlstack.config.data import ColumnNames
from rlstack.data.schemas import RowRules, to_example
from rlstack.data.values import RowError
from rlstack.types import Example, Message

USER = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": "Add."}
REPLY = {"role": "assistant", "content": "2"}
USER_MESSAGE = Message(role="user", content="1+1?")
SYSTEM_MESSAGE = Message(role="system", content="Add.")


def convert(row: dict[str, Any], **rules: Any) -> Example:
    return to_example(
        row, number=7, rules=RowRules(name="rows", default_data_source="rows", **rules)
    )


def test_rlstack_schema_with_every_column() -> None:
    row = {
        "id": "a",
        "prompt": "1+1=",
        "answer": 2,
        "response": "2",
        "data_source": "sums",
        "reward": "math_answer",
        "metadata": {"level": 1},
    }
    assert convert(row) == Example(
        example_id="rows:a",
        data_source="sums",
        text="1+1=",
        answer="2",
        response="2",
        reward="math_answer",
        metadata={"level": 1},
    )


def test_smallest_row() -> None:
    assert convert({"prompt": "1+1="}) == Example(
        example_id="rows:7", data_source="rows", text="1+1="
    )


def test_messages_with_a_final_assistant_turn_are_a_demonstration() -> None:
    example = convert({"messages": [SYSTEM, USER, REPLY]})
    assert example.messages == (SYSTEM_MESSAGE, USER_MESSAGE)
    assert example.text is None
    assert example.response == "2"


def test_earlier_assistant_turns_stay_in_the_prompt() -> None:
    example = convert({"messages": [USER, REPLY, USER]})
    assert [turn.role for turn in example.messages] == ["user", "assistant", "user"]
    assert example.response is None


def test_verl_schema() -> None:
    row = {
        "prompt": [SYSTEM, USER],
        "data_source": "openai/gsm8k",
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"split": "train", "index": 0},
    }
    assert convert(row) == Example(
        example_id="rows:7",
        data_source="openai/gsm8k",
        messages=(SYSTEM_MESSAGE, USER_MESSAGE),
        answer="2",
        metadata={"split": "train", "index": 0, "ability": "math"},
    )


def test_trl_text_schema_keeps_further_columns_as_metadata() -> None:
    row = {"prompt": "1+1=", "completion": "2", "solution": "$2$", "level": 3}
    example = convert(row)
    assert (example.text, example.response, example.answer) == ("1+1=", "2", None)
    assert example.metadata == {"solution": "$2$", "level": 3}


def test_trl_conversational_schema() -> None:
    example = convert({"prompt": [USER], "completion": [REPLY], "ground_truth": 2.0})
    assert (example.messages, example.response, example.answer) == ((USER_MESSAGE,), "2", "2")


def test_open_instruct_schema() -> None:
    row = {"messages": [USER], "ground_truth": ["2"], "dataset": ["gsm8k"], "id": 12}
    assert convert(row) == Example(
        example_id="rows:12", data_source="gsm8k", messages=(USER_MESSAGE,), answer="2"
    )


def test_messages_win_over_prompt_which_becomes_metadata() -> None:
    example = convert({"prompt": "1+1?", "messages": [USER, REPLY]})
    assert example.messages == (USER_MESSAGE,)
    assert example.metadata == {"prompt": "1+1?"}


def test_nulls_count_as_absent() -> None:
    row = {"prompt": "1+1=", "messages": None, "completion": None, "answer": None, "level": None}
    assert convert(row) == Example(example_id="rows:7", data_source="rows", text="1+1=")


def test_named_columns_and_answer_pattern() -> None:
    row = {"question": "Tom has 3+15 eggs. How many?", "answer": "3+15=18\n#### 1,018 ", "tag": "x"}
    example = convert(
        row,
        columns=ColumnNames(prompt="question", answer="answer"),
        answer_pattern=re.compile("#### (.*)"),
    )
    assert example.messages == (Message(role="user", content="Tom has 3+15 eggs. How many?"),)
    assert example.text is None
    assert example.answer == "1,018"
    assert example.metadata == {"tag": "x"}


def test_one_column_may_be_both_answer_and_response() -> None:
    example = convert(
        {"q": [USER], "a": "so\n#### 2"},
        columns=ColumnNames(prompt="q", answer="a", response="a"),
        answer_pattern=re.compile("#### (.*)"),
    )
    assert (example.answer, example.response) == ("2", "so\n#### 2")


def test_source_settings_override_the_row() -> None:
    # The overridden columns may even be malformed, and are not metadata.
    row = {"prompt": "x", "data_source": ["a", "b"], "reward": 0.5}
    example = convert(row, data_source="mine", reward="exact_match")
    assert (example.data_source, example.reward, example.metadata) == ("mine", "exact_match", {})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "x", "level": 1},
            "no prompt: expected a column prompt or messages, or name one in columns.prompt; "
            "columns with a value: level, question",
        ),
        ({}, "no prompt: .* columns with a value: none"),
        ({"prompt": " "}, "empty prompt: column 'prompt' holds no text"),
        ({"prompt": 3}, "malformed conversation: column 'prompt' holds 3"),
        ({"messages": [REPLY]}, "no prompt: the conversation is a lone assistant turn"),
        (
            {"messages": [USER, REPLY], "response": "2"},
            "two responses: column 'response' and the final assistant turn",
        ),
        (
            {"prompt": "x", "completion": [USER]},
            "malformed response: column 'completion': expected text or one assistant turn",
        ),
        ({"prompt": "x", "answer": []}, r"no answer: column 'answer' holds \[\]"),
        (
            {"prompt": [USER], "reward_model": {"ground_truth": float("nan")}},
            "no answer: column 'reward_model.ground_truth' holds nan",
        ),
        (
            {"messages": [USER], "dataset": ["gsm8k", "ifeval"]},
            r"malformed dataset: .* expected one name, or set the source's name",
        ),
        ({"prompt": "x", "reward": 1.0}, "malformed reward: column 'reward' holds 1.0"),
        ({"prompt": "x", "id": 1.5}, "malformed id: column 'id' holds 1.5"),
        ({"prompt": "x", "metadata": "y"}, "malformed metadata: column 'metadata' holds 'y'"),
        ({"prompt": "x", "extra_info": [1]}, "malformed extra_info: .* expected a map"),
        (
            {"prompt": "x", "level": 1, "metadata": {"level": 2}},
            "malformed metadata: 'level' is both a column and an entry",
        ),
        (
            {"prompt": "x", "day": datetime.date(2024, 1, 1)},
            "malformed metadata: .*date.* convert or drop the column",
        ),
    ],
)
def test_errors(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        convert(row)


@pytest.mark.parametrize("name", ["prompt", "answer", "response"])
def test_a_named_column_that_is_missing(name: str) -> None:
    message = f"no value in column 'zz': columns.{name} names it; columns with a value: prompt"
    with pytest.raises(RowError, match=message):
        convert({"prompt": "x"}, columns=ColumnNames.model_validate({name: "zz"}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "no answer: answer_pattern is set, but there is no answer column"),
        (
            {"prompt": "x", "answer": "18"},
            r"no match of answer_pattern: '#### \(\.\*\)' is not in column 'answer': '18'",
        ),
    ],
)
def test_answer_pattern_errors(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        convert(row, answer_pattern=re.compile("#### (.*)"))
