"""Answers as models and datasets write them."""

import threading

import pytest

from rewards.shipped.math_answer import math_answer
from rlstack.types import RewardRequest, Score


def judge(answer: str | None, response: str) -> Score:
    return math_answer(RewardRequest(prompt="", response=response, answer=answer))


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        # numbers as GSM8K has them
        ("72", "... so she sold 72."),
        ("72", "The final answer is 72. I hope it is correct."),
        ("1,234", "It costs 1,234 dollars"),
        ("1234", r"\boxed{1,234}"),
        ("70000", "a profit of $70,000"),
        ("48/2 = <<48/2=24>>24 clips.\n#### 24", r"\boxed{24}"),
        ("#### 66", "48 + 16 = <<48+16=64>>64 points.\n#### 66"),
        ("$18", "She makes $18.00 per day"),
        ("80", "<think>40 twice</think><answer>80</answer>"),
        ("-5", r"\boxed{-5}"),
        # units
        ("3 apples", "3"),
        ("12 dollars", r"\boxed{\$12}"),
        ("5", r"\boxed{5\text{ cm}}"),
        ("12", r"\boxed{12 dollars per day}"),
        # fractions and decimals
        (r"\frac{1}{2}", "0.5"),
        ("1/2", r"\boxed{\frac{2}{4}}"),
        ("0.5", r"\boxed{1/2}"),
        ("3.50", "7/2"),
        ("1/2", r"The probability is \frac{1}{2}."),
        # percentages
        ("50%", "50%"),
        ("50%", r"\boxed{50\%}"),
        (r"50\%", r"\boxed{50}"),
        ("50%", "0.5"),
        ("0.5", r"\boxed{50\%}"),
        # LaTeX
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
        (r"\frac{\pi}{2}", r"\boxed{\pi/2}"),
        ("x^2+2x+1", r"\boxed{(x+1)^2}"),
        ("10^6", "1000000"),
        ("x=3", r"\boxed{3}"),
        ("7", r"\boxed{x=7}"),
        ("(1,2)", r"\boxed{(1, 2)}"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}"),
        ("$[0,1)$", r"so $[0, 1)$"),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}"),
        (r"Hence \boxed{\frac{1}{2}}.", "1/2"),
        # the last box wins over what follows it
        ("72", r"\boxed{71}? No: \boxed{72}, step 5"),
    ],
)
def test_equal(answer: str, response: str) -> None:
    assert judge(answer, response).value == 1.0


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("72", ""),
        ("72", "I have no idea."),
        ("72", r"\boxed{}"),
        ("72", r"72, or so \boxed{72"),
        ("72", r"It is 72. \boxed{71}"),
        ("72", r"\boxed{" + "72+0" * 1000 + "}"),
        ("72", "71"),
        ("-5", "5"),
        ("1/2", "2"),
        (r"\frac{1}{2}", r"\boxed{2}"),
        ("(1,2)", r"\boxed{(2,1)}"),
        ("0.333", r"\boxed{1/3}"),
    ],
)
def test_not_equal(answer: str, response: str) -> None:
    assert judge(answer, response).value == 0.0


@pytest.mark.parametrize("answer", [None, "", "the cat sat", "Evelyn", "$???$", r"\frac{1}{"])
def test_a_reference_that_is_no_mathematics_cannot_be_judged(answer: str | None) -> None:
    assert judge(answer, r"\boxed{3}") == Score(value=None, extracted_answer="3")


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ("0.50", "1/2"),
        (r"\boxed{\frac{1}{2}}", "1/2"),
        ("it is 2/4", "1/2"),
        ("50%", "1/2"),
        (r"\boxed{50\%}", "1/2"),
        ("1,234.0", "1234"),
        (r"\boxed{2\sqrt{3}}", "2*sqrt(3)"),
        ("nothing", None),
    ],
)
def test_extracted_answer_has_one_spelling_per_value(response: str, extracted: str | None) -> None:
    assert judge("1", response).extracted_answer == extracted


def test_an_answer_far_from_the_end_needs_a_box() -> None:
    rambling = " and so on" * 1000
    assert judge("72", r"\boxed{72}" + rambling).value == 1.0
    assert judge("72", "The answer is 72." + rambling).value == 0.0


def test_works_outside_the_main_thread() -> None:
    scores: list[Score] = []
    thread = threading.Thread(target=lambda: scores.append(judge("72", "72")))
    thread.start()
    thread.join()
    assert scores[0].value == 1.0
