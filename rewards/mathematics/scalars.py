r"""One quantity, exact or symbolic: read within bounds, compared by value.

What a model wrote is never simplified, expanded or solved: those can take any time and memory.
Two expressions are equal if they have the same values at fixed points, to 20 digits.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import logging
import zlib
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from math import factorial, prod
from typing import Any

from rewards.mathematics.bounds import MAX_FACTORIAL, is_bounded
from rewards.mathematics.magnitude import check_magnitude
from rewards.mathematics.numbers import Decimal, read_number

_DIGITS = 30
_TOLERANCE = Fraction(1, 10**18)
# Below this a value may be what is left of a sum that cancels out.
_SMALLEST = 1e-180
# Fewer digits are too few to tell a rounding from a wrong number.
_MIN_SIGNIFICANT = 6


@dataclass(frozen=True, slots=True)
class Scalar:
    """`exact` if it is a rational number; else `values` at the fixed points and its `spelling`."""

    spelling: str
    exact: Fraction | None = None
    decimal: Decimal | None = None
    values: tuple[Any, ...] = ()
    percent: bool = False
    has_symbols: bool = False


def read_scalar(text: str) -> Scalar | None:
    """The quantity that `text`, in normal form and without a unit, states; None if it is none."""
    text = text.strip()
    percent = text.endswith("%")
    if percent:
        text = text[:-1].rstrip("\\ ")
    number = read_number(text)
    if number is not None:
        value, decimal = number
        return Scalar(str(value), exact=value, decimal=decimal, percent=percent)
    if not is_bounded(text):
        return None
    scalar = _read_expression(text)
    return None if scalar is None else replace(scalar, percent=percent)


def same_scalar(one: Scalar, other: Scalar) -> bool:
    """Whether both state one quantity; a percentage is the number before its sign, or over 100."""
    if one.percent == other.percent:
        return _same_value(one, other)
    return _same_value(one, other) or (
        _same_value(_hundredth(one), other) if one.percent else _same_value(one, _hundredth(other))
    )


def negative(scalar: Scalar) -> Scalar:
    """Minus the quantity."""
    return replace(
        scalar,
        spelling=f"-({scalar.spelling})",
        exact=None if scalar.exact is None else -scalar.exact,
        values=tuple(-value for value in scalar.values),
    )


def scaled(scalar: Scalar, factor: Fraction) -> Scalar:
    """The quantity times `factor`."""
    if factor == 1:
        return scalar
    if scalar.exact is not None:
        value = scalar.exact * factor
        return replace(scalar, spelling=str(value), exact=value, decimal=None)
    scale = _mpmath().mpf(factor.numerator) / factor.denominator
    return replace(
        scalar,
        spelling=f"{factor}*({scalar.spelling})",
        values=tuple(value * scale for value in scalar.values),
    )


def proportional(one: Scalar, other: Scalar) -> float | None:
    """The real factor between two expressions with symbols; None if there is none or one is 0."""
    if not (one.has_symbols and other.has_symbols) or len(one.values) != len(other.values):
        return None
    mp = _mpmath()
    with mp.workdps(_DIGITS):
        if any(not value for value in (*one.values, *other.values)):
            return None
        ratios = [a / b for a, b in zip(one.values, other.values, strict=True)]
        if not all(_close(mp, ratio, ratios[0]) for ratio in ratios):
            return None
        return float(ratios[0].real) if not ratios[0].imag else None


@cache
def _symbolic() -> Any:
    # Imported when first needed: sympy takes half a second.
    import math_verify
    from math_verify.parser import LatexExtractionConfig

    # It warns once per process that its time limits, which are signals, are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify.parse, (LatexExtractionConfig(boxed_match_priority=0),)


@cache
def _mpmath() -> Any:
    from mpmath import mp

    return mp


def _read_expression(text: str) -> Scalar | None:
    import sympy

    parse, extraction = _symbolic()
    found = parse(
        f"\\boxed{{{text}}}", extraction, fallback_mode="no_fallback", parsing_timeout=None
    )
    if len(found) != 1 or not isinstance(found[0], sympy.Expr):
        return None
    expression = found[0]
    try:
        exact = expression.xreplace(
            {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
        )
        check_magnitude(exact)
        values = _values(exact)
        spelling = str(expression)
        rational = _as_fraction(exact)
    # Of what a model wrote, evaluation may raise anything: then it is no quantity.
    except (
        ArithmeticError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        NotImplementedError,
    ):
        return None
    if values is None:
        return None
    if rational is not None:
        short = (
            str(rational) if rational.denominator * abs(rational.numerator) < 10**60 else spelling
        )
        return Scalar(short, exact=rational)
    return Scalar(spelling, values=values, has_symbols=bool(exact.free_symbols))


def _as_fraction(expression: Any) -> Fraction | None:
    """The value of a sum, product, power or factorial of whole numbers, exactly."""
    import sympy

    if isinstance(expression, sympy.Rational):
        return Fraction(int(expression.p), int(expression.q))
    parts = [_as_fraction(part) for part in expression.args]
    numbers = [part for part in parts if part is not None]
    if not numbers or len(numbers) < len(parts):
        return None
    if isinstance(expression, sympy.Add):
        return sum(numbers, Fraction(0))
    if isinstance(expression, sympy.Mul):
        return prod(numbers, start=Fraction(1))
    if isinstance(expression, sympy.Pow) and numbers[1].denominator == 1:
        return numbers[0] ** int(numbers[1])
    if isinstance(expression, sympy.factorial) and numbers[0] in range(MAX_FACTORIAL + 1):
        return Fraction(factorial(int(numbers[0])))
    if isinstance(expression, sympy.UnevaluatedExpr):
        return numbers[0]
    return None


def _values(expression: Any) -> tuple[Any, ...] | None:
    """The values at the fixed points; None if one is not a finite number, infinity aside."""
    import sympy
    from sympy.core.function import AppliedUndef

    if expression in (sympy.oo, -sympy.oo):
        return (_mpmath().inf if expression is sympy.oo else -_mpmath().inf,)
    functions = {f: sympy.Symbol(str(f)) for f in expression.atoms(AppliedUndef)}
    expression = expression.xreplace(functions)
    symbols = sorted(expression.free_symbols, key=str)
    values: list[Any] = []
    for point in range(3 if symbols else 1):
        at = {symbol: _coordinate(symbol.name, point) for symbol in symbols}
        value = expression.evalf(_DIGITS, subs=at, maxn=200)
        real, imaginary = value.as_real_imag()
        if not (real.is_Number and imaginary.is_Number and real.is_finite and imaginary.is_finite):
            return None
        with _mpmath().workdps(_DIGITS):
            values.append(_mpmath().mpc(str(real), str(imaginary)))
            if 0 < abs(values[-1]) < _SMALLEST:
                return None
    return tuple(values)


def _coordinate(name: str, point: int) -> Any:
    """Where a symbol is put: anywhere without a meaning, the second time below zero."""
    import sympy

    scattered = zlib.crc32(f"{name}/{point}".encode()) % 999_983
    coordinate = 3 * sympy.Rational(scattered, 999_983) + sympy.Rational(1, 3)
    return -coordinate if point == 1 else coordinate


def _hundredth(scalar: Scalar) -> Scalar:
    return replace(scaled(scalar, Fraction(1, 100)), percent=False)


def _same_value(one: Scalar, other: Scalar) -> bool:
    if one.exact is not None and other.exact is not None:
        return one.exact == other.exact or _rounds_to(one, other) or _rounds_to(other, one)
    if one.has_symbols != other.has_symbols:
        return False
    mp = _mpmath()
    with mp.workdps(_DIGITS):
        first, second = (_all_values(scalar) for scalar in (one, other))
        if len(first) != len(second):
            return False
        if all(_close(mp, a, b) for a, b in zip(first, second, strict=True)):
            return True
        return _rounds_to(one, other) or _rounds_to(other, one)


def _all_values(scalar: Scalar) -> tuple[Any, ...]:
    if scalar.exact is None:
        return scalar.values
    return (_mpmath().mpf(scalar.exact.numerator) / scalar.exact.denominator,)


def _close(mp: Any, one: Any, other: Any) -> bool:
    if mp.isinf(one) or mp.isinf(other):
        return one == other
    scale = max(abs(one), abs(other))
    tolerance = mp.mpf(_TOLERANCE.numerator) / _TOLERANCE.denominator
    return abs(one - other) <= scale * tolerance


def _rounds_to(exact: Scalar, rounded: Scalar) -> bool:
    """Whether `rounded` is written as a decimal with enough digits, and is `exact` rounded."""
    if rounded.exact is None or rounded.decimal is None or exact.decimal is not None:
        return False
    if rounded.decimal.significant < _MIN_SIGNIFICANT or exact.has_symbols:
        return False
    half = Fraction(1, 2 * 10**rounded.decimal.places)
    if exact.exact is not None:
        return abs(exact.exact - rounded.exact) <= half
    mp = _mpmath()
    (value,) = exact.values
    return not mp.isinf(value) and bool(
        abs(value - _all_values(rounded)[0]) <= mp.mpf(half.numerator) / half.denominator
    )
