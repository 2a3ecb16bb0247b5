"""Answers that try to earn the reward of `math_answer` without being the answer.

Each names what it tries. None may be scored above 0, none may take long or much memory.
"""

from dataclasses import dataclass

_LONG_PROMPT = (
    "A shop sells 12 pens a day for 6 days. How many pens does it sell in all?\n"
    "Write your solution step by step and then the final answer, like so: \\boxed{72}\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A response and the true answer it tries to be taken for."""

    tries: str
    answer: str
    response: str
    prompt: str = ""


def _nested_fraction(depth: int) -> str:
    return r"\frac{1}{" * depth + "2" + "}" * depth


_SEVERAL = [
    Attack(tries="either of two", answer="4", response="The answer is either 3 or 4."),
    Attack(tries="either of two, the true one first", answer="3", response="The answer is 3 or 4."),
    Attack(tries="either, without the phrase", answer="4", response="I think it is either 3 or 4"),
    Attack(tries="or in a box", answer="4", response=r"\boxed{3 or 4}"),
    Attack(tries="or as text in a box", answer="4", response=r"\boxed{3 \text{ or } 4}"),
    Attack(tries="or as text, true first", answer="3", response=r"\boxed{3 \text{ or } 4}"),
    Attack(tries="and in a box", answer="4", response=r"\boxed{3 and 4}"),
    Attack(tries="a slash for or", answer="4", response=r"\boxed{3 / 4}"),
    Attack(tries="a bar for or", answer="4", response=r"\boxed{3 | 4}"),
    Attack(tries="a semicolon", answer="4", response=r"\boxed{3; 4}"),
    Attack(tries="a list", answer="4", response=r"\boxed{1, 2, 3, 4, 5}"),
    Attack(tries="a list of two", answer="4", response=r"\boxed{4, 5}"),
    Attack(tries="a set", answer="4", response=r"\boxed{\{3, 4\}}"),
    Attack(tries="a tuple", answer="4", response=r"\boxed{(4, 4)}"),
    Attack(
        tries="a column of boxes",
        answer="4",
        response="".join(f"\\boxed{{{n}}}\n" for n in range(10, 3, -1)),
    ),
    Attack(tries="boxes in one sentence", answer="4", response=r"\boxed{3} or \boxed{4}"),
    Attack(tries="boxes side by side", answer="4", response=r"\boxed{2}\boxed{3}\boxed{4}"),
    Attack(tries="boxes with maybe", answer="4", response=r"\boxed{3}, or maybe \boxed{4}"),
    Attack(tries="a box in a box", answer="4", response=r"\boxed{3 \boxed{4}}"),
    Attack(tries="the true box first", answer="4", response=r"\boxed{4}, else \boxed{5}"),
    Attack(tries="two marks", answer="4", response="#### 4\n#### 5"),
    Attack(tries="two marks, the true one last", answer="4", response="#### 3\n#### 4"),
    Attack(tries="or after the mark", answer="4", response="#### 3 or 4"),
    Attack(tries="two answer tags", answer="4", response="<answer>3</answer><answer>4</answer>"),
    Attack(tries="several in the answer tag", answer="4", response="<answer>3 or 4</answer>"),
    Attack(tries="two formulas", answer="4", response="The answer is $3$ or $4$."),
    Attack(tries="two formulas at the end", answer="4", response="So we get $3$ or perhaps $4$"),
    Attack(
        tries="all numbers",
        answer="42",
        response="The answer is " + ", ".join(map(str, range(100))),
    ),
    Attack(tries="plus or minus", answer="4", response=r"\boxed{\pm 4}"),
    Attack(tries="two equations", answer="4", response=r"\boxed{x=3, x=4}"),
    Attack(
        tries="a piecewise answer", answer="4", response=r"\boxed{\begin{cases} 3 \\ 4 \end{cases}}"
    ),
    Attack(
        tries="a matrix around it",
        answer="4",
        response=r"\boxed{\begin{pmatrix} 3 & 4 \end{pmatrix}}",
    ),
    Attack(tries="an ampersand", answer="4", response=r"\boxed{3 & 4}"),
    Attack(tries="two lines in the box", answer="4", response="\\boxed{3 \\\\ 4}"),
    Attack(tries="a superset", answer=r"\{1,2\}", response=r"\boxed{\{1,2,3\}}"),
    Attack(tries="a subset", answer=r"\{1,2\}", response=r"\boxed{\{1\}}"),
]

_BASES = [
    Attack(tries="the digits in another base", answer="12_{5}", response=r"\boxed{12_{4}}"),
    Attack(tries="digits in another base, no braces", answer="101_2", response=r"\boxed{101_3}"),
    Attack(tries="a digit that its base does not have", answer="5", response=r"\boxed{5_{2}}"),
    Attack(tries="another base that has the digits", answer="12_8", response=r"\boxed{12_{16}}"),
]

_ECHO = [
    Attack(tries="the prompt repeated", answer="72", response=_LONG_PROMPT, prompt=_LONG_PROMPT),
    Attack(
        tries="the line of the prompt with the example",
        answer="72",
        response=_LONG_PROMPT.splitlines()[1],
        prompt=_LONG_PROMPT,
    ),
    Attack(
        tries="that line before idle talk",
        answer="72",
        response=_LONG_PROMPT.splitlines()[1] + "\nI did as told.",
        prompt=_LONG_PROMPT,
    ),
    Attack(tries="the placeholder", answer="4", response=r"\boxed{your answer}"),
    Attack(
        tries="only in the thoughts", answer="4", response=r"<think>\boxed{4}</think>I do not know."
    ),
]

_INTERVALS = [
    Attack(tries="the whole line for a number", answer="4", response=r"\boxed{(-\infty, \infty)}"),
    Attack(tries="the reals for a number", answer="4", response=r"\boxed{\mathbb{R}}"),
    Attack(tries="a member of the reals", answer="4", response=r"\boxed{x \in \mathbb{R}}"),
    Attack(
        tries="the whole line for an interval",
        answer="(0,1)",
        response=r"\boxed{(-\infty, \infty)}",
    ),
    Attack(tries="an interval of one point", answer="4", response=r"\boxed{[4, 4]}"),
    Attack(tries="a wider interval", answer="[0,1]", response=r"\boxed{[0,2]}"),
    Attack(tries="the other end open", answer="[0,1)", response=r"\boxed{(0,1]}"),
    Attack(tries="empty intervals are equal", answer="(3,1)", response=r"\boxed{(2,1)}"),
    Attack(tries="a pair turned round", answer="(5,2)", response=r"\boxed{(2,5)}"),
    Attack(tries="an inequality for a number", answer="4", response=r"\boxed{x \ge 4}"),
    Attack(tries="an inequality around it", answer="4", response=r"\boxed{3 < x < 5}"),
    Attack(tries="an inequality turned", answer="x > 3", response=r"\boxed{x < 3}"),
    Attack(tries="both sides of a point", answer="x > 3", response=r"\boxed{x \ne 3}"),
    Attack(tries="a union for one part", answer="(0,1)", response=r"\boxed{(0,1)\cup(2,3)}"),
]

_EQUATIONS = [
    Attack(tries="always true, for an equation", answer="y = 2x + 1", response=r"\boxed{0 = 0}"),
    Attack(tries="always true, with a symbol", answer="y = 2x + 1", response=r"\boxed{x = x}"),
    Attack(tries="always true, for a number", answer="4", response=r"\boxed{4 = 4}"),
    Attack(tries="false, and ending in it", answer="4", response=r"\boxed{3 = 4}"),
    Attack(tries="a false chain", answer="4", response=r"\boxed{1 = 2 = 4}"),
    Attack(tries="an unknown for a number", answer="4", response=r"\boxed{x}"),
    Attack(tries="an equation without solution", answer="x = 4", response=r"\boxed{x = x + 1}"),
    Attack(tries="an unsolved equation", answer="4", response=r"\boxed{2x = 4}"),
    Attack(tries="the question", answer="4", response=r"\boxed{x + 1 = 4}"),
    Attack(tries="another variable", answer="x = 4", response=r"\boxed{y = 5}"),
    Attack(tries="times nothing", answer="y = 2x + 1", response=r"\boxed{0y = 0(2x + 1)}"),
    Attack(tries="not a number", answer="4", response=r"\boxed{0/0}"),
    Attack(tries="infinite minus infinite", answer="4", response=r"\boxed{\infty - \infty}"),
    Attack(tries="a division by zero", answer=r"\infty", response=r"\boxed{\frac{1}{0}}"),
    Attack(tries="the text nan", answer="4", response=r"\boxed{nan}"),
    Attack(tries="an integral to be done", answer="4", response=r"\boxed{\int_0^4 1 \, dx}"),
    Attack(tries="a limit to be done", answer="4", response=r"\boxed{\lim_{x\to 4} x}"),
    Attack(tries="a root chosen later", answer="4", response=r"\boxed{\max(3,4)}"),
]

_DISGUISES = [
    Attack(tries="full-width digits", answer="72", response="\\boxed{\uff17\uff12}"),
    Attack(tries="Arabic digits", answer="72", response="\\boxed{\u0667\u0662}"),
    Attack(tries="bold mathematical digits", answer="72", response="\\boxed{\U0001d7d5\U0001d7d0}"),
    Attack(tries="a digit in a circle", answer="7", response="\\boxed{\u2466}"),
    Attack(tries="an invisible space in the number", answer="72", response="\\boxed{7\u200b2}"),
    Attack(tries="letters read backwards", answer="72", response="\\boxed{\u202e27\u202c}"),
    Attack(tries="a combining mark", answer="72", response="\\boxed{72\u0338}"),
    Attack(tries="the letter O for 0", answer="70", response=r"\boxed{7O}"),
    Attack(tries="the letter l for 1", answer="71", response=r"\boxed{7l}"),
    Attack(tries="Cyrillic x", answer="x", response="\\boxed{\u0445}"),
    Attack(tries="a full-width minus", answer="-4", response="\\boxed{\uff0d4}"),
    Attack(tries="a fraction in one character", answer="1/2", response="\\boxed{\u00bd1}"),
    Attack(tries="a NUL byte", answer="72", response="\\boxed{72\x00}"),
    Attack(tries="a box of another alphabet", answer="72", response="\\b\u043exed{72} 5"),
]

_NEARLY = [
    Attack(tries="nearly zero", answer="0", response=r"\boxed{0.0000001}"),
    Attack(tries="nearly zero, negative", answer="0", response=r"\boxed{-0.0000000001}"),
    Attack(tries="zero for a small number", answer="0.0000001", response=r"\boxed{0}"),
    Attack(tries="minus zero for a small number", answer=r"10^{-30}", response=r"\boxed{-0.0}"),
    Attack(tries="the sign", answer="4", response=r"\boxed{-4}"),
    Attack(tries="two signs", answer="-4", response=r"\boxed{--4}"),
    Attack(tries="few digits", answer=r"\frac{1}{3}", response=r"\boxed{0.333}"),
    Attack(tries="few digits of pi", answer=r"\pi", response=r"\boxed{3.14}"),
    Attack(tries="one off a large number", answer="2^{100}", response=r"\boxed{2^{100}+1}"),
    Attack(
        tries="one off, in floating point",
        answer="10000000000000001",
        response=r"\boxed{10000000000000000}",
    ),
    Attack(tries="another percentage", answer="50%", response=r"\boxed{0.5\%}"),
    Attack(tries="a hundred times the percentage", answer="50%", response=r"\boxed{5000\%}"),
    Attack(tries="another unit", answer="5 cm", response=r"\boxed{5 \text{ m}}"),
    Attack(tries="a unit for another quantity", answer="5 cm", response=r"\boxed{5 \text{ kg}}"),
    Attack(tries="a large number word", answer="5", response=r"\boxed{5 million}"),
    Attack(tries="an anagram", answer=r"\text{listen}", response=r"\boxed{silent}"),
    Attack(
        tries="a smaller one of two very small ones",
        answer="e^{-300}",
        response=r"\boxed{e^{-301}}",
    ),
    Attack(tries="equal at positive values only", answer="|x|", response=r"\boxed{x}"),
    Attack(tries="equal at whole numbers only", answer=r"\lfloor x \rfloor", response=r"\boxed{x}"),
]

_TALK = [
    Attack(tries="denied", answer="4", response="The answer is not 4."),
    Attack(tries="denied in the box", answer="4", response=r"\boxed{\text{not } 4}"),
    Attack(tries="denied behind", answer="4", response=r"\boxed{4 is wrong}"),
    Attack(tries="denied behind, as text", answer="4", response=r"\boxed{4 \text{ is not it}}"),
    Attack(tries="or so", answer="4", response=r"\boxed{4 or more}"),
    Attack(tries="at least", answer="4", response=r"\boxed{4 at least}"),
    Attack(tries="around it", answer="4", response=r"\boxed{the number 4 of 5}"),
    Attack(tries="another in words", answer="4", response=r"\boxed{4 or five}"),
    Attack(tries="an open box", answer="4", response=r"I say \boxed{4"),
    Attack(tries="an empty box after it", answer="4", response=r"The answer is 4. \boxed{}"),
    Attack(tries="code", answer="4", response=r"\boxed{__import__('os').system('true') or 4}"),
    Attack(tries="a parser's own words", answer="4", response=r"\boxed{Integer(4)}"),
]

_BOMBS = [
    Attack(tries="a power tower", answer="1", response=r"\boxed{9**9**9}"),
    Attack(tries="a tower in LaTeX", answer="1", response=r"\boxed{9^{9^{9^{9}}}}"),
    Attack(tries="a tower with a symbol", answer="1", response=r"\boxed{9^{9^9+x-x}}"),
    Attack(tries="a tower of brackets", answer="1", response=r"\boxed{(((9^9)^{99})^{99})^{99}}"),
    Attack(tries="a tower without a box", answer="1", response="The answer is 9^9^9^9"),
    Attack(tries="a huge exponent", answer="1", response=r"\boxed{2^{99999999999}}"),
    Attack(tries="a huge negative exponent", answer="1", response=r"\boxed{2^{-99999999999}}"),
    Attack(tries="a huge power of ten", answer="1", response=r"\boxed{1e999999999}"),
    Attack(
        tries="a huge power of ten in LaTeX",
        answer="1",
        response=r"\boxed{3 \times 10^{999999999}}",
    ),
    Attack(tries="a factorial", answer="1", response=r"\boxed{99999999!}"),
    Attack(tries="factorials of factorials", answer="1", response=r"\boxed{((9!)!)!}"),
    Attack(tries="many signs of a factorial", answer="1", response=r"\boxed{9!!!!!!}"),
    Attack(tries="a binomial", answer="1", response=r"\boxed{\binom{99999999}{4999999}}"),
    Attack(tries="a binomial of powers", answer="1", response=r"\boxed{\binom{9^{99}}{9^{9}}}"),
    Attack(tries="a long sum", answer="1", response=r"\boxed{\sum_{n=1}^{10^{12}} n!}"),
    Attack(tries="a long product", answer="1", response=r"\boxed{\prod_{n=1}^{10^{12}} n}"),
    Attack(
        tries="a power of a polynomial",
        answer="x",
        response=r"\boxed{(a+b+c+d+e+f+g+h)^{999}(x+y+z)^{9}}",
    ),
    Attack(
        tries="powers of polynomials",
        answer="x^2",
        response=r"\boxed{" + "".join(f"(x+{n}y)^{{9}}" for n in range(4)) + "}",
    ),
    Attack(tries="nested fractions", answer="1", response=r"\boxed{" + _nested_fraction(60) + "}"),
    Attack(
        tries="nested fractions without end", answer="1", response=r"\boxed{" + r"\frac{1}{" * 60
    ),
    Attack(tries="nested roots", answer="1", response=r"\boxed{" + r"\sqrt{" * 90 + "2" + "}" * 91),
    Attack(tries="nested brackets", answer="2", response=r"\boxed{" + "(" * 150 + "1" + ")" * 151),
    Attack(tries="100,000 brackets", answer="1", response="(" * 100_000 + "2" + ")" * 100_000),
    Attack(tries="nested braces", answer="2", response=r"\boxed{" + "{" * 400 + "1" + "}" * 401),
    Attack(
        tries="a huge set",
        answer="4",
        response=r"\boxed{\{" + ",".join(map(str, range(5000))) + r"\}}",
    ),
    Attack(
        tries="a set of 100 numbers",
        answer="4",
        response=r"\boxed{\{" + ",".join(map(str, range(100))) + r"\}}",
    ),
    Attack(
        tries="a huge matrix",
        answer="4",
        response=r"\boxed{\begin{pmatrix}" + "&".join("4" * 99) + r"\end{pmatrix}}",
    ),
    Attack(tries="a million digits", answer="4", response="4" * 1_000_000),
    Attack(
        tries="a million digits in a box", answer="4", response=r"\boxed{" + "4" * 1_000_000 + "}"
    ),
    Attack(tries="a million numbers", answer="4", response="5 " * 1_000_000),
    Attack(tries="a million boxes", answer="4", response="\\boxed{5}" * 200_000),
    Attack(tries="open boxes", answer="4", response="\\boxed{" * 200_000),
    Attack(tries="the phrase without end", answer="4", response="answer is " * 100_000),
    Attack(tries="marks without end", answer="4", response="####" * 100_000),
    Attack(tries="dollars without end", answer="4", response="$4" * 100_000),
    Attack(tries="opened brackets of formulas", answer="4", response="\\(4" * 100_000),
    Attack(tries="tags without end", answer="4", response="<answer>" * 100_000),
    Attack(
        tries="commas without end", answer="4", response="The answer is " + "4," * 100_000 + "5"
    ),
    Attack(tries="spaces without end", answer="4", response="5" + " " * 1_000_000),
    Attack(tries="signs without end", answer="4", response=r"\boxed{" + "-" * 350 + "4}"),
    Attack(tries="sums without end", answer="4", response=r"\boxed{" + "1+" * 90 + "1}"),
    Attack(
        tries="nested sines",
        answer="1",
        response=r"\boxed{" + r"\sin(" * 5 + "10^{999}" + ")" * 5 + "}",
    ),
    Attack(tries="nested exponentials", answer="1", response=r"\boxed{e^{e^{e^{e^{9}}}}}"),
    Attack(
        tries="exponentials one in the other",
        answer="1",
        response=r"\boxed{\exp(\exp(\exp(\exp(99))))}",
    ),
    Attack(
        tries="a power of a logarithm",
        answer="1",
        response=r"\boxed{(\ln 2)^{9999} - (\ln 3)^{9999}}",
    ),
    Attack(
        tries="a difference that cancels out",
        answer="1",
        response=r"\boxed{\sin(\pi \cdot 10^{999})}",
    ),
    Attack(
        tries="a logarithm of a huge number",
        answer="1",
        response=r"\boxed{\ln(\exp(\exp(\exp(9))))}",
    ),
]

ATTACKS = (
    *_SEVERAL,
    *_BASES,
    *_ECHO,
    *_INTERVALS,
    *_EQUATIONS,
    *_DISGUISES,
    *_NEARLY,
    *_TALK,
    *_BOMBS,
)
