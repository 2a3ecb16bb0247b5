r"""The unit or the words behind a number: `5 cm`, `12 dollars per day`, `7\text{ million}`."""

import re
from dataclasses import dataclass
from fractions import Fraction

_LARGE_NUMBERS = {
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}
# Dimension and size. A unit that is not here is only a name: any other name will do.
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(size))
    for dimension, sizes in {
        "length": {
            "mm millimeter millimetre": "1/1000",
            "cm centimeter centimetre": "1/100",
            "m meter metre": "1",
            "km kilometer kilometre": "1000",
            "inch inches": "0.0254",
            "ft foot feet": "0.3048",
            "yd yard": "0.9144",
            "mile": "1609.344",
        },
        "mass": {"mg": "1/1000", "g gram": "1", "kg kilogram": "1000"},
        "time": {
            "s sec second": "1",
            "min minute": "60",
            "h hr hour": "3600",
            "day": "86400",
            "week": "604800",
        },
        "volume": {"ml milliliter millilitre": "1/1000", "l liter litre": "1"},
        "money": {"cent": "1/100", "dollar": "1"},
        "angle": {"degree": "1"},
    }.items()
    for names, size in sizes.items()
    for name in names.split()
}
# With one of these the words are no unit but part of what is said about the number.
_NOT_A_UNIT_TEXT = (
    "not no never isn't isnt wrong false incorrect is are was or and either neither nor but "
    "maybe perhaps possibly probably if unless to through until between than less more least "
    "most at about around approximately roughly almost nearly any all every everything some "
    "plus minus times half squared cubed point other another answer result true correct one "
    "two  three four five six seven eight nine ten zero eleven twelve twenty thirty "
)
_NOT_A_UNIT = frozenset(_NOT_A_UNIT_TEXT.split())
_WORDS_BEHIND = re.compile(
    r"(?P<quantity>.*?[\d)}%A-Za-z])\s*(?:\\text\s*\{(?P<text>[^{}]*)\}|(?<=[\d)}%])\s?(?P<plain>"
    r"(?:[A-Za-z][A-Za-z.']*)(?:[ /-]+[A-Za-z][A-Za-z.']*){0,5}))"
    r"(?P<power>\s*\^\s*\{?\s*[23]\s*\}?)?",
    re.DOTALL,
)
_MAX_WORDS = 6
_IN_BASE = re.compile(
    r"(?P<digits>-?\d+(?:\.\d+)?)\s*_\s*(?:\{\s*(?P<base>\d{1,2})\s*\}|(?P<one>\d))"
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A known unit, or neither dimension nor size for words that are only a name."""

    dimension: str | None = None
    size: Fraction = Fraction(1)


NO_UNIT = Unit()


@dataclass(frozen=True, slots=True)
class Quantity:
    """The text of a number and what was said behind it."""

    number: str
    factor: Fraction = Fraction(1)
    unit: Unit = NO_UNIT


def split_unit(text: str) -> Quantity | None:
    """The number and its unit; None if the words behind the number are not a unit.

    The base of `12_{5}` counts as a unit of its own: it may be left out, but not be another.
    """
    based = _IN_BASE.fullmatch(text)
    if based is not None:
        base = int(based["base"] or based["one"])
        if any(digit.isdigit() and int(digit) >= base for digit in based["digits"]):
            return None
        return Quantity(based["digits"], unit=Unit(f"base {base}"))
    match = _WORDS_BEHIND.fullmatch(text)
    if match is None:
        return Quantity(text)
    words = match["text"] if match["text"] is not None else match["plain"]
    names = re.findall(r"[^\s/.\-]+", words)
    if match["plain"] is not None and not _is_name(names):
        return Quantity(text)  # `2x`, `3ab`: a product
    if len(names) > _MAX_WORDS or any(name.lower() in _NOT_A_UNIT for name in names):
        return None
    if any(not name.replace("'", "").isalpha() for name in names):
        return None
    factor = Fraction(1)
    while names and names[0].lower() in _LARGE_NUMBERS:
        factor *= _LARGE_NUMBERS[names.pop(0).lower()]
    if names and names[0].lower() in ("percent", "percentage", "pct"):
        return Quantity(match["quantity"].strip() + "%", factor)
    return Quantity(match["quantity"].strip(), factor, _unit(names, match["power"]))


def _is_name(names: list[str]) -> bool:
    return len(names) > 1 or names[0].lower() in _UNITS or len(names[0].rstrip(".")) > 2


def _unit(names: list[str], power: str | None) -> Unit:
    """A unit of several words (`km per hour`) is only a name: rates are not converted."""
    if len(names) != 1:
        return NO_UNIT
    name = names[0].lower()
    known = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
    if known is None:
        return NO_UNIT
    exponent = int(re.sub(r"\D", "", power)) if power else 1
    return Unit(f"{known[0]}^{exponent}", known[1] ** exponent)
