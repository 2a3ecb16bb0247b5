"""What pydantic found, in the words of somebody who typed the configuration."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic_core import ErrorDetails

from rlstack.config.base import Frozen

KeyPath = tuple[int | str, ...]
Models = tuple[type[Frozen], ...]

EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} in the list",
    "too_long": "at most {max_length} in the list",
}
"""pydantic's error type -> what is allowed, with pydantic's context filled in."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A key that is wrong by itself."""

    path: KeyPath
    text: str
    replaced: KeyPath
    """What a right configuration must replace: a whole list or variant where `path` is inside."""
    meant: KeyPath = ()
    """Where `path` is unknown: the key it was probably meant to be."""


def dotted(path: KeyPath) -> str:
    """The path as it is typed: `data.train[0].path`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def explain(details: ErrorDetails, schema: type[Frozen]) -> Fault:
    """One validation error of `schema`."""
    path, holders, variant = _locate(details["loc"], schema)
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return _unknown_key(path, holders, variant, schema)
        case "missing" if isinstance(path[-1], int):
            return Fault(path[:-1], "has too few entries", replaced=_outside_lists(path))
        case "missing":
            text = f"missing; give it a value: {dotted(path)}=VALUE"
            return Fault(path, text, replaced=_outside_lists(path))
        case "union_tag_invalid" | "union_tag_not_found":
            # pydantic stops at the union: `path` is that of the variant, not of its name.
            models = _models_at(details["loc"], schema)
            tags = " or ".join(repr(tag) for model in models for tag in _tags(model))
            got = f"got {context['tag']!r}" if "tag" in context else "missing"
            tagged = (*path, str(context["discriminator"]).strip("'"))
            return Fault(tagged, f"{got}; expected {tags}", replaced=_outside_lists(path))
        case kind:
            expected = EXPECTED.get(kind, details["msg"]).format(**context)
            got = _shown(details["input"])
            text = f"got {got}; expected {expected}"
            if kind == "string_type" and isinstance(details["input"], int | float):
                text += f": {dotted(path)}='\"{got}\"'"
            return Fault(path, text, replaced=_outside_lists(path))


def _unknown_key(
    path: KeyPath, holders: Models, variant: str | None, schema: type[Frozen]
) -> Fault:
    key = str(path[-1])
    known = list(dict.fromkeys(name for model in holders for name in model.model_fields))
    elsewhere = [found for found in _all_keys(schema) if found[-1] == key]
    close = get_close_matches(key, known, n=1)
    meant: KeyPath = ()
    if close:
        meant = (*path[:-1], close[0])
    elif len(elsewhere) == 1:
        meant = elsewhere[0]
    if meant:
        text = f"unknown key; did you mean {dotted(meant)}?"
    elif variant is not None:
        text = f"{variant!r} has no such key, only {', '.join(known)}"
        if not any(isinstance(part, int) for part in path):
            text += f"; choose a variant as a group: {'/'.join(map(str, path[:-1]))}={variant}"
    else:
        text = f"unknown key; known here: {', '.join(known)}"
    return Fault(path, text, replaced=_outside_lists(path), meant=meant)


def _locate(loc: Sequence[int | str], schema: type[Frozen]) -> tuple[KeyPath, Models, str | None]:
    """pydantic's location without the tags of variants, which nobody types.

    Returns the path, the models that may hold its last key, and the tag of their variant.
    """
    models: Models = (schema,)
    variant: str | None = None
    holders, holders_variant = models, variant
    path: list[int | str] = []
    for part in loc:
        holders, holders_variant = models, variant
        tagged = tuple(model for model in models if part in _tags(model))
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if isinstance(part, str) and tagged and not fields:
            models, variant = tagged, part
            continue
        path.append(part)
        if isinstance(part, str):  # the entries of a list have the models of the list
            models = tuple(m for field in fields for m in _models_in(field.annotation))
            variant = None
    return tuple(path), holders, holders_variant


def _models_at(loc: Sequence[int | str], schema: type[Frozen]) -> Models:
    _, holders, _ = _locate((*loc, ""), schema)
    return holders


def _models_in(annotation: Any) -> Models:
    """The models that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return (annotation,)
    return tuple(m for inner in get_args(annotation) for m in _models_in(inner))


def _tags(model: type[Frozen]) -> tuple[str, ...]:
    """The names by which a tagged union knows this variant."""
    fields = [field.annotation for field in model.model_fields.values()]
    literals = [get_args(f) for f in fields if get_origin(f) is Literal]
    return tuple(values[0] for values in literals if len(values) == 1)


def _all_keys(schema: type[Frozen], path: KeyPath = ()) -> Iterable[KeyPath]:
    for name, field in schema.model_fields.items():
        yield (*path, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Frozen):
            yield from _all_keys(field.annotation, (*path, name))


def _outside_lists(path: KeyPath) -> KeyPath:
    """The path up to the first list on it."""
    first = next((i for i, part in enumerate(path) if isinstance(part, int)), len(path))
    return path[:first]


def _shown(value: Any) -> str:
    """As it would stand in YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()
