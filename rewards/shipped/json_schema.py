"""Reward `json_schema`: the response is JSON that a schema allows."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from typing import Any

from rewards.registry import register
from rlstack.errors import RewardError
from rlstack.types import RewardRequest

METADATA_KEY = "json_schema"
"""`request.metadata[METADATA_KEY]` is the row's own schema: an object, or its text."""

_FENCED = re.compile(r"^```[A-Za-z]*[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_MAX_CHARS = 100_000
_MAX_DEPTH = 100


@register("json_schema", requires=("jsonschema",))
def json_schema(request: RewardRequest, *, schema: dict[str, Any] | None = None) -> float:
    """1.0 if the response, or its last fenced block, is JSON valid against the schema; else 0.0.

    Strict JSON: no NaN, no key twice in an object, at most 100,000 characters and 100 levels.

    schema: a JSON Schema (draft 2020-12 unless it names another); default: the row's own in
        metadata `json_schema`.

    Raises:
        RewardError: if there is no schema, or it is not a valid one.
    """
    found = schema if schema is not None else request.metadata.get(METADATA_KEY)
    if found is None:
        raise RewardError(
            f"json_schema: the row (data source {request.data_source!r}) has no metadata"
            f"[{METADATA_KEY!r}]. Add it, or give `schema` in the component's params."
        )
    text = found if isinstance(found, str) else json.dumps(found, sort_keys=True)
    validator = _validator(text)
    blocks = _FENCED.findall(request.response[-_MAX_CHARS:])
    document = blocks[-1] if blocks else request.response
    if len(document) > _MAX_CHARS or _depth(document) > _MAX_DEPTH:
        return 0.0
    try:
        value = json.loads(
            document,
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_without_repetition,
        )
    except (ValueError, RecursionError):
        return 0.0
    return float(validator.is_valid(value))


@lru_cache(maxsize=256)
def _validator(text: str) -> Any:
    import jsonschema
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        schema = json.loads(text)
        kind = validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (ValueError, TypeError, jsonschema.SchemaError) as error:
        raise RewardError(
            f"json_schema: the schema is not a valid JSON Schema: {str(error).splitlines()[0]}. "
            "Correct it in the params or in the row's metadata."
        ) from None
    # With a registry of its own it fetches nothing: a schema must not open a connection.
    return kind(schema, registry=Registry())


def _depth(document: str) -> int:
    """An upper bound: brackets in strings count too."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[{\]}]", document):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not isfinite(value):
        raise ValueError(f"{number} is too large")
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key twice in one object")
    return value
