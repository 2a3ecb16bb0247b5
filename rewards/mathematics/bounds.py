"""What may be given to the LaTeX parser: judged by its text, before anything is parsed."""

import re

_MAX_CHARS = 200
_MAX_DEPTH = 6
_MAX_DIGITS = 120
_MAX_EXPONENT = 10_000
MAX_FACTORIAL = 200

_COMMANDS_TEXT = (
    "frac sqrt pi cdot times div infty ln log lg exp sin cos tan cot sec csc arcsin arccos "
    "arctan sinh cosh tanh binom alpha beta gamma delta epsilon theta lambda mu nu rho sigma "
    "tau phi omega varphi psi xi eta zeta kappa Delta Omega Theta Lambda Phi lfloor rfloor "
    "lceil rceil "
)
_COMMANDS = frozenset(_COMMANDS_TEXT.split())
_COMMAND = re.compile(r"\\([A-Za-z]+|.)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
_EXPONENT = re.compile(r"\^\s*(\{|\(|-?\s*\d+|\\?[A-Za-z]+)", re.ASCII)
_INNER_POWER = re.compile(r"[A-Za-z]\s*\^\s*\{?\s*\d\s*\}?", re.ASCII)


def is_bounded(text: str) -> bool:
    """Whether the LaTeX parser and evaluation are sure to end soon and in little memory."""
    if not 0 < len(text) <= _MAX_CHARS or not text.isascii():
        return False
    if sum(character.isdigit() for character in text) > _MAX_DIGITS:
        return False
    if any(command not in _COMMANDS for command in _COMMAND.findall(text)):
        return False
    return (
        _depth(text) <= _MAX_DEPTH
        and not _WORD.search(text)
        and _exponents_are_small(text)
        and _integers_in_functions_are_small(text)
    )


def _depth(text: str) -> int:
    """Deepest nesting; as good as infinite if brackets do not match."""
    stack: list[str] = []
    deepest = 0
    for character in text:
        if character in "([{":
            stack.append(character)
            deepest = max(deepest, len(stack))
        elif character in ")]}" and (
            not stack or stack.pop() + character not in ("()", "[]", "{}")
        ):
            return _MAX_DEPTH + 1
    return _MAX_DEPTH + 1 if stack else deepest


def _exponents_are_small(text: str) -> bool:
    product = 1
    for match in _EXPONENT.finditer(text):
        opened = match.group(1)
        if opened in "{(":
            exponent = _group(text, match.end() - 1)
            # A tower: e^{x^2} is an answer, 9^{9^9} does not fit into memory.
            if "^" in _INNER_POWER.sub("", exponent) or "!" in exponent:
                return False
        else:
            exponent = opened
            if text[match.end() :].lstrip().startswith("^"):
                return False
        for number in re.findall(r"\d+", exponent, re.ASCII):
            product *= max(1, int(number))
    return product <= _MAX_EXPONENT


def _group(text: str, start: int) -> str:
    depth = 0
    for end in range(start, len(text)):
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + 1 : end]
    return text[start + 1 :]


def _integers_in_functions_are_small(text: str) -> bool:
    for match in re.finditer("!", text):
        argument = re.search(r"(?:^|[^\d.])(\d{1,3}|[A-Za-z])$", text[: match.start()].rstrip())
        if argument is None:
            return False
        if argument[1].isdigit() and int(argument[1]) > MAX_FACTORIAL:
            return False
    if "binom" in text:
        return not re.search(r"\d{4,}|[\^!]", text)
    return True
