"""What may import without torch; `tests.tools.test_check_core`: what without the runtime."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_core import RUNTIME, module_paths

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_TORCH = ("rlstack/types.py", "rlstack/config/", "rlstack/data/", "rlstack/planning/")

CODE = """
import importlib, sys
blocked, modules = sys.argv[1].split(","), sys.argv[2].split(",")
for name in blocked:
    sys.modules[name] = None  # makes `import name` fail as if it were not installed
for module in modules:
    importlib.import_module(module)
print(len(modules), "imported")
"""


def import_without(blocked: tuple[str, ...], modules: list[str]) -> None:
    command = [sys.executable, "-c", CODE, ",".join(blocked), ",".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"{len(modules)} imported")


def test_data_configuration_planning_and_rewards_import_without_torch() -> None:
    modules = [
        module
        for path, module in module_paths(ROOT, ("rlstack", "rewards")).items()
        if path.startswith((*WITHOUT_TORCH, "rewards/"))
    ]
    assert {"rlstack.types", "rlstack.config.load", "rlstack.planning.phases"} <= set(modules)
    import_without((*RUNTIME, "torch"), modules)


def test_the_check_itself_notices_a_forbidden_import() -> None:
    with pytest.raises(AssertionError, match="torch"):
        import_without(("torch",), ["rlstack.batch"])
