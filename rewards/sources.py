"""Where rewards and environments of others come from: modules, files and installed packages."""

import importlib
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rlstack.errors import RewardError

Kind = Literal["reward", "environment"]

ENTRY_POINT_GROUPS: dict[Kind, str] = {
    "reward": "rlstack.rewards",
    "environment": "rlstack.environments",
}
"""Where installed packages name what they bring: `my_reward = "my_package.my_module"`."""


def import_plugin(plugin: str) -> ModuleType:
    """The module `package.module` or the file `path/to/file.py`, imported once.

    Raises:
        RewardError: if it cannot be found or imported.
    """
    try:
        if plugin.endswith(".py"):
            return _import_file(Path(plugin).resolve())
        return importlib.import_module(plugin)
    except RewardError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"reward plugin {plugin!r} cannot be imported: {type(error).__name__}: {error}. "
            "Give a module on the Python path or the path of a .py file in reward.plugins."
        ) from error


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
    module = import_plugin(source)
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


@cache
def installed(kind: Kind) -> dict[str, EntryPoint]:
    """What installed packages declare, by name; none of it is imported by this.

    Raises:
        RewardError: if two packages declare the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUPS[kind]):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise RewardError(
                f"two installed packages declare the {kind} {point.name!r}: {_package(other)} "
                f"({other.value}) and {_package(point)} ({point.value}). Uninstall one of them."
            )
        found[point.name] = point
    return found


def load_installed(kind: Kind, name: str) -> Any:
    """Import what the installed package declares as `name`: a module, or the thing itself.

    Raises:
        RewardError: naming the package and the cause, if it cannot be imported.
    """
    point = installed(kind)[name]
    try:
        return point.load()
    except RewardError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"{kind} {name!r} of the installed package {_package(point)} cannot be imported from "
            f"{point.value!r}: {type(error).__name__}: {error}. Repair or uninstall that package."
        ) from error


def _package(point: EntryPoint) -> str:
    return repr(point.dist.name if point.dist is not None else point.module)


def _import_file(path: Path) -> ModuleType:
    # Named by its whole path: two plugins may share a file name, and neither may shadow a package.
    module_name = f"reward_plugin:{path}"
    if module_name in sys.modules:
        return sys.modules[module_name]
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
    return module
