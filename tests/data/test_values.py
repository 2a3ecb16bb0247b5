import pickle
from typing import Any

import pytest

from rlstack.data.values import RowError, answer_text, to_messages
from rlstack.types import Message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1,234 ", "1,234 "),
        (18, "18"),
        (18.0, "18"),
        (-0.5, "-0.5"),
        (1e20, "100000000000000000000"),
        (True, "true"),
        (["72"], "72"),
        ([72.0], "72"),
        (["a", "b"], '["a", "b"]'),
        ({"tests": ["é"]}, '{"tests": ["é"]}'),
    ],
)
def test_answer_text(value: Any, expected: str) -> None:
    assert answer_text(value, column="answer") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "no answer: column 'gt' holds nan; expected an answer"),
        (float("inf"), "no answer: column 'gt' holds inf"),
        ([], r"no answer: column 'gt' holds \[\]"),
        ([None], "no answer: column 'gt' holds None"),
        (b"18", "malformed answer: column 'gt': .* write it as text"),
    ],
)
def test_answer_text_errors(value: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        answer_text(value, column="gt")


def test_to_messages_ignores_other_and_null_fields() -> None:
    turns = [{"role": "user", "content": "hi", "name": "ann", "tool_calls": None}]
    assert to_messages(turns, column="messages") == (Message(role="user", content="hi"),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "malformed conversation: column 'messages' holds 3; expected text or a non-empty list"),
        ([], r"holds \[\]"),
        (["hi"], r"messages\[0\] is 'hi'; expected \{\"role\""),
        ([{"content": "hi"}], r"messages\[0\].role is None; expected text"),
        ([{"role": "", "content": "hi"}], r"messages\[0\].role is empty"),
        (
            [{"role": "user", "content": "hi"}, {"role": "user", "content": [{"type": "image"}]}],
            r"messages\[1\].content is \[\{'type': 'image'\}\]; expected text",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}],
            r"messages\[0\] has tool_calls, which are not supported",
        ),
    ],
)
def test_to_messages_errors(value: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        to_messages(value, column="messages")


def test_row_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(RowError("no answer", "add one")))
    assert (error.reason, error.detail, str(error)) == (
        "no answer",
        "add one",
        "no answer: add one",
    )


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(RowError) as caught:
        to_messages(["x" * 500], column="messages")
    assert len(str(caught.value)) < 200
