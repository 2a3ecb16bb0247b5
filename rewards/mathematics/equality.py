"""Whether two answers say the same: symmetric, and never by making one of them say less."""

import re
from collections.abc import Sequence
from functools import lru_cache

from rewards.mathematics.reading import (
    Answer,
    Listing,
    Matrix,
    Quantified,
    Relation,
    Union,
    Words,
)
from rewards.mathematics.scalars import (
    Scalar,
    proportional,
    read_scalar,
    same_scalar,
    scaled,
)

_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z0-9,]+\))?", re.ASCII)
_UNORDERED = (("", ""), ("{", "}"))


def same_answer(one: Answer, other: Answer) -> bool:
    """Whether the answers are equal: as numbers, sets, intervals, tuples, matrices or relations."""
    if isinstance(one, Relation) and isinstance(other, Relation):
        return _same_relation(one, other)
    if isinstance(one, Relation):
        value = _stated_value(one)
        return value is not None and same_answer(Quantified(value), other)
    if isinstance(other, Relation):
        return same_answer(other, one)
    if isinstance(one, Quantified) and isinstance(other, Quantified):
        return _same_quantity(one, other)
    if isinstance(one, Words) or isinstance(other, Words):
        return _same_words(one, other)
    if isinstance(one, Listing) and isinstance(other, Listing):
        return _same_listing(one, other)
    if isinstance(one, Union) and isinstance(other, Union):
        return _same_items(one.parts, other.parts)
    if isinstance(one, Matrix) and isinstance(other, Matrix):
        return len(one.rows) == len(other.rows) and all(
            len(row) == len(others) and all(map(same_answer, row, others))
            for row, others in zip(one.rows, other.rows, strict=True)
        )
    for listing, single in ((one, other), (other, one)):
        if isinstance(listing, Listing) and isinstance(single, Quantified):
            # `{5}` is the same answer as `5`; the interval `[5, 5]` is not how one states it.
            brackets = (listing.opened, listing.closed)
            return (
                brackets in _UNORDERED
                and len(listing.items) == 1
                and same_answer(listing.items[0], single)
            )
    return False


def _same_quantity(one: Quantified, other: Quantified) -> bool:
    """A missing unit is any unit; two known ones are converted."""
    if None in (one.unit.dimension, other.unit.dimension):
        return same_scalar(one.scalar, other.scalar)
    return one.unit.dimension == other.unit.dimension and same_scalar(
        scaled(one.scalar, one.unit.size), scaled(other.scalar, other.unit.size)
    )


def _same_words(one: Answer, other: Answer) -> bool:
    texts = [_as_text(answer) for answer in (one, other)]
    return texts[0] is not None and texts[0] == texts[1]


def _as_text(answer: Answer) -> str | None:
    """Words, or the one letter of a choice, whose LaTeX is a variable."""
    if isinstance(answer, Words):
        return answer.text
    if isinstance(answer, Quantified) and answer.scalar.spelling.isalpha():
        return answer.scalar.spelling.casefold()
    return None


def _same_listing(one: Listing, other: Listing) -> bool:
    if None not in (one.variable, other.variable) and one.variable != other.variable:
        return False
    brackets = [(listing.opened, listing.closed) for listing in (one, other)]
    if all(pair in _UNORDERED for pair in brackets):
        return _same_items(one.items, other.items)
    return (
        brackets[0] == brackets[1]
        and len(one.items) == len(other.items)
        and all(map(same_answer, one.items, other.items))
    )


def _same_items(one: Sequence[Answer], other: Sequence[Answer]) -> bool:
    """Each item has one equal to it on the other side, whatever the order."""
    return all(any(same_answer(item, match) for match in other) for item in one) and all(
        any(same_answer(match, item) for item in one) for match in other
    )


def _stated_value(relation: Relation) -> Scalar | None:
    """The value of `x = 5` or `2 + 3 = 5`; None of `4 = 5`, `5 = 5` and all but equations."""
    if any(operator != "=" for operator in relation.operators):
        return None
    *before, value = relation.sides
    assert value is not None, "a relation without a value is not read"
    if value.has_symbols and not _is_name(relation.texts[0]):
        return None
    for text, side in zip(relation.texts, before, strict=False):
        if side is None or side.has_symbols:
            # Only a name may stand before the value: 2x = 10 has yet to be solved.
            if not _is_name(text) and (side is not None or not text.startswith("\\text")):
                return None
        elif text == relation.texts[-1] or not same_scalar(side, value):
            return None
    return value


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text.replace(" ", "")) is not None


def _same_relation(one: Relation, other: Relation) -> bool:
    if len(one.sides) != len(other.sides):
        return False
    if None not in one.sides and None not in other.sides:
        return _same_direction(one, other)
    return one.operators == other.operators and all(
        (a.replace(" ", "") == b.replace(" ", "")) if x is None or y is None else same_scalar(x, y)
        for a, b, x, y in zip(one.texts, other.texts, one.sides, other.sides, strict=True)
    )


def _same_direction(one: Relation, other: Relation) -> bool:
    """The difference of the sides is the same up to a factor, above 0 for an inequality."""
    if len(one.sides) > 2:
        return one.operators == other.operators and _same_sides(one, other)
    if one.operators == other.operators and _same_sides(one, other):
        return True
    first, second = (_difference(*relation.texts) for relation in (one, other))
    if first is None or second is None:
        return False
    ratio = proportional(first, second)
    if ratio is None:
        return False
    operator, expected = one.operators[0], other.operators[0]
    if operator in ("=", "\\ne"):
        return operator == expected
    turned = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
    return expected == (operator if ratio > 0 else turned.get(operator))


def _same_sides(one: Relation, other: Relation) -> bool:
    return all(
        a is not None and b is not None and same_scalar(a, b)
        for a, b in zip(one.sides, other.sides, strict=True)
    )


@lru_cache(maxsize=1024)
def _difference(left: str, right: str) -> Scalar | None:
    return read_scalar(f"({left})-({right})")
