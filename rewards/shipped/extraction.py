"""Finding the answer in a model's response with a regular expression."""

import re


def last_match(text: str, pattern: re.Pattern[str]) -> str | None:
    """The last match of `pattern` in `text`, stripped: its first group if it has one; else None."""
    found: re.Match[str] | None = None
    for match in pattern.finditer(text):
        found = match
    if found is None:
        return None
    answer: str | None = found.group(1 if pattern.groups else 0)
    return None if answer is None else answer.strip()
