r"""One spelling for the many ways to typeset the same answer; and what cannot be an answer."""

import re
import unicodedata

MAX_CHARS = 400

_SYMBOLS = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u22c5": r"\cdot ",
        "\u00f7": "/",
        "\u2215": "/",
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        "\u2264": r"\le ",
        "\u2265": r"\ge ",
        "\u2260": r"\ne ",
        "\u222a": r"\cup ",
        "\u2208": r"\in ",
        "\u00b1": r"\pm ",
        "\u00b0": r"^\circ ",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u00a0": " ",
        "\u202f": " ",
        "\u2009": " ",
        "\u20ac": "$",
        "\u00a3": "$",
    }
)
_SAME = [
    (re.compile(r"\\(?:left|right|big|Big|bigl|bigr|displaystyle|textstyle)(?![A-Za-z])"), ""),
    (re.compile(r"\{,\}|(?<=\d)\\[,!]\s?(?=\d{3}(?!\d))|(?<=\d),\\!\s?(?=\d{3})"), ","),
    (re.compile(r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:mathrm|textbf|textrm|textit|mbox|operatorname|mathbf)\s*\{"), r"\\text{"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"<=|=<"), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"\\(?:lbrace|\{)"), r"\\{"),
    (re.compile(r"\\(?:rbrace|\})"), r"\\}"),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree(?![A-Za-z])"), " degrees"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\*"), r"\\cdot "),
    (re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])(pi|sin|cos|tan|ln|log)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\sqrt\s*(\d)"), r"\\sqrt{\1}"),
    (
        re.compile(r"\\text\{\s*(?:,\s*)?(?:or|and)\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])"),
        " , ",
    ),
    (re.compile(r"\s+"), " "),
]
_DELIMITED = re.compile(r"\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)


def normal_form(answer: str) -> str | None:
    """The answer respelled; None if it is too long or has characters that only look like others."""
    if len(answer) > MAX_CHARS:
        return None
    text = answer.translate(_SYMBOLS).strip()
    delimited = _DELIMITED.fullmatch(text)
    if delimited:
        inner = next(group for group in delimited.groups() if group is not None)
        if "$" not in inner.replace("\\$", ""):
            text = inner
    text = text.replace("\\$", "").replace("$", "")
    if not all(_plain(character) for character in text):
        return None
    for pattern, same in _SAME:
        text = pattern.sub(same, text)
    text = text.strip().rstrip(",;:").strip()
    return text[:-1].strip() if text.endswith(".") else text


def _plain(character: str) -> bool:
    if character.isascii():
        return character.isprintable() or character.isspace()
    # Letters of other scripts may name a unit inside \text{}; digits, marks, full-width forms and
    # invisible characters are disguises.
    return (
        unicodedata.category(character) in ("Ll", "Lu", "Lo")
        and unicodedata.normalize("NFKC", character) == character
    )
