"""Modules and files of others, imported by the reference that a configuration gives."""

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def import_plugin(plugin: str) -> ModuleType:
    """Import the module `package.module` or the file `path/to/file.py`, once.

    Raises whatever the import raises.
    """
    if plugin.endswith(".py"):
        return _import_file(Path(plugin).resolve())
    return importlib.import_module(plugin)


def _import_file(path: Path) -> ModuleType:
    # Named by its whole path: two plugins may share a file name, and neither may shadow a package.
    module_name = f"plugin:{path}"
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
