"""Equality of answers as hypothesis finds them: reflexive, symmetric, blind to typesetting."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.mathematics.equality import same_answer
from rewards.mathematics.reading import read_answer

few = settings(max_examples=50, deadline=None)

integers = st.integers(-(10**9), 10**9)
fractions = st.builds(Fraction, st.integers(-999, 999), st.integers(1, 999))


@st.composite
def atoms(draw: st.DrawFn) -> str:
    number = draw(integers)
    fraction = draw(fractions)
    return draw(
        st.sampled_from(
            [
                str(number),
                f"{number / 100:.2f}",
                f"\\frac{{{fraction.numerator}}}{{{fraction.denominator}}}",
                f"{fraction.numerator}/{fraction.denominator}",
                f"{number}\\%",
                f"{number} \\text{{ cm}}",
                f"\\sqrt{{{abs(number) + 2}}}",
                f"x^2 + {abs(number)}",
                f"\\frac{{{abs(number)}\\pi}}{{7}}",
                "2^{100}",
                "e^{x}",
                "|x|",
            ]
        )
    )


@st.composite
def answers(draw: st.DrawFn) -> str:
    one, other = draw(atoms()), draw(atoms())
    return draw(
        st.sampled_from(
            [
                one,
                f"({one}, {other})",
                f"[{one}, {other})",
                f"\\{{{one}, {other}\\}}",
                f"{one}, {other}",
                f"x = {one}",
                f"y < {one}",
                f"{one} < y \\le {other}",
                f"(-\\infty, {one}) \\cup ({other}, \\infty)",
                f"\\begin{{pmatrix}} {one} & {other} \\\\ 0 & 1 \\end{{pmatrix}}",
                "\\text{Evelyn}",
                "\\emptyset",
            ]
        )
    )


def equal(one: str, other: str) -> bool:
    first, second = read_answer(one), read_answer(other)
    assert first is not None, one
    assert second is not None, other
    return same_answer(first, second)


@few
@given(answers())
def test_reflexive(answer: str) -> None:
    assert equal(answer, answer)


@few
@given(answers(), answers())
def test_symmetric(one: str, other: str) -> None:
    assert equal(one, other) == equal(other, one)


@few
@given(answers(), st.data())
def test_typesetting_changes_nothing(answer: str, data: st.DataObject) -> None:
    wrap = data.draw(
        st.sampled_from(["${}$", "$${}$$", r"\({}\)", r"\[{}\]", "  {} ", "{}.", r"{}\,", "{}\n"])
    )
    assert equal(answer, wrap.replace("{}", answer))
    spaced = answer.replace(", ", r",\; ").replace("(", r"\left( ").replace(")", r" \right)")
    assert equal(answer, spaced)
    assert equal(answer, answer.replace(r"\frac", r"\dfrac"))


@few
@given(integers)
def test_thousands_separators_and_trailing_zeros(number: int) -> None:
    for spelling in (
        f"{number:,}",
        f"{number}.00",
        f"{number:,}.0",
        f"+{number}".replace("+-", "-"),
    ):
        assert equal(str(number), spelling)
    assert equal(str(number), f"{number:,}".replace(",", "{,}"))
    assert equal(str(number), rf"{number} \text{{ apples}}")
    assert equal(str(number), rf"\text{{{number}}}")
    assert equal(str(number), f"x = {number}")


@few
@given(st.integers(-(10**6), 10**6), st.integers(0, 6))
def test_fractions_and_decimals_where_exact(numerator: int, places: int) -> None:
    exact = Fraction(numerator, 10**places)
    decimal = f"{'-' if numerator < 0 else ''}{abs(numerator) // 10**places}"
    if places:
        decimal += f".{abs(numerator) % 10**places:0{places}d}"
    assert equal(decimal, f"{exact.numerator}/{exact.denominator}")
    assert equal(decimal, rf"\frac{{{exact.numerator}}}{{{exact.denominator}}}")


@few
@given(fractions, fractions)
def test_different_numbers_differ(one: Fraction, other: Fraction) -> None:
    assert equal(str(one), str(other)) == (one == other)
    assert equal(f"{one}x", f"{other}x") == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("x(x+1)", "x^2+x"),
        (r"\sqrt{2}", "1.41421356"),
        (r"\frac{1}{3}", "0.333333"),
        ("y = 2x + 1", "2x - y + 1 = 0"),
        ("y = 2x + 1", "2y = 4x + 2"),
        ("x > 3", r"(3, \infty)"),
        (r"0.\overline{3}", "1/3"),
        (r"0.1\overline{6}", "1/6"),
        ("p - q", "-q + p"),
        ("x_1 = 2", "2"),
        (r"1 < x \le 2", "(1, 2]"),
        ("3 < x", "x > 3"),
        (r"x \in [0, 1)", "[0,1)"),
        ("2x + y < 3", "3 > 2x + y"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        ("1, 2", r"\{2, 1\}"),
        ("x = 1, x = 2", "1, 2"),
        (r"\pm 5", "-5, 5"),
        (r"2 \pm \sqrt{3}", r"2+\sqrt3, 2-\sqrt3"),
        (r"(0,1)\cup(2,3)", r"(2,3)\cup(0,1)"),
        (
            r"\begin{pmatrix} 1 & 0.5 \end{pmatrix}",
            r"\begin{bmatrix} 1 & \frac12 \end{bmatrix}",
        ),
        ("500 cm", "5 m"),
        ("2 hours", "120 minutes"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90 degrees"),
        ("70 thousand", "70,000"),
        (r"1.5 \times 10^{3}", "1500"),
        ("1.5e3", "1500"),
        (r"1\frac{1}{2}", "3/2"),
        ("1 1/2", "1.5"),
        ("\u22125", "-5"),
        ("2\u03c0", r"2\pi"),
        (r"\text{(A)}", "A"),
        (r"\text{even}", "Even"),
        ("f(x) = x + 1", "x + 1"),
        ("2 + 3 = 5", "5"),
        ("120", "5!"),
        (r"\binom{5}{2}", "10"),
        (r"\log_2 8", "3"),
        ("a^b", "a^{b}"),
        ("sqrt(2)/2", r"\frac{\sqrt{2}}{2}"),
        ("2*x**2", "2x^2"),
    ],
)
def test_equal(one: str, other: str) -> None:
    assert equal(one, other)
    assert equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x > 3", r"x \ge 3"),
        ("2x + y < 3", "2x + y > 3"),
        ("y = 2x + 1", "y = 2x + 2"),
        ("x = 3", "y = 4"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", r"\{1,2\}"),
        ("2^{2023}", "2^{2023} - 1"),
        ("x", "y"),
        ("x", "1"),
        (r"\sqrt{x^2}", "x"),
        ("5 m", "5 s"),
        (r"5 \text{ cm}^2", r"5 \text{ cm}^3"),
        (r"\text{even}", r"\text{odd}"),
        ("ab", "a + b"),
    ],
)
def test_not_equal(one: str, other: str) -> None:
    assert not equal(one, other)
    assert not equal(other, one)
