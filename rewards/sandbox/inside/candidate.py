"""The program under test: run as a script, or its function called on request.

Nothing here is a secret or a defence: the program shares this process and may change all of it. It
is never given an expected result, and what it sends is data to whoever judges it.
"""

import os
import sys
import types
from collections.abc import Callable

import values

CALLS_IN, RESULTS_OUT = 3, 4


def run_script(path: str) -> None:
    """Run the file as `python path` would."""
    _main_module(path)


def serve_calls(path: str, entry_point: str) -> None:
    """Run the file, then answer each line `[args, kwargs]` with `[result]` or `[type, message]`."""
    module = _main_module(path)
    function = _look_up(module, entry_point)
    with open(CALLS_IN, "rb", closefd=False) as calls:
        for line in calls:
            args, kwargs = values.loads(line)
            try:
                reply = values.dumps([function(*args, **kwargs)])
            except (Exception, SystemExit) as error:  # noqa: BLE001
                reply = values.dumps([type(error).__name__, str(error)[:1000]])
            _write_all(RESULTS_OUT, reply + b"\n")


def _main_module(path: str) -> types.ModuleType:
    module = types.ModuleType("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    sys.path.insert(0, os.getcwd())
    with open(path, "rb") as file:
        source = file.read()
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    return module


def _look_up(module: types.ModuleType, entry_point: str) -> Callable[..., object]:
    """`function`, or `Class.method` of a fresh object (the form that LeetCode rows use)."""
    owner, _, method = entry_point.partition(".")
    found = getattr(module, owner)
    return getattr(found(), method) if method else found


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
