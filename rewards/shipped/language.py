"""Reward `language`: how much of the response is in the language it should be in."""

import re
from typing import Annotated

from pydantic import AfterValidator

from rewards.registry import register
from rewards.shipped.scripts import letters_by_script, scripts_of
from rlstack.types import RewardRequest

_CODE_OR_FORMULA = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]"
    r"|\\[A-Za-z]+|https?://\S+|</?[A-Za-z_]+>",
    re.DOTALL,
)


def _known(languages: tuple[str, ...]) -> tuple[str, ...]:
    for language in languages:
        if scripts_of(language) is None:
            raise ValueError(f"unknown language or script {language!r}")
    return languages


@register("language")
def language(
    request: RewardRequest, *, expected: Annotated[tuple[str, ...], AfterValidator(_known)]
) -> float | None:
    """The share of the response's letters that are in the scripts of `expected`, 0.0 .. 1.0.

    Judged by Unicode script, without a model: it tells Chinese from English, not French from
    English (one script), Russian from Bulgarian, nor Chinese from Japanese written in Chinese
    characters only. Code, formulas, LaTeX commands, tags and addresses do not count. None without
    a letter left.

    expected: languages by code or name (`en`, `chinese`) or scripts (`latin`, `cyrillic`).
    """
    counts = letters_by_script(_CODE_OR_FORMULA.sub(" ", request.response))
    if not counts:
        return None
    scripts = frozenset().union(*(scripts_of(name) or () for name in expected))
    return sum(counts[script] for script in scripts) / sum(counts.values())
