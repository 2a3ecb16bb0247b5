"""Reward `format`: the response has the required shape, whatever it says."""

import re
from typing import Annotated

from pydantic import AfterValidator

from rewards.registry import register
from rlstack.types import RewardRequest

_TAG_NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
# What is drawn as nothing is nothing, whatever Unicode calls it.
_VISIBLE = re.compile(
    r"[^\s\u00ad\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0]"
)


def _tag_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("give at least one tag name, each once")
    for name in names:
        if not _TAG_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a tag name; write it without < and >")
    return names


@register("format")
def format_reward(
    request: RewardRequest,
    *,
    tags: Annotated[tuple[str, ...], AfterValidator(_tag_names)] = ("think", "answer"),
    pattern: re.Pattern[str] | None = None,
) -> float:
    """1.0 if the whole response, whitespace at both ends aside, has the shape; else 0.0.

    tags: every one of them exactly once, in this order, none inside another, none empty, nothing
        but whitespace outside.
    pattern: instead of tags, an expression that the whole response matches. In it `.` stops at
        line ends; start it with `(?s)` if it should not.
    """
    response = request.response.strip()
    if pattern is not None:
        return float(pattern.fullmatch(response) is not None)
    return float(_has_tags(response, tags))


def _has_tags(response: str, tags: tuple[str, ...]) -> bool:
    position = 0
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if response.count(opening) != 1 or response.count(closing) != 1:
            return False
        start, end = response.find(opening), response.find(closing)
        if response[position:start].strip() or end < start:
            return False
        content = response[start + len(opening) : end]
        if not _VISIBLE.search(content):
            return False
        if any(f"<{name}>" in content or f"</{name}>" in content for name in tags):
            return False
        position = end + len(closing)
    return not response[position:].strip()
