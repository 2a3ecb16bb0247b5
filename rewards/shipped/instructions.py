"""The checks behind `ifeval`: one function a verifiable instruction, from the paper's table.

Each takes the response and the arguments it needs and says whether the instruction is followed.
Where the paper leaves a count open, the reading here is in the function's docstring.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from rewards.shipped.scripts import letters_by_script, scripts_of

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE = re.compile(
    r"[^.!?\u3002\uff01\uff1f]*[^\W_][^.!?\u3002\uff01\uff1f]*(?:[.!?\u3002\uff01\uff1f]+|$)"
)
# A point inside a number, or behind a title, does not end a sentence.
_NO_END = re.compile(
    r"(?<=\d)\.(?=\d)|\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e)\.", re.IGNORECASE
)
_TITLE = re.compile(r"<<[^<>\n]*[^\s<>][^<>\n]*>>")
_HIGHLIGHT = re.compile(
    r"(?<!\*)\*\*(?=\S)([^*\n]+)(?<=\S)\*\*(?!\*)|(?<!\*)\*(?=\S)([^*\n]+)(?<=\S)\*(?!\*)"
)
_BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-(?!-))[ \t]*[^\s*-].*$", re.MULTILINE)
_FENCE = re.compile(r"\A```(?:json|JSON|Json)?[ \t]*\n(.*)\n```\Z", re.DOTALL)
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _compare(count: int, relation: str, threshold: int) -> bool:
    if relation == "less than":
        return count < threshold
    if relation == "at least":
        return count >= threshold
    raise ValueError(f"relation {relation!r}; expected 'less than' or 'at least'")


def _occurrences(text: str, keyword: str) -> int:
    """Whole words or phrases, case aside."""
    phrase = r"\s+".join(re.escape(word) for word in keyword.split())
    if not phrase:
        raise ValueError("an empty keyword")
    return len(re.findall(rf"(?<!\w){phrase}(?!\w)", text, re.IGNORECASE))


def _count_sentences(text: str) -> int:
    """Runs of text with a letter or digit that end in . ! ? or at the end of a line."""
    text = _NO_END.sub(" ", text)
    return sum(len(_SENTENCE.findall(line)) for line in text.splitlines())


def keywords_existence(response: str, given: Arguments) -> bool:
    """All keywords occur."""
    return all(_occurrences(response, keyword) for keyword in given["keywords"])


def keywords_frequency(response: str, given: Arguments) -> bool:
    """The keyword occurs less than, or at least, so many times."""
    return _compare(
        _occurrences(response, given["keyword"]), given["relation"], int(given["frequency"])
    )


def forbidden_words(response: str, given: Arguments) -> bool:
    """None of the words occurs."""
    return not any(_occurrences(response, word) for word in given["forbidden_words"])


def letter_frequency(response: str, given: Arguments) -> bool:
    """The letter occurs less than, or at least, so many times, case aside."""
    letter = given["letter"]
    if len(letter) != 1:
        raise ValueError(f"letter {letter!r} is not one character")
    count = response.casefold().count(letter.casefold())
    return _compare(count, given["let_relation"], int(given["let_frequency"]))


def response_language(response: str, given: Arguments) -> bool:
    """At least 0.9 of the letters are in the language's script; Latin ones cannot be told apart."""
    scripts = scripts_of(given["language"])
    if scripts is None:
        raise ValueError(f"language {given['language']!r} has no script known here")
    counts = letters_by_script(response)
    total = sum(counts.values())
    return total > 0 and sum(counts[script] for script in scripts) >= 0.9 * total


def number_words(response: str, given: Arguments) -> bool:
    """Less than, or at least, so many words."""
    return _compare(len(_WORD.findall(response)), given["relation"], int(given["num_words"]))


def number_sentences(response: str, given: Arguments) -> bool:
    """Less than, or at least, so many sentences."""
    return _compare(_count_sentences(response), given["relation"], int(given["num_sentences"]))


def number_paragraphs(response: str, given: Arguments) -> bool:
    """Exactly so many paragraphs, separated by `***`, none of them empty."""
    paragraphs = re.split(r"\s?\*\*\*\s?", response.strip())
    # A separator before the first or behind the last separates nothing.
    while paragraphs and not paragraphs[0].strip():
        paragraphs.pop(0)
    while paragraphs and not paragraphs[-1].strip():
        paragraphs.pop()
    filled = all(_WORD.search(paragraph) for paragraph in paragraphs)
    return filled and len(paragraphs) == int(given["num_paragraphs"])


def nth_paragraph_first_word(response: str, given: Arguments) -> bool:
    """Exactly so many paragraphs, separated by blank lines; the nth begins with the word."""
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", response) if p.strip()]
    nth = int(given["nth_paragraph"])
    if len(paragraphs) != int(given["num_paragraphs"]) or not 1 <= nth <= len(paragraphs):
        return False
    first = _WORD.search(paragraphs[nth - 1])
    return first is not None and first.group().casefold() == given["first_word"].strip().casefold()


def number_placeholders(response: str, given: Arguments) -> bool:
    """At least so many placeholders in square brackets, e.g. [address]."""
    found = re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\]", response)
    return len(found) >= int(given["num_placeholders"])


def postscript(response: str, given: Arguments) -> bool:
    """A line that begins with the marker (P.S., P.P.S) and goes on, case aside."""
    letters = [re.escape(letter) for letter in given["postscript_marker"] if letter.isalnum()]
    marker = r"\.?\s?".join(letters)
    if not marker:
        raise ValueError("an empty postscript_marker")
    return re.search(rf"^\s*{marker}\b[.:]*\s*\S*\w", response, re.I | re.M) is not None


def number_bullet_lists(response: str, given: Arguments) -> bool:
    """Exactly so many bullet points, lines that begin with `*` or `-`."""
    return len(_BULLET.findall(response)) == int(given["num_bullets"])


def number_highlighted_sections(response: str, given: Arguments) -> bool:
    """At least so many parts in *asterisks*, with something in them."""
    found = [match for match in _HIGHLIGHT.finditer(response) if _WORD.search(match.group())]
    return len(found) >= int(given["num_highlights"])


def multiple_sections(response: str, given: Arguments) -> bool:
    """At least so many sections, each begun by the splitter and a number and not empty."""
    splitter = re.escape(given["section_spliter"].strip())
    sections = re.split(rf"^[\s#*]*{splitter}\s+(?:\d+|[IVXLC]+)\b", response, flags=re.MULTILINE)
    return sum(1 for section in sections[1:] if _WORD.search(section)) >= int(given["num_sections"])


def json_format(response: str, given: Arguments) -> bool:
    """The whole response is JSON, an object or an array, perhaps in a fenced block."""
    text = response.strip()
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


def title(response: str, given: Arguments) -> bool:
    """A title in <<double angular brackets>>."""
    return any(_WORD.search(found) for found in _TITLE.findall(response))


def constrained_response(response: str, given: Arguments) -> bool:
    """Exactly one of the three answers: My answer is yes / no / maybe."""
    said = [choice for choice in _CHOICES if choice.casefold() in response.casefold()]
    return len(said) == 1


def two_responses(response: str, given: Arguments) -> bool:
    """Two different responses, separated by `******`."""
    parts = [part.strip() for part in response.split("******")]
    if parts and not parts[0]:
        parts.pop(0)
    if parts and not parts[-1]:
        parts.pop()
    return len(parts) == 2 and all(map(_WORD.search, parts)) and parts[0] != parts[1]


def repeat_prompt(response: str, given: Arguments) -> bool:
    """The request word for word first, then more."""
    request, said = (" ".join(t.split()).casefold() for t in (given["prompt_to_repeat"], response))
    return said.startswith(request) and bool(_WORD.search(said[len(request) :]))


def end_checker(response: str, given: Arguments) -> bool:
    """The response ends with the phrase, quotation marks behind it aside."""
    said, phrase = (" ".join(t.split()).casefold() for t in (response, given["end_phrase"]))
    if not phrase:
        raise ValueError("an empty end_phrase")
    return said.rstrip("\"'\u201d\u2019 ").endswith(phrase.rstrip("\"'\u201d\u2019 "))


def quotation(response: str, given: Arguments) -> bool:
    """The whole response in double quotation marks."""
    text = response.strip()
    marks = ('""', "\u201c\u201d")
    return len(text) > 2 and text[0] + text[-1] in marks and bool(_WORD.search(text))


def english_capital(response: str, given: Arguments) -> bool:
    """Letters of the Latin script, capitals only."""
    return _is_latin(response) and response.isupper()


def english_lowercase(response: str, given: Arguments) -> bool:
    """Letters of the Latin script, none of them a capital."""
    return _is_latin(response) and response.islower()


def _is_latin(text: str) -> bool:
    counts = letters_by_script(text)
    return counts["LATIN"] > 0 and counts["LATIN"] >= 0.9 * sum(counts.values())


def capital_word_frequency(response: str, given: Arguments) -> bool:
    """Words in capitals only, less than or at least so many."""
    count = sum(1 for word in _WORD.findall(response) if word.isupper())
    return _compare(count, given["capital_relation"], int(given["capital_frequency"]))


def no_comma(response: str, given: Arguments) -> bool:
    """No comma of any script."""
    return not re.search("[,\uff0c\u060c\u3001\ufe50\uff64]", response)


CHECKS: Mapping[str, tuple[Check, tuple[str, ...]]] = {
    "keywords:existence": (keywords_existence, ("keywords",)),
    "keywords:frequency": (keywords_frequency, ("keyword", "relation", "frequency")),
    "keywords:forbidden_words": (forbidden_words, ("forbidden_words",)),
    "keywords:letter_frequency": (letter_frequency, ("letter", "let_relation", "let_frequency")),
    "language:response_language": (response_language, ("language",)),
    "length_constraints:number_words": (number_words, ("relation", "num_words")),
    "length_constraints:number_sentences": (number_sentences, ("relation", "num_sentences")),
    "length_constraints:number_paragraphs": (number_paragraphs, ("num_paragraphs",)),
    "length_constraints:nth_paragraph_first_word": (
        nth_paragraph_first_word,
        ("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "detectable_content:number_placeholders": (number_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": (number_bullet_lists, ("num_bullets",)),
    "detectable_format:number_highlighted_sections": (
        number_highlighted_sections,
        ("num_highlights",),
    ),
    "detectable_format:multiple_sections": (
        multiple_sections,
        ("section_spliter", "num_sections"),
    ),
    "detectable_format:json_format": (json_format, ()),
    "detectable_format:title": (title, ()),
    "detectable_format:constrained_response": (constrained_response, ()),
    "combination:two_responses": (two_responses, ()),
    "combination:repeat_prompt": (repeat_prompt, ("prompt_to_repeat",)),
    "startend:end_checker": (end_checker, ("end_phrase",)),
    "startend:quotation": (quotation, ()),
    "change_case:english_capital": (english_capital, ()),
    "change_case:english_lowercase": (english_lowercase, ()),
    "change_case:capital_word_frequency": (
        capital_word_frequency,
        ("capital_relation", "capital_frequency"),
    ),
    "punctuation:no_comma": (no_comma, ()),
}
"""Each instruction's id in the public data set, its check and the arguments it needs."""
