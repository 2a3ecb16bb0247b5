r"""The structure of an answer: quantities, lists, intervals, unions, matrices, relations, words.

Brackets and commas are taken apart here and only what stands between them goes to the LaTeX parser,
which reads `(2,1)` as an empty interval and would call it equal to `(3,1)`.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from rewards.mathematics.normal_form import MAX_CHARS, normal_form
from rewards.mathematics.scalars import Scalar, negative, read_scalar, scaled
from rewards.mathematics.units import NO_UNIT, Unit, split_unit

_MAX_ITEMS = 64
_OPERATORS = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|<|>|=")
_GROUPED = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])", re.ASCII)
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_NAME = re.compile(r"\(?\s*([A-Za-z](?:[A-Za-z' ]*[A-Za-z])?)\s*\)?")
# Three letters may be a product, four are a word: any anagram of it would equal the product.
_MIN_WORD_LETTERS = 4
_EMPTY = ("\\emptyset", "\\varnothing")
_NUMBER_SETS = re.compile(r"\\mathbb\s*\{?\s*([A-Z])\s*\}?")


@dataclass(frozen=True, slots=True)
class Quantified:
    """A quantity with its unit."""

    scalar: Scalar
    unit: Unit = NO_UNIT


@dataclass(frozen=True, slots=True)
class Words:
    """Words, or LaTeX that is compared letter by letter."""

    text: str


@dataclass(frozen=True, slots=True)
class Listing:
    """`1, 2` (no brackets), `{1, 2}`, `(1, 2)` or `[1, 2)`; `variable` lies in it."""

    opened: str
    items: "tuple[Answer, ...]"
    closed: str
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class Union:
    """Sets united."""

    parts: "tuple[Answer, ...]"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: "tuple[tuple[Answer, ...], ...]"


@dataclass(frozen=True, slots=True)
class Relation:
    """`sides[0] operators[0] sides[1] ...`; `texts` are the sides as written."""

    sides: tuple[Scalar | None, ...]
    operators: tuple[str, ...]
    texts: tuple[str, ...]


Answer = Quantified | Words | Listing | Union | Matrix | Relation


# Every rollout of a group brings the same reference.
@lru_cache(maxsize=2048)
def read_answer(answer: str) -> Answer | None:
    """What the text of an answer states; None if it cannot be read as one answer."""
    if len(answer) > MAX_CHARS:
        return None
    text = normal_form(answer)
    return _read(text) if text else None


def _read(text: str) -> Answer | None:
    text = _MEMBER.sub("", text.strip(), count=1) if _MEMBER.match(text.strip()) else text.strip()
    if not text:
        return None
    if text in _EMPTY or text == r"\{\}":
        return Listing("{", (), "}")
    if _NUMBER_SETS.fullmatch(text):
        return Words(text.replace(" ", ""))
    whole_text = _TEXT.fullmatch(text)
    if whole_text:
        return _read_words(whole_text[1])
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        return _read_matrix(matrix[2])
    if "\\begin" in text:
        return None
    parts = _split(text, "\\cup")
    if parts is None:
        return None
    if len(parts) > 1:
        read = [_read(part) for part in parts]
        return None if None in read else Union(tuple(part for part in read if part is not None))
    # `5, 6` before `x = 5`: a list of equations is a list.
    items = None if _is_grouped_number(text) else _split(text, ",")
    if items is not None and len(items) > 1:
        return _listing("", items, "")
    bracketed = _bracketed(text)
    if bracketed is not None:
        return bracketed
    if _OPERATORS.search(text):
        return _read_relation(text)
    if text.count("\\pm") == 1:
        return _read_plus_minus(text)
    return _read_quantity(text)


def _read_words(text: str) -> Answer | None:
    quantity = _read_quantity(text.strip())
    if isinstance(quantity, Quantified) and not quantity.scalar.has_symbols:
        return quantity
    name = _NAME.fullmatch(text.strip())
    return Words(" ".join(name[1].casefold().split())) if name else None


def _read_quantity(text: str) -> Answer | None:
    name = _NAME.fullmatch(text)
    if name and _is_word(name[1]):
        return Words(" ".join(name[1].casefold().split()))
    quantity = split_unit(text)
    if quantity is None:
        return None
    scalar = read_scalar(quantity.number)
    if scalar is not None:
        return Quantified(scaled(scalar, quantity.factor), quantity.unit)
    return None


def _is_word(name: str) -> bool:
    longest = max(map(len, name.split()))
    return longest >= _MIN_WORD_LETTERS or (" " in name and longest == _MIN_WORD_LETTERS - 1)


def _read_plus_minus(text: str) -> Answer | None:
    before, after = text.split("\\pm")
    upper, lower = (_read_quantity(f"{before}{sign}{after}") for sign in "+-")
    if not before.strip():
        upper = _read_quantity(after.strip())
        lower = (
            replace(upper, scalar=negative(upper.scalar)) if isinstance(upper, Quantified) else None
        )
    if upper is None or lower is None:
        return None
    return Listing("", (upper, lower), "")


def _read_matrix(body: str) -> Answer | None:
    rows: list[tuple[Answer, ...]] = []
    for line in body.strip().removesuffix("\\\\").split("\\\\"):
        entries = [_read(entry) for entry in line.split("&")]
        if None in entries:
            return None
        rows.append(tuple(entry for entry in entries if entry is not None))
    if sum(map(len, rows)) > _MAX_ITEMS or len({len(row) for row in rows}) != 1:
        return None
    return Matrix(tuple(rows))


def _read_relation(text: str) -> Answer | None:
    texts = [side.strip() for side in _OPERATORS.split(text)]
    operators = [operator.strip() for operator in _OPERATORS.findall(text)]
    if len(texts) > 4 or not all(texts):
        return None
    if operators == ["="]:
        # `S = {1, 2}`, `x = 5 cm`: a name for an answer that is more than a number.
        value = _read(texts[1])
        if re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?|[A-Za-z]\([A-Za-z]\)", texts[0]) and not (
            isinstance(value, Quantified) and value.unit.dimension is None
        ):
            return value
    sides = [_side(side) for side in texts]
    interval = _as_interval(texts, operators, sides)
    if interval is not None:
        return interval
    if sides[-1] is None:
        return None
    return Relation(tuple(sides), tuple(operators), tuple(texts))


def _side(text: str) -> Scalar | None:
    read = _read_quantity(text)
    return read.scalar if isinstance(read, Quantified) else None


def _as_interval(
    texts: list[str], operators: list[str], sides: list[Scalar | None]
) -> Listing | None:
    """`1 < x \\le 2` and `x > 3` as the intervals they describe."""
    if "=" in operators or "\\ne" in operators:
        return None
    variables = [index for index, side in enumerate(texts) if re.fullmatch(r"[A-Za-z]", side)]
    if len(variables) != 1 or len(texts) > 3:
        return None
    index = variables[0]
    # Turned round where needed, so that the smaller side comes first.
    if operators[0] in (">", "\\ge"):
        flipped = {">": "<", "\\ge": "\\le"}
        if any(operator not in flipped for operator in operators):
            return None
        sides, operators = sides[::-1], [flipped[operator] for operator in operators[::-1]]
        index = len(texts) - 1 - index
    elif any(operator not in ("<", "\\le") for operator in operators):
        return None
    if len(texts) == 3 and index != 1:
        return None
    infinity = read_scalar(r"\infty")
    assert infinity is not None, "the parser knows infinity"
    low = sides[index - 1] if index > 0 else negative(infinity)
    high = sides[index + 1] if index + 1 < len(sides) else infinity
    if low is None or high is None:
        return None
    opened = "[" if index > 0 and operators[index - 1] == "\\le" else "("
    closed = "]" if index < len(operators) and operators[index] == "\\le" else ")"
    return Listing(opened, (Quantified(low), Quantified(high)), closed, texts[variables[0]])


def _bracketed(text: str) -> Listing | None:
    """A list in brackets; brackets around one quantity only group it."""
    if text.startswith("\\{") and text.endswith("\\}"):
        items = _split(text[2:-2], ",")
        return None if items is None else _listing("{", items, "}")
    if text[0] not in "([" or text[-1] not in ")]":
        return None
    items = _split(text[1:-1], ",")
    if items is None or len(items) < 2:
        return None
    return _listing(text[0], items, text[-1])


def _listing(opened: str, texts: list[str], closed: str) -> Listing | None:
    texts = [text for text in texts if text.strip()] if not opened else texts
    if len(texts) > _MAX_ITEMS:
        return None
    items = [_read(text) for text in texts]
    if None in items:
        return None
    return Listing(opened, tuple(item for item in items if item is not None), closed)


def _is_grouped_number(text: str) -> bool:
    """Whether every comma separates thousands, as in `1,234`; `1, 234` is a list."""
    return "," in text and "," not in _GROUPED.sub("", text)


def _split(text: str, separator: str) -> list[str] | None:
    """The parts between separators outside all brackets; None if brackets do not match up.

    `[0, 1)` is a pair of brackets as much as `[0, 1]`.
    """
    parts: list[str] = []
    depth = start = index = 0
    while index < len(text):
        if depth == 0 and text.startswith(separator, index):
            parts.append(text[start:index])
            index += len(separator)
            start = index
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[index], 0)
        if depth < 0:
            return None
        index += 1
    return None if depth else [*parts, text[start:]]
