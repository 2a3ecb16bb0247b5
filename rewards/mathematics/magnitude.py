"""How large the numbers may get that evaluating an expression runs into."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from math import log2
from typing import Any

# 2^17 bits, 40,000 digits, are evaluated within milliseconds.
_MAX_EXPONENT_BITS = 17.0
_MAX_BITS = 2.0**17
_MAX_FACTORIAL_BITS = 8.0


class TooLargeError(ValueError):
    """Evaluating the expression would take more time or memory than an answer is worth."""


def check_magnitude(expression: Any) -> None:
    """Whether every step of the evaluation stays within 40,000 digits.

    Raises:
        TooLargeError: if a step may not.
    """
    _bits(expression)


def _bits(expression: Any) -> float:
    """An upper bound of log2 of the absolute value, and of its inverse; at least 2."""
    import sympy

    if isinstance(expression, sympy.Rational):
        return max(2.0, *(float(int(part).bit_length()) for part in (expression.p, expression.q)))
    if not expression.args:
        return 2.0
    bits = [_bits(part) for part in expression.args]
    if isinstance(expression, sympy.Pow):
        return _limited(bits[0], exponent_bits=bits[1])
    if isinstance(expression, sympy.exp | sympy.sinh | sympy.cosh | sympy.tanh):
        return _limited(2.0, exponent_bits=bits[0])
    if isinstance(expression, sympy.factorial | sympy.gamma | sympy.binomial):
        if max(bits) > _MAX_FACTORIAL_BITS:
            raise TooLargeError("a factorial of a large number")
        return 2.0**12
    if isinstance(expression, sympy.Add):
        return max(bits) + log2(len(bits)) + 1
    if sum(bits) > _MAX_BITS:
        raise TooLargeError("a large product")
    return sum(bits)


def _limited(base_bits: float, *, exponent_bits: float) -> float:
    if exponent_bits > _MAX_EXPONENT_BITS or base_bits * 2.0**exponent_bits > _MAX_BITS * 2:
        raise TooLargeError("a power of a large number")
    return base_bits * 2.0**exponent_bits
