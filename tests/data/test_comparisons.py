from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlstack.config.data import ColumnNames
from rlstack.data.schemas import RowKind, RowRules, to_example
from rlstack.data.values import RowError
from rlstack.types import Comparison, Example, Message

USER = {"role": "user", "content": "1+1?"}
GOOD = {"role": "assistant", "content": "2"}
BAD = {"role": "assistant", "content": "3"}
MORE = {"role": "user", "content": "and 2+2?"}
PROMPT = (Message(role="user", content="1+1?"),)
PREFERENCE = Comparison(chosen="2", rejected="3")


def convert(row: dict[str, Any], kind: RowKind = RowKind.COMPARISON, **columns: str) -> Example:
    rules = RowRules(name="rows", default_data_source="rows", columns=ColumnNames(**columns))
    return to_example(row, number=7, rules=rules, kind=kind)


def expected(**values: Any) -> Example:
    given_values = {"comparison": PREFERENCE, "messages": PROMPT} | values
    return Example(example_id="rows:7", data_source="rows", **given_values)


def test_rlstack_schema_with_every_column() -> None:
    row = {
        "id": "a",
        "prompt": "1+1=",
        "chosen": "2",
        "rejected": "3",
        "margin": 2,
        "chosen_features": [1, 0.5],
        "rejected_features": [0, -0.5],
        "data_source": "sums",
        "metadata": {"level": 1},
    }
    assert convert(row) == Example(
        example_id="rows:a",
        data_source="sums",
        text="1+1=",
        comparison=Comparison(
            chosen="2",
            rejected="3",
            margin=2.0,
            chosen_features=(1.0, 0.5),
            rejected_features=(0.0, -0.5),
        ),
        metadata={"level": 1},
    )


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_responses_of_text_or_one_turn(column: str) -> None:
    assert convert({column: [USER], "chosen": "2", "rejected": "3"}) == expected()
    assert convert({column: [USER], "chosen": [GOOD], "rejected": [BAD]}) == expected()


def test_a_response_to_a_prompt_may_look_like_a_transcript() -> None:
    row = {"prompt": "p", "chosen": "\n\nHuman: a", "rejected": "b"}
    assert convert(row).comparison == Comparison(chosen="\n\nHuman: a", rejected="b")


def test_ultrafeedback_binarized() -> None:
    row = {
        "prompt": "1+1?",
        "prompt_id": "f0e3",
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
        "messages": [USER, GOOD],
        "score_chosen": 8.5,
        "score_rejected": 6,
    }
    assert convert(row) == expected(
        comparison=Comparison(chosen="2", rejected="3", margin=2.5),
        metadata={"prompt": "1+1?", "prompt_id": "f0e3"},
    )
    # The same row is a demonstration where a stage asks for prompts and responses.
    example = convert(row, RowKind.PROMPT)
    assert (example.messages, example.response, example.comparison) == (PROMPT, "2", None)


def test_open_instruct_shares_all_turns_but_the_last() -> None:
    row = {"chosen": [USER, BAD, MORE, GOOD], "rejected": [USER, BAD, MORE, BAD], "source": "x"}
    turns = tuple(Message(**turn) for turn in (USER, BAD, MORE))
    assert convert(row) == expected(messages=turns, metadata={"source": "x"})


def test_anthropic_hh() -> None:
    start = "\n\nHuman: 1+1?\n\nAssistant: Two:\n\n2\n\nHuman: Sure? Ask Human: who\n\nAssistant:"
    example = convert({"chosen": f"{start} Yes.", "rejected": f"{start} No.\n"})
    assert example.messages == (
        Message(role="user", content="1+1?"),
        Message(role="assistant", content="Two:\n\n2"),
        Message(role="user", content="Sure? Ask Human: who"),
    )
    assert example.comparison == Comparison(chosen="Yes.", rejected="No.")
    assert example.metadata == {}


def test_prompts_of_preferences_serve_reinforcement_learning_too() -> None:
    row = {"chosen": "\n\nHuman: 1+1?\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1?\n\nAssistant:"}
    assert convert(row, RowKind.PROMPT).messages == PROMPT


def test_preferences_beside_a_prompt_are_metadata_where_nobody_asks_for_them() -> None:
    example = convert({"prompt": "p", "chosen": 1, "rejected": 2, "label": 3}, RowKind.PROMPT)
    assert example.metadata == {"chosen": 1, "rejected": 2, "label": 3}


def test_named_columns() -> None:
    row = {"question": "1+1?", "better": "2", "worse": "3"}
    assert convert(row, prompt="question", chosen="better", rejected="worse") == expected()


def test_rows_without_both_responses_are_no_preference() -> None:
    assert convert({"prompt": "p", "chosen": "2"}).comparison is None
    assert convert({"prompt": "p", "chosen": "2"}).metadata == {"chosen": "2"}


PAIR = {"prompt": "p", "chosen": "2", "rejected": "3"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": [USER, GOOD], "rejected": [MORE, BAD]},
            r"different prompts: turn 0 is '1\+1\?' \(user\) in chosen and 'and 2\+2\?' \(user\) "
            "in rejected; all turns but the last must be the same",
        ),
        (
            {"chosen": [USER, GOOD, MORE, GOOD], "rejected": [USER, BAD]},
            "different prompts: 3 turns before the response in chosen, 1 in rejected",
        ),
        (
            {"chosen": [USER], "rejected": [USER, BAD]},
            "malformed conversation: column 'chosen' ends in a turn of user",
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [GOOD, BAD]},
            "no prompt: column 'rejected' starts with the assistant's turn",
        ),
        (
            {"chosen": "2", "rejected": "3"},
            "no prompt: column 'chosen' holds '2' and there is no column prompt or messages",
        ),
        (
            {"chosen": 2, "rejected": "3", "prompt": "p"},
            "malformed conversation: column 'chosen' holds 2",
        ),
        (PAIR | {"margin": "big"}, "malformed margin: column 'margin' holds 'big'; expected a fin"),
        (PAIR | {"margin": True}, "malformed margin: column 'margin' holds True"),
        (PAIR | {"margin": float("nan")}, "malformed margin: column 'margin' holds nan"),
        (
            PAIR | {"score_chosen": 3, "score_rejected": "x"},
            "malformed margin: column 'score_rejected' holds 'x'",
        ),
        (
            PAIR | {"score_rejected": 3},
            "malformed margin: column 'score_rejected' has a value and 'score_chosen' has none",
        ),
        (
            PAIR | {"chosen_features": [1, 2], "rejected_features": [1]},
            "different numbers of features: 2 in column 'chosen_features', 1 in 'rejected_f",
        ),
        (
            PAIR | {"chosen_features": [1]},
            "different numbers of features: 1 in column 'chosen_features', 0 in 'rejected_f",
        ),
        (
            PAIR | {"chosen_features": [1, "x"]},
            r"malformed features: chosen_features\[1\] holds 'x'",
        ),
        (
            PAIR | {"rejected_features": 1},
            "malformed features: column 'rejected_features' holds 1; expected a list",
        ),
    ],
)
def test_errors(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        convert(row)


def test_two_prompts() -> None:
    row = {"q": "1+1?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    with pytest.raises(RowError, match=r"two prompts: column 'q'.*leave columns.prompt out"):
        convert(row, prompt="q")


def test_a_named_column_that_is_missing() -> None:
    with pytest.raises(RowError, match=r"no value in column 'c': columns.chosen names it"):
        convert({"prompt": "p", "rejected": "3"}, chosen="c")


@pytest.mark.parametrize("label", [True, False])
def test_labels(label: bool) -> None:
    row = {"prompt": [USER], "completion": [GOOD], "label": label}
    example = convert(row, RowKind.JUDGED)
    assert (example.messages, example.response, example.desirable) == (PROMPT, "2", label)
    assert example.metadata == {}
    named = convert({"messages": [USER, GOOD], "good": label}, RowKind.JUDGED, label="good")
    assert (named.messages, named.response, named.desirable) == (PROMPT, "2", label)


def test_a_label_that_is_neither_true_nor_false() -> None:
    row = {"prompt": "p", "completion": "2", "label": 1}
    with pytest.raises(RowError, match="malformed label: column 'label' holds 1; expected true"):
        convert(row, RowKind.JUDGED)


CONTENT = st.text(max_size=20).map(str.strip).filter(lambda text: ":" not in text)


@given(st.lists(CONTENT, min_size=2, max_size=6), CONTENT)
def test_transcripts_are_read_back(contents: list[str], other: str) -> None:
    contents = contents[: len(contents) // 2 * 2]  # the assistant speaks last
    speakers = ("Human", "Assistant") * (len(contents) // 2)
    turns = [f"\n\n{who}: {text}" for who, text in zip(speakers, contents, strict=True)]
    chosen, rejected = "".join(turns), "".join(turns[:-1]) + f"\n\nAssistant: {other}"
    example = convert({"chosen": chosen, "rejected": rejected})
    assert [turn.content for turn in example.messages] == contents[:-1]
    assert [turn.role for turn in example.messages][:1] == ["user"]
    assert example.comparison == Comparison(chosen=contents[-1], rejected=other)
