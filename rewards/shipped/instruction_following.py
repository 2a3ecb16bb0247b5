"""Reward `ifeval`: which of a row's verifiable instructions the response follows.

Source: "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911). A row has
the public data set's fields in its metadata: `instruction_id_list` and, for each, `kwargs`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from rewards.registry import register
from rewards.shipped.instructions import CHECKS
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score


@register("ifeval")
def ifeval(
    request: RewardRequest,
    *,
    mode: Literal["strict", "loose"] = "strict",
    score: Literal["all", "share"] = "all",
) -> Score:
    """1.0 if the response follows all the row's instructions, or the share that it follows.

    Every instruction is a part, by its id (a second one of the same id as `id#2`). An empty
    response follows none.

    mode: `loose` also tries the response without its first line, its last line, both, and each of
        these without asterisks, as the paper does; it forgives an introduction, and is easier.
    score: `all` (the paper's prompt level) or `share` (its instruction level).

    Raises:
        RewardError: if the row has no instructions, one is unknown, lacks an argument or has a
            wrong one.
    """
    ids, arguments = _instructions(request)
    variants = [request.response] if mode == "strict" else _loose_variants(request.response)
    variants = [variant for variant in variants if variant.strip()]
    parts: dict[str, float] = {}
    for index, (instruction, kwargs) in enumerate(zip(ids, arguments, strict=True)):
        number = ids[: index + 1].count(instruction)
        name = instruction if number == 1 else f"{instruction}#{number}"
        parts[name] = float(any(_follows(instruction, kwargs, variant) for variant in variants))
    share = sum(parts.values()) / len(parts)
    return Score(value=share if score == "share" else float(share == 1.0), parts=parts)


def _instructions(request: RewardRequest) -> tuple[list[str], list[Mapping[str, Any]]]:
    where = f"the row (data source {request.data_source!r})"
    ids: list[str] = list(request.metadata.get("instruction_id_list") or [])
    arguments: list[Mapping[str, Any]] = list(request.metadata.get("kwargs") or [])
    if not ids:
        raise RewardError(
            f"ifeval: {where} has no metadata['instruction_id_list']. This reward judges rows in "
            "IFEval's form; name another reward for the rest."
        )
    if len(arguments) != len(ids):
        raise RewardError(
            f"ifeval: {where} has {len(ids)} instructions and {len(arguments)} kwargs. Give one "
            "mapping for each instruction, {} if it needs none."
        )
    for instruction in ids:
        if instruction not in CHECKS:
            raise RewardError(
                f"ifeval: {where} has the unknown instruction {instruction!r}. "
                f"Known: {', '.join(sorted(CHECKS))}."
            )
    # The public data set carries every argument of every instruction, unused ones as null.
    return ids, [{k: v for k, v in (given or {}).items() if v is not None} for given in arguments]


def _follows(instruction: str, kwargs: Mapping[str, Any], response: str) -> bool:
    check, needed = CHECKS[instruction]
    missing = [name for name in needed if name not in kwargs]
    if missing:
        raise RewardError(
            f"ifeval: instruction {instruction!r} needs {', '.join(missing)} in its kwargs; "
            f"the row gives {', '.join(kwargs) or 'none'}."
        )
    try:
        return check(response, {name: kwargs[name] for name in needed})
    except (TypeError, AttributeError, ValueError) as error:
        raise RewardError(
            f"ifeval: instruction {instruction!r} has wrong kwargs {dict(kwargs)}: {error}"
        ) from None


def _loose_variants(response: str) -> list[str]:
    lines = response.strip().split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(re.sub(r"\*", "", variant) for variant in cut)]))
