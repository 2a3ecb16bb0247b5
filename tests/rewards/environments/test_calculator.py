import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.environments.calculator import CalculationError, calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        (" (2 + 3) * -4 ", "-20"),
        ("2^10", "1024"),
        ("7 / 2", "3.5"),
        ("8 / 2", "4"),
        ("7 // 2 + 7 % 2", "4"),
        ("sqrt(16) + max(1, 2)", "6"),
        ("round(3.14159, 2)", "3.14"),
        ("12345678901234567890 * 10", "123456789012345678900"),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1 / 0", "division by zero"),
        ("2 +", "is no arithmetic expression"),
        ("x + 1", "'x' is not understood"),
        ("__import__('os')", "not understood"),
        ("'a' * 9", "not understood"),
        ("True", "not understood"),
        ("(-8) ** 0.5", "no real number"),
        ("sqrt(-1)", "domain|nonnegative"),
        ("9 ** 9 ** 9", "too large"),
        ("10.0 ** 400", "too large"),
        ("1e300 * 1e300", "no real number"),
        ("1" * 2000, "more than 1000 characters"),
        ("round(1.5, 'a')", "not understood"),
        ("max()", "max expected"),
        ("\x00", "null bytes|no arithmetic"),
        ("(" * 500, "no arithmetic expression"),
    ],
)
def test_what_has_no_value_is_explained(expression: str, message: str) -> None:
    with pytest.raises(CalculationError, match=message):
        calculate(expression)


@given(st.text(alphabet="0123456789+-*/%^(). ,sqrtabmx", max_size=40))
def test_only_values_and_explanations_come_out(expression: str) -> None:
    try:
        float(calculate(expression))
    except CalculationError:
        pass
    except OverflowError:  # of float() here: an integer beyond every float is a value
        pass
