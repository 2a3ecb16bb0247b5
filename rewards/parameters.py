"""Parameters that a configuration gives to a function or class, checked against annotations."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from rlstack.errors import RewardError


def checked_parameters(
    subject: str,
    hinted: Callable[..., Any],
    declared: Sequence[inspect.Parameter],
    params: Mapping[str, Any],
) -> dict[str, Any]:
    """`params` as the annotations of `hinted` want them.

    subject: who takes them, for messages, e.g. `reward 'length'`. declared: those that may be
    given.

    Raises:
        RewardError: if a parameter is unknown, missing or of the wrong type.
    """
    annotations = get_type_hints(hinted, include_extras=True)
    names = [param.name for param in declared]
    for unknown in params.keys() - set(names):
        close = get_close_matches(unknown, names, n=1)
        fix = f"did you mean {close[0]!r}?" if close else "remove it."
        raise RewardError(
            f"{subject} has no parameter {unknown!r}: {fix} "
            f"Its parameters: {', '.join(names) or 'none'}."
        )
    bound: dict[str, Any] = {}
    for param in declared:
        expected = annotations.get(param.name, Any)
        if param.name in params:
            bound[param.name] = _checked(subject, param.name, expected, params[param.name])
        elif param.default is inspect.Parameter.empty:
            raise RewardError(
                f"{subject} needs the parameter {param.name!r} "
                f"({inspect.formatannotation(expected)}). Add it to its params."
            )
    return bound


def check_installed(subject: str, modules: Sequence[str]) -> None:
    """Raise RewardError if an importable name of `modules` is not there."""
    for module in modules:
        if find_spec(module) is None:
            raise RewardError(
                f"{subject} needs the package {module.replace('_', '-')!r}, which is not "
                f"installed. Install it: pip install {module.replace('_', '-')}"
            )


def origin(target: Callable[..., Any]) -> tuple[str, str]:
    """The same for two imports of one definition."""
    return inspect.getsourcefile(inspect.unwrap(target)) or "", target.__qualname__


def place(target: Callable[..., Any]) -> str:
    """`file:line` of a definition."""
    target = inspect.unwrap(target)
    if inspect.isclass(target):
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    code = target.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _checked(subject: str, param: str, expected: Any, value: Any) -> Any:
    try:
        return TypeAdapter(expected).validate_python(value)
    except ValidationError as error:
        raise RewardError(
            f"{subject}, parameter {param!r}: expected "
            f"{inspect.formatannotation(expected)}, got {value!r} "
            f"({error.errors()[0]['msg']}). Correct it in its params."
        ) from None
