"""Rewards by name: register functions, load plugins, bind parameters.

A reward is a plain function `(request: RewardRequest, *, <named params>) -> float | Score | None`
that stays usable without any of this. It knows nothing of processes or time-outs: those belong to
the scorer.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

RewardResult = float | Score | None
"""A value in reward units, a whole `Score`, or None: "cannot be judged", which is not 0."""

Reward = Callable[[RewardRequest], RewardResult]
"""A reward with all its parameters bound."""

ROW = "row"
"""The component that stands for whichever reward the dataset row names; not a reward itself."""

_Function = TypeVar("_Function", bound=Callable[..., RewardResult])


@dataclass(frozen=True, slots=True)
class _Entry:
    function: Callable[..., RewardResult]
    requires: tuple[str, ...]


# A decorator can only reach a module-level table. It fills while modules are imported and is only
# read afterwards; each process fills its own.
_registry: dict[str, _Entry] = {}


def register(name: str, *, requires: tuple[str, ...] = ()) -> Callable[[_Function], _Function]:
    """Make a reward function known as `name`; the function itself is returned unchanged.

    requires: importable names of optional packages that the function imports when it runs. They are
    checked when the reward is built and imported before a scorer process takes requests, so that
    the first request does not pay for them.

    Raises:
        RewardError: if the name is taken by another function, or the function's signature is not
            `(request, *, <named params>)`.
    """

    def decorate(function: _Function) -> _Function:
        _check_signature(name, function)
        known = _registry.get(name)
        if known is not None and _origin(known.function) != _origin(function):
            raise RewardError(
                f"reward {name!r} is registered twice: {_place(known.function)} and "
                f"{_place(function)}. Rename one of them."
            )
        _registry[name] = _Entry(function, requires)
        return function

    return decorate


def registered_names() -> tuple[str, ...]:
    """All known reward names, sorted."""
    return tuple(sorted(_registry))


def required_modules(name: str) -> tuple[str, ...]:
    """The optional packages that reward `name` imports when it runs.

    Raises:
        RewardError: if the reward is unknown.
    """
    return _lookup(name).requires


def build(name: str, params: Mapping[str, Any]) -> Reward:
    """Reward `name` with `params` validated against its annotations and bound.

    Raises:
        RewardError: if the reward is unknown, a package it needs is not installed, or a parameter
            is unknown, missing or of the wrong type.
    """
    entry = _lookup(name)
    for module in entry.requires:
        if find_spec(module) is None:
            raise RewardError(
                f"reward {name!r} needs the package {module.replace('_', '-')!r}, which is not "
                f"installed. Install it: pip install {module.replace('_', '-')}"
            )
    return partial(entry.function, **_validated(name, entry.function, params))


def load_plugin(plugin: str) -> None:
    """Import a module (`package.module`) or a file (`path/to/file.py`) that registers rewards.

    Loading the same plugin again does nothing.

    Raises:
        RewardError: if it cannot be found or imported, or registers a name that is taken.
    """
    try:
        if plugin.endswith(".py"):
            _import_file(Path(plugin).resolve())
        else:
            importlib.import_module(plugin)
    except RewardError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"reward plugin {plugin!r} cannot be imported: {type(error).__name__}: {error}. "
            "Give a module on the Python path or the path of a .py file in reward.plugins."
        ) from error


def _import_file(path: Path) -> None:
    # Named by its whole path: two plugins may share a file name, and neither may shadow a package.
    module_name = f"reward_plugin:{path}"
    if module_name in sys.modules:
        return
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = spec_from_file_location(module_name, path)
    assert spec is not None, "a .py path always has a spec"
    assert spec.loader is not None, "a .py path always has a loader"
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


def _lookup(name: str) -> _Entry:
    if name in _registry:
        return _registry[name]
    close = get_close_matches(name, _registry, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise RewardError(
        f"reward {name!r} is unknown.{hint} Known: {', '.join(registered_names())}. "
        "A reward of your own needs its module or file in reward.plugins."
    )


def _check_signature(name: str, function: Callable[..., RewardResult]) -> None:
    if not name or name == ROW:
        raise RewardError(
            f"reward name {name!r} in {_place(function)} is reserved. Choose another name."
        )
    request, *params = inspect.signature(function).parameters.values() or (None,)
    takes_request = request is not None and request.kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    named = all(param.kind is inspect.Parameter.KEYWORD_ONLY for param in params)
    if not takes_request or not named:
        raise RewardError(
            f"reward {name!r} in {_place(function)} has the signature "
            f"{inspect.signature(function)}; expected (request, *, <named params>). "
            "Put a * after the first argument."
        )


def _validated(
    name: str, function: Callable[..., RewardResult], params: Mapping[str, Any]
) -> dict[str, Any]:
    _, *declared = inspect.signature(function).parameters.values()
    annotations = get_type_hints(function, include_extras=True)
    names = [param.name for param in declared]
    for unknown in params.keys() - set(names):
        close = get_close_matches(unknown, names, n=1)
        fix = f"did you mean {close[0]!r}?" if close else "remove it."
        raise RewardError(
            f"reward {name!r} has no parameter {unknown!r}: {fix} "
            f"Its parameters: {', '.join(names) or 'none'}."
        )
    bound: dict[str, Any] = {}
    for param in declared:
        expected = annotations.get(param.name, Any)
        if param.name in params:
            bound[param.name] = _checked(name, param.name, expected, params[param.name])
        elif param.default is inspect.Parameter.empty:
            raise RewardError(
                f"reward {name!r} needs the parameter {param.name!r} "
                f"({inspect.formatannotation(expected)}). Add it to the component's params."
            )
    return bound


def _checked(reward: str, param: str, expected: Any, value: Any) -> Any:
    try:
        return TypeAdapter(expected).validate_python(value)
    except ValidationError as error:
        raise RewardError(
            f"reward {reward!r}, parameter {param!r}: expected "
            f"{inspect.formatannotation(expected)}, got {value!r} "
            f"({error.errors()[0]['msg']}). Correct it in the component's params."
        ) from None


def _origin(function: Callable[..., RewardResult]) -> tuple[str, str]:
    """The same for two imports of one definition."""
    return inspect.getsourcefile(function) or "", function.__qualname__


def _place(function: Callable[..., RewardResult]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
