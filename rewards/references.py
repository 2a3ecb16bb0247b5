"""Functions of others that a parameter of a reward names: `module:name` or `file.py:name`."""

from collections.abc import Callable
from typing import Any

from rewards.registry import REWARDS
from rlstack.errors import RewardError


def import_object(reference: str) -> Any:
    """What `module:name` or `path/to/file.py:name` refers to.

    Raises:
        RewardError: if the reference has another form, the module cannot be imported or lacks it.
    """
    source, colon, name = reference.rpartition(":")
    if not colon or not source or not name:
        raise RewardError(
            f"{reference!r} is no reference to a function: expected module:name or file.py:name."
        )
    module = REWARDS.load_plugin(source)
    if not hasattr(module, name):
        raise RewardError(f"{reference!r}: {module.__file__ or source} has no {name!r}.")
    return getattr(module, name)


def import_function(reference: str) -> Callable[..., Any]:
    """The function that `module:name` or `path/to/file.py:name` refers to.

    Raises:
        RewardError: as `import_object`, and if what is found cannot be called.
    """
    found = import_object(reference)
    if not callable(found):
        raise RewardError(
            f"{reference!r} is a {type(found).__name__}, which cannot be called; name a function."
        )
    return found
