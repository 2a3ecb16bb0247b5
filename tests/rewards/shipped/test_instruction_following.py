"""Each verifiable instruction, followed and not."""

from typing import Any

import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rewards.shipped.instructions import CHECKS
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

LEAST, LESS = "at least", "less than"
ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["red", "sea"]}, "The Red sea.", "The bored season."),
    (
        "keywords:frequency",
        {"keyword": "sea", "relation": LEAST, "frequency": 2},
        "Sea, sea!",
        "sea seas",
    ),
    (
        "keywords:frequency",
        {"keyword": "sea", "relation": LESS, "frequency": 2},
        "sea",
        "sea sea sea",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["bad"]}, "A badge.", "Bad."),
    (
        "keywords:letter_frequency",
        {"letter": "a", "let_relation": LEAST, "let_frequency": 3},
        "Abaca",
        "bab",
    ),
    ("language:response_language", {"language": "ru"}, "Да, конечно", "Of course"),
    (
        "length_constraints:number_words",
        {"relation": LEAST, "num_words": 3},
        "one two three",
        "- - a",
    ),
    ("length_constraints:number_words", {"relation": LESS, "num_words": 3}, "one two", "a b c"),
    (
        "length_constraints:number_sentences",
        {"relation": LEAST, "num_sentences": 2},
        "It is 3.5 m. Yes!",
        "It is 3.5 m, Mr. A...",
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "one\n***\ntwo",
        "one\n***\n***\ntwo",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "first\n\n'Then' two",
        "then\n\nfirst",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b c]", "[a] [] [ ]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi\nP.S. Bye", "Hi P.S."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Hi\nP.P.S Bye", "P.S. a"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "* a", "**a**"),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*a b* and **c**",
        "*a* ** ** **",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na\nSECTION 2\n",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >> text"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    (
        "detectable_format:constrained_response",
        {},
        "My answer is no.",
        "My answer is yes. My answer is no. My answer is maybe.",
    ),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say hi."},
        "Say hi.\nHi",
        "Say hi.",
    ),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        'So. "That is all."',
        "That is all. So",
    ),
    ("startend:quotation", {}, '"quoted"', '"quoted" not'),
    ("change_case:english_capital", {}, "ALL 3 OF IT", "aLL"),
    ("change_case:english_lowercase", {}, "all 3 of it", "All"),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": LESS, "capital_frequency": 2},
        "ONE two",
        "ONE TWO",
    ),
    ("punctuation:no_comma", {}, "No comma.", "One, comma"),
]


def judge(response: str, ids: list[str], kwargs: list[dict[str, Any]], **params: str) -> Score:
    metadata = {"instruction_id_list": ids, "kwargs": kwargs}
    score = build("ifeval", params)(RewardRequest(prompt="", response=response, metadata=metadata))
    assert isinstance(score, Score)
    return score


@pytest.mark.parametrize(("instruction", "kwargs", "good", "bad"), ROWS)
def test_followed_and_not(instruction: str, kwargs: dict[str, Any], good: str, bad: str) -> None:
    for mode in ("strict", "loose"):
        assert judge(good, [instruction], [kwargs], mode=mode).value == 1.0
        assert judge("", [instruction], [kwargs], mode=mode).value == 0.0
    assert judge(bad, [instruction], [kwargs]).value == 0.0


def test_every_instruction_has_a_row_above() -> None:
    assert {row[0] for row in ROWS} == set(CHECKS)
    assert len(CHECKS) == 25


def test_all_or_the_share() -> None:
    ids = ["punctuation:no_comma", "detectable_format:title"]
    kwargs: list[dict[str, Any]] = [{"unused": None}, {}]
    assert judge("no title", ids, kwargs).value == 0.0
    share = judge("no title", ids, kwargs, score="share")
    assert share.value == 0.5
    assert share.parts == {"punctuation:no_comma": 1.0, "detectable_format:title": 0.0}


def test_the_same_instruction_twice_keeps_both_parts() -> None:
    ids = ["keywords:existence"] * 2
    score = judge("red", ids, [{"keywords": ["red"]}, {"keywords": ["sea"]}])
    assert score.parts == {"keywords:existence": 1.0, "keywords:existence#2": 0.0}


def test_loose_forgives_an_introduction_and_asterisks() -> None:
    ids = ["startend:quotation"]
    said = 'Sure, here it is:\n"quoted"'
    assert judge(said, ids, [{}]).value == 0.0
    assert judge(said, ids, [{}], mode="loose").value == 1.0
    assert judge('**"quoted"**', ids, [{}], mode="loose").value == 1.0


@pytest.mark.parametrize(
    ("ids", "kwargs", "message"),
    [
        (["keywords:exist"], [{}], "unknown instruction 'keywords:exist'"),
        ([], [], "has no metadata"),
        (["punctuation:no_comma"], [], "1 instructions and 0 kwargs"),
        (["keywords:existence"], [{"keywords": None}], "needs keywords"),
        (["language:response_language"], [{"language": "xx"}], "'xx' has no script"),
        (
            ["length_constraints:number_words"],
            [{"relation": "about", "num_words": 3}],
            "relation 'about'",
        ),
    ],
)
def test_a_wrong_row_is_an_error(
    ids: list[str], kwargs: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        judge("text", ids, kwargs)
