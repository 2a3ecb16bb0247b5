r"""Which part of a response is its final answer.

One response states one answer. Where it offers several to choose from (`3 or 4`, a row of boxes,
two `####` lines) the answer is all of them together, or there is none: never the right one of them.
"""

import re
from itertools import pairwise

BOX = "\\boxed{"
_MAX_RESPONSE_TAIL = 4_000
_MAX_BOXED_CHARS = 1_000
# Drafts are boxed too; this many different ones are a search for the right one.
_MAX_DISTINCT_BOXES = 5
# The last number counts only near the end: elsewhere it is part of the reasoning.
_LAST_NUMBER_CHARS = 500
# A shorter line of the prompt may well be repeated in an answer.
_MIN_ECHO_CHARS = 40

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z_]+>")
_ANSWER_PHRASE = re.compile(
    r"\banswer(?:\s+to\s+[^.\n]{0,60})?\s*(?:is|are|[:=])(?:\s+(?:that|just|therefore))?\s*:?",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.?!](?=\s|$)|\n")
_MATHS = re.compile(
    r"\$\$([^$]{1,400})\$\$|\\\[(.{1,400}?)\\\]|\\\((.{1,400}?)\\\)"
    r"|(?<![\\\d$])\$(?!\s)([^$\n]{1,400}?)(?<![\s\\])\$(?!\d)"
    r"|(-?\s?\\[dt]?frac\{[^{}$\n]{1,50}\}\{[^{}$\n]{1,50}\})",
    re.DOTALL,
)
# Two amounts in dollars are no formula.
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")
_TWO_LETTERS = re.compile(r"(?<![\\A-Za-z{])(?!pi|ln)[A-Za-z]{2,}")
NUMBER_IN_TEXT = re.compile(
    r"(?<![\w.,])[-+]?(?:\\?[$\u00a3\u20ac]\s?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:[eE][-+]?\d{1,3}\b)?(?:\s?/\s?\d+(?![\w]))?"
    r"(?:\s?\\?%|\s(?:hundred|thousand|million|billion|trillion|dozen|percent)\b)?",
    re.ASCII,
)
_LABEL = re.compile(r"^\s*(?:[A-Za-z]{1,2}:|=)\s*")
_ALTERNATIVES = re.compile(r"\bor\b|\band\b|[,;|&]|\bmaybe\b|\bperhaps\b", re.IGNORECASE)
_CHOICE = re.compile(r"\bor\b|\bmaybe\b|\bperhaps\b|\beither\b", re.IGNORECASE)


def final_answer(response: str, prompt: str = "") -> str | None:
    r"""The text of the final answer, without `\boxed{}` or the dollar signs around it.

    In this order: after `</think>` if there is one, inside `<answer>`, the last `\boxed{}` (with
    all boxes of its sentence), after `####`, after "answer is" or "answer:", the last formula or
    number near the end. Lines that repeat a line of the prompt do not count.
    """
    text = _without_echo(response, prompt).rsplit("</think>", maxsplit=1)[-1]
    tagged = _ANSWER_TAG.findall(text[-_MAX_RESPONSE_TAIL:])
    if len({content.strip() for content in tagged}) > 1:
        return None
    if tagged:
        text = tagged[-1]
    if BOX in text:
        return _boxed(text)
    text = _TAG.sub(" ", text[-_MAX_RESPONSE_TAIL:]).replace("**", " ")
    if "####" in text:
        marked = {line.strip().split("\n")[0].strip() for line in text.split("####")[1:]}
        return _stated(marked.pop()) if len(marked) == 1 else None
    # Searched from the end: the last phrase is the final one.
    phrases = list(_ANSWER_PHRASE.finditer(text))
    if phrases:
        stated = _stated(text[phrases[-1].end() :].strip())
        if stated is not None:
            return stated
    if tagged:
        return _stated(text)
    return _last_formula_or_number(text[-_LAST_NUMBER_CHARS:])


def _without_echo(response: str, prompt: str) -> str:
    if len(prompt) < _MIN_ECHO_CHARS:
        return response
    asked = {line.strip() for line in prompt.splitlines()}
    echo = response.strip()
    if len(echo) >= _MIN_ECHO_CHARS and echo in prompt:
        return ""
    lines = response.splitlines(keepends=True)
    return "".join(
        line for line in lines if len(line.strip()) < _MIN_ECHO_CHARS or line.strip() not in asked
    )


def _boxed(text: str) -> str | None:
    """What the last sentence with boxes holds in them, as one list; None if open or too many."""
    boxes: list[tuple[int, int, str]] = []
    for match in re.finditer(re.escape(BOX), text):
        if boxes and match.start() < boxes[-1][1]:
            return None  # a box in a box
        end = _closing_brace(text, match.end())
        if end is None:
            return None
        boxes.append((match.start(), end + 1, text[match.end() : end].strip()))
    if len({content for _, _, content in boxes}) > _MAX_DISTINCT_BOXES:
        return None
    answers = [boxes[-1][2]]
    for (_, end, content), (start, _, _) in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        if _SENTENCE_END.search(text, end, start):
            break
        if content not in answers:
            answers.insert(0, content)
    return ", ".join(answers)


def _closing_brace(text: str, inside: int) -> int | None:
    depth = 1
    for end in range(inside, min(len(text), inside + _MAX_BOXED_CHARS)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return end
    return None


def _stated(clause: str) -> str | None:
    """The one answer that a clause states; a list if it states several; None if none."""
    formulas = _formulas(clause.split("\n\n")[0])
    first_line = clause.split("\n")[0]
    end = _SENTENCE_END.search(first_line)
    sentence = first_line[: end.start()] if end else first_line
    if formulas and formulas[0][0] <= len(sentence):
        within = [content for start, _, content in formulas if start <= len(sentence)]
        return ", ".join(dict.fromkeys(within))
    sentence = sentence.strip().rstrip(".:,")
    if not sentence:
        return None
    if "\\" in sentence or not _PROSE.search(sentence):
        return sentence
    numbers = list(NUMBER_IN_TEXT.finditer(sentence.rsplit("=", maxsplit=1)[-1]))
    if not numbers:
        return sentence
    for before, after in pairwise(numbers):
        between = before.string[before.end() : after.start()]
        if _ALTERNATIVES.search(between) and before.group() != after.group():
            return ", ".join(number.group() for number in numbers)
    if _denied(numbers[0]):
        return None
    return numbers[0].group()


def _formulas(text: str) -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    for match in _MATHS.finditer(text):
        content = next(group for group in match.groups() if group is not None)
        if not _PROSE.search(content):
            found.append((match.start(), match.end(), content.strip()))
    return found


def _denied(number: re.Match[str]) -> bool:
    return (
        re.search(r"\b(?:not|never|isn't|neither|nor)\b", number.string[: number.start()])
        is not None
    )


def _last_formula_or_number(text: str) -> str | None:
    formulas = _formulas(text)
    line = _LABEL.sub("", text.strip().rsplit("\n", maxsplit=1)[-1])
    if not formulas and not _TWO_LETTERS.search(line):
        # Arithmetic on the way to the number may be wrong; an equation is the answer.
        return line if re.search("[A-Za-z]", line) else line.rsplit("=", maxsplit=1)[-1]
    numbers = list(NUMBER_IN_TEXT.finditer(text))
    if formulas and (not numbers or numbers[-1].end() <= formulas[-1][1]):
        start, _, content = formulas[-1]
        if len(formulas) > 1:
            between = text[formulas[-2][1] : start]
            if not _SENTENCE_END.search(between) and _CHOICE.search(between):
                return ", ".join(dict.fromkeys((formulas[-2][2], content)))
        return content
    if not numbers:
        return None
    last = numbers[-1]
    sentence_start = max(
        (end.end() for end in _SENTENCE_END.finditer(text, 0, last.start())), default=0
    )
    earlier = [number for number in numbers[:-1] if number.start() >= sentence_start]
    if (
        earlier
        and earlier[-1].group() != last.group()
        and _CHOICE.search(text, earlier[-1].end(), last.start())
    ):
        return ", ".join(number.group() for number in (earlier[-1], last))
    if re.search(
        r"\b(?:not|isn't|neither|nor)\s+\S{0,10}\s*$", text[sentence_start : last.start()]
    ):
        return None
    return last.group()
