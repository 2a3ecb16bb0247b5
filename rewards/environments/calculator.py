"""A calculator for models: one arithmetic expression, bounded in time and size."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

MAX_CHARACTERS = 1000
_MAX_BITS = 10_000

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "abs": abs,
    "round": round,
    "min": min,
    "max": max,
    "floor": math.floor,
    "ceil": math.ceil,
}


class CalculationError(ValueError):
    """The expression has no value here; the text is for the model to read."""


def calculate(expression: str) -> str:
    """The value of an arithmetic expression: + - * / // % ** ^ ( ) and a few functions.

    Raises:
        CalculationError: saying what is wrong with it.
    """
    if len(expression) > MAX_CHARACTERS:
        raise CalculationError(f"the expression has more than {MAX_CHARACTERS} characters")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
        value = _value(tree.body)
        text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    except CalculationError:
        raise
    except (SyntaxError, RecursionError, MemoryError):
        raise CalculationError(f"{expression.strip()!r} is no arithmetic expression") from None
    except (ArithmeticError, ValueError, TypeError) as error:
        raise CalculationError(str(error)) from None
    return text


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            result: Any = number
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            result = _UNARY[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            result = _combined(sign, _value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            result = _FUNCTIONS[name](*(_value(argument) for argument in arguments))
        case _:
            functions = ", ".join(_FUNCTIONS)
            raise CalculationError(
                f"{ast.unparse(node)!r} is not understood: only numbers, + - * / // % **, "
                f"parentheses and {functions}"
            )
    if isinstance(result, complex) or (isinstance(result, float) and not math.isfinite(result)):
        raise CalculationError("the value is no real number")
    return result


def _combined(sign: ast.operator, left: float, right: float) -> Any:
    bits = left.bit_length() if isinstance(left, int) else 64
    if isinstance(sign, ast.Pow):
        bits *= max(1, abs(math.ceil(right)))
    elif isinstance(right, int):
        bits += right.bit_length()
    if bits > _MAX_BITS:
        raise CalculationError("the numbers are too large")
    return _BINARY[type(sign)](left, right)
