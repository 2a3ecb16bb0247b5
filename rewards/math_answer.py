"""Reward `math_answer`: the response's final answer equals the reference, judged by math-verify.

Nothing here limits time: parsing and simplifying what a model wrote can take arbitrarily long, and
it is the scorer that ends it. math-verify's own limits are switched off because they are signals,
which work in a main thread only.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import logging
import re
from functools import cache
from typing import Any

from rewards.registry import register
from rlstack.types import RewardRequest, Score

_BOXED = "\\boxed{"
_GSM8K_MARK = "####"
_MAX_BOXED_CHARS = 1_000
# Without a box the answer is searched for near the end. math-verify's search is quadratic in the
# length of a run of numbers, which is what a policy that has degenerated writes.
_TAIL_CHARS = 1_000
_NUMBER = r"[-+]?[\d,]*\.?\d+"
_PERCENTAGE = re.compile(rf"\\boxed\{{({_NUMBER})\s*\\?%\}}")
_QUANTITY = re.compile(rf"(?:\\?\$)?({_NUMBER}(?:/\d+)?)(?:\s+[A-Za-z][A-Za-z. ]+)?")
_TAG = re.compile(r"</?[A-Za-z_]+>")
_WORDS = re.compile(r"[A-Za-z\s.,'-]{4,}")


@register("math_answer", requires=("math_verify",))
def math_answer(request: RewardRequest) -> Score:
    r"""1.0 if the final answer is mathematically equal to the reference answer, else 0.0.

    The final answer is the last `\boxed{...}`; without one, what math-verify finds after the last
    `####` or near the end of the response: "the answer is ...", `$...$` or the last number. A
    response without any scores 0.0. A percentage equals both the number before the sign and its
    hundredth.

    The value is None if there is no reference answer or it is not mathematics that can be parsed
    (plain words, for instance: use `exact_match`).
    """
    found = _parse(_final_answer(request.response))
    extracted = _normalised(found)
    reference = None if request.answer is None else _parse(_reference(request.answer))
    if not reference or all(isinstance(candidate, str) for candidate in reference):
        return Score(value=None, extracted_answer=extracted)
    verify = _math_verify().verify
    equal = bool(found) and verify(reference, found, timeout_seconds=None)
    return Score(value=float(equal), extracted_answer=extracted)


def _final_answer(response: str) -> str:
    boxed = _last_boxed(response)
    if boxed is None:
        if _GSM8K_MARK in response:
            response = response.rsplit(_GSM8K_MARK, maxsplit=1)[-1]
        # math-verify wants white space around a number; a tag is not.
        return _TAG.sub(" ", response[-_TAIL_CHARS:])
    return _boxed(_without_unit(boxed))


def _reference(answer: str) -> str:
    """The reference as something to parse: LaTeX without delimiters gets a box around it."""
    answer = answer.rsplit(_GSM8K_MARK, maxsplit=1)[-1].strip()
    boxed = _last_boxed(answer)
    if boxed is None and answer.count("$") > 1:
        return answer
    latex = _without_unit(answer if boxed is None else boxed)
    # The LaTeX parser would read a word as a product of one-letter variables: any anagram is equal.
    return "" if _WORDS.fullmatch(latex) else _boxed(latex)


def _boxed(latex: str) -> str:
    return f"{_BOXED}{latex}}}"


def _without_unit(latex: str) -> str:
    r"""`\$12 per day` as `12`; units inside `\text{}` are math-verify's business."""
    quantity = _QUANTITY.fullmatch(latex.strip())
    return latex if quantity is None else quantity.group(1)


def _last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; None if there is none, "" if it is open or overlong."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    inside = start + len(_BOXED)
    depth = 1
    for end in range(inside, min(len(text), inside + _MAX_BOXED_CHARS)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[inside:end]
    return ""


def _parse(text: str) -> list[Any]:
    """Equal readings of an answer: sympy expressions, then the text itself if any was found."""
    import sympy

    percentage = _PERCENTAGE.fullmatch(text)
    if percentage:
        number = sympy.Rational(percentage.group(1).replace(",", ""))
        return [number / 100, number]
    return _math_verify().parse(text, parsing_timeout=None)


def _normalised(candidates: list[Any]) -> str | None:
    """One spelling per value, so that majority voting counts 0.50 and 2/4 together."""
    if not candidates:
        return None
    import sympy

    answer = candidates[0]
    factors = answer.args if isinstance(answer, sympy.Mul) else (answer,)
    rationals = [_rational(factor) for factor in factors]
    if None in rationals:
        # Left as it was parsed: evaluating what a model wrote may not end (9^9^9).
        return str(answer)
    return str(sympy.prod(rationals))


def _rational(factor: Any) -> Any:
    import sympy

    if isinstance(factor, sympy.UnevaluatedExpr):
        factor = factor.args[0]
    if isinstance(factor, sympy.Rational | sympy.Float):
        return sympy.Rational(str(factor))
    if (
        isinstance(factor, sympy.Pow)
        and factor.exp == -1
        and isinstance(factor.base, sympy.Integer)
    ):
        return sympy.Rational(1, factor.base) if factor.base else None
    return None


@cache
def _math_verify() -> Any:
    # Imported here: the package is optional and brings sympy with it.
    import math_verify

    # It warns once per process that its time limits are off, which is on purpose.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
