r"""Rational numbers as people write them, read exactly and without the LaTeX parser."""

import re
from dataclasses import dataclass
from fractions import Fraction

_MAX_DIGITS = 60
_MAX_POWER_OF_TEN = 60
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(
    rf"(?P<number>{_DECIMAL})(?:[eE](?P<e>[-+]?\d+)"
    r"|\s*(?:\\times|\\cdot|x)\s*10\s*\^\s*(?:\{\s*(?P<power>[-+]?\s*\d+)\s*\}|(?P<short>\d)(?!\d)|"
    r"\(?(?P<plain>-?\d+)\)?))?",
    re.ASCII,
)
_FRACTION = re.compile(
    rf"(?:(?P<whole>\d+)\s*)?\\frac\s*\{{\s*(?P<top>-?\s*{_DECIMAL})\s*\}}"
    rf"\s*\{{\s*(?P<bottom>-?\s*{_DECIMAL})\s*\}}",
    re.ASCII,
)
_SLASH = re.compile(
    rf"(?:(?P<whole>\d+)\s+)?(?P<top>{_DECIMAL})\s*/\s*(?P<bottom>-?\s*{_DECIMAL})", re.ASCII
)
_REPEATING = re.compile(r"(\d+)\.(\d*)\\overline\s*\{(\d+)\}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Decimal:
    """How a decimal was written: it may be a rounding of something else."""

    places: int
    significant: int


def read_number(text: str) -> tuple[Fraction, Decimal | None] | None:
    r"""`-1,234.50`, `7/2`, `1 1/2`, `\frac{7}{2}`, `3 \times 10^{5}`, `1.5e3`, `0.\overline{3}`."""
    text = text.strip()
    if sum(character.isdigit() for character in text) > _MAX_DIGITS:
        return None
    while text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    sign = 1
    if text[:1] in ("-", "+"):
        sign = -1 if text[0] == "-" else 1
        text = text[1:].strip()
    for read in (_read_plain, _read_fraction, _read_repeating):
        number = read(text)
        if number is not None:
            return sign * number[0], number[1]
    return None


def _read_plain(text: str) -> tuple[Fraction, Decimal | None] | None:
    match = _PLAIN.fullmatch(text)
    if match is None:
        return None
    value = _exact(match["number"])
    power = next((match[g] for g in ("e", "power", "short", "plain") if match[g] is not None), None)
    if power is not None:
        exponent = int(power.replace(" ", ""))
        if abs(exponent) > _MAX_POWER_OF_TEN:
            return None
        return value * Fraction(10) ** exponent, None
    if "." not in match["number"]:
        return value, None
    digits = match["number"].replace(",", "")
    places = len(digits.partition(".")[2])
    return value, Decimal(places, len(digits.replace(".", "").lstrip("0")))


def _read_fraction(text: str) -> tuple[Fraction, Decimal | None] | None:
    match = _FRACTION.fullmatch(text) or _SLASH.fullmatch(text)
    if match is None:
        return None
    bottom = _exact(match["bottom"])
    if not bottom:
        return None
    value = _exact(match["top"]) / bottom
    if match["whole"]:
        if "-" in match["top"] + match["bottom"]:
            return None
        value += int(match["whole"])
    return value, None


def _read_repeating(text: str) -> tuple[Fraction, Decimal | None] | None:
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    whole, once, again = match.groups()
    repeated = Fraction(int(again), 10 ** len(again) - 1)
    return (int(whole + once) + repeated) / Fraction(10) ** len(once), None


def _exact(number: str) -> Fraction:
    return Fraction(number.replace(",", "").replace(" ", "").rstrip("."))
