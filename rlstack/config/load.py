"""From composed YAML to a validated configuration: every problem in one message."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rlstack.config.base import Frozen, Problem, RunSchema
from rlstack.config.explain import Fault, KeyPath, dotted, explain
from rlstack.errors import ConfigError

Schema = TypeVar("Schema", bound=RunSchema)

MISSING = "???"
"""OmegaConf's mark of a value that the user must give."""


def parse(
    schema: type[Schema], values: Mapping[str, Any], *, fallback: Mapping[str, Any] | None = None
) -> Schema:
    """Validate `values` against `schema`.

    `fallback` is a valid configuration: its values stand in for wrong ones, so that impossible
    combinations of the other keys are found in the same go.

    Raises:
        ConfigError: listing every wrong key with the fix.
    """
    config, faults = _validate(schema, values)
    ungiven = _not_given(values)
    wrong = [Fault(path, f"must be given: {dotted(path)}=VALUE", replaced=path) for path in ungiven]
    wrong += [fault for fault in faults if fault.path not in ungiven]
    if config is None and fallback is not None:
        repaired = _with_fallback(values, fallback, (fault.replaced for fault in wrong))
        config, _ = _validate(schema, repaired)
    combinations = [] if config is None else config.problems()
    doubtful = {dotted(path) for fault in wrong for path in (fault.replaced, fault.meant) if path}
    problems = [(dotted(fault.path), fault.text) for fault in wrong]
    problems += [(p.keys[0], p.text) for p in combinations if not _touches(p, doubtful)]
    if config is None or problems:
        noun = "problem" if len(problems) == 1 else "problems"
        lines = [f"  {key}: {text}" for key, text in problems]
        raise ConfigError("\n".join([f"{len(problems)} {noun} in the configuration:", *lines]))
    return config


def dump(config: Frozen) -> str:
    """The configuration as YAML that `parse` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _validate(schema: type[Schema], values: Mapping[str, Any]) -> tuple[Schema | None, list[Fault]]:
    """Strict, so that no string is read as a number; by way of JSON, whose lists make tuples."""
    try:
        return schema.model_validate_json(json.dumps(values), strict=True), []
    except ValidationError as error:
        return None, [explain(details, schema) for details in error.errors()]


def _not_given(values: Any, path: KeyPath = ()) -> list[KeyPath]:
    """Paths whose value is still `???`."""
    if isinstance(values, Mapping):
        entries = values.items()
    elif isinstance(values, list):
        entries = enumerate(values)
    else:
        return [path] if values == MISSING else []
    return [found for key, value in entries for found in _not_given(value, (*path, key))]


def _with_fallback(
    values: Mapping[str, Any], fallback: Mapping[str, Any], paths: Iterable[KeyPath]
) -> dict[str, Any]:
    """A copy of `values` with `paths` as they are in `fallback`, or gone where they are there."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    for path in paths:
        here: Any = copy
        there: Any = fallback
        for key in path[:-1]:
            here = here.setdefault(key, {})
            there = there.get(key, {})
        if path[-1] in there:
            here[path[-1]] = there[path[-1]]
        else:
            here.pop(path[-1], None)
    return copy


def _touches(problem: Problem, doubtful: Iterable[str]) -> bool:
    """Whether the problem depends on a key whose value is in doubt, or on one above or below it."""
    return any(
        f"{key}.".startswith(f"{doubt}.") or f"{doubt}.".startswith(f"{key}.")
        for key in problem.keys
        for doubt in doubtful
    )
