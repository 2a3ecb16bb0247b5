"""What the core may import: it works where Ray, vLLM, DeepSpeed and transformers are absent."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = ("ray", "vllm", "deepspeed", "transformers", "datasets", "reasoning_gym", "pyarrow")
COMPOSITION_ROOTS = ("rlstack/cli.py", "rlstack/commands/")
"""The only files of the core that may know the runtime."""
PROGRAMS = "rewards/sandbox/inside/"
"""Not modules: what runs in the sandbox, started by path."""
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


def modules_under(*packages: str) -> dict[str, str]:
    """Relative path -> module name of every module of the packages."""
    files = [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]
    paths = [file.relative_to(ROOT).as_posix() for file in files]
    paths = [path for path in paths if not path.startswith(PROGRAMS)]
    return {
        path: path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
        for path in paths
    }


def import_without(blocked: tuple[str, ...], modules: list[str]) -> None:
    command = [sys.executable, "-c", CODE, ",".join(blocked), ",".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"{len(modules)} imported")


def test_core_and_rewards_import_without_the_runtime() -> None:
    core = [
        module
        for path, module in modules_under("rlstack", "rewards").items()
        if not path.startswith(COMPOSITION_ROOTS)
    ]
    assert {"rlstack.controller", "rlstack.algorithms.catalog", "rewards.registry"} <= set(core)
    import_without(RUNTIME, core)


def test_data_configuration_planning_and_rewards_import_without_torch() -> None:
    modules = [
        module
        for path, module in modules_under("rlstack", "rewards").items()
        if path.startswith((*WITHOUT_TORCH, "rewards/"))
    ]
    assert {"rlstack.types", "rlstack.config.load", "rlstack.planning.phases"} <= set(modules)
    import_without((*RUNTIME, "torch"), modules)


def test_the_check_itself_notices_a_forbidden_import() -> None:
    with pytest.raises(AssertionError, match="torch"):
        import_without(("torch",), ["rlstack.batch"])
