"""Check an installation of the core alone: each of its modules imports, its commands run.

    pip install .  &&  python tools/check_core.py

With `--hide` an environment that has the runtime too is checked as if it had not.
"""

import argparse
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RUNTIME = (
    "accelerate",
    "datasets",
    "deepspeed",
    "httpx",
    "msgpack",
    "peft",
    "pyarrow",
    "ray",
    "reasoning_gym",
    "starlette",
    "tensorboard",
    "transformers",
    "usearch",
    "uvicorn",
    "vllm",
)
"""What the extras of pyproject.toml bring, by import name."""
PACKAGES = ("rlstack", "rewards", "conf")
COMPOSITION_ROOTS = ("rlstack/cli.py", "rlstack/commands/")
"""The only files of the core that may know the runtime."""
PROGRAMS = "rewards/sandbox/inside/"
"""Not modules: what runs in the sandbox, started by path."""
RUN = "import runpy; runpy.run_module('rlstack.cli', run_name='__main__', alter_sys=True)"
APPS = ("rl", "sft", "reward_model", "dpo", "rejection_sampling", "eval", "pipeline")
COMMANDS = (
    (("--help",), "usage: rlstack COMMAND"),
    (("algorithms",), "`grpo`"),
    (("rewards", "list"), "math_answer"),
    (("rl", "--help"), "== Configuration"),
    *(((name, "--cfg", "job"), "seed: 0") for name in APPS),
)
"""Arguments of `rlstack`, and what it must print."""


def main(arguments: Sequence[str]) -> None:
    """Check the installation that this interpreter finds.

    Raises:
        AssertionError: saying what is wrong with it.
    """
    parser = argparse.ArgumentParser(description="Check an installation of the core alone.")
    parser.add_argument("--hide", action="store_true", help="as if the runtime were not installed")
    is_hidden = parser.parse_args(arguments).hide
    if is_hidden:
        nothing: dict[str, Any] = dict.fromkeys(RUNTIME)
        sys.modules.update(nothing)  # makes their imports fail
    present = [name for name in RUNTIME if importlib.util.find_spec(name) is not None]
    assert not present, f"{', '.join(present)}: installed, so this is not the core alone"
    modules = core_modules(installed_root())
    for module in modules:
        importlib.import_module(module)
    print(f"{len(modules)} modules imported")
    for words, expected in COMMANDS:
        done = rlstack(words, is_hidden=is_hidden)
        assert done.returncode == 0, f"rlstack {' '.join(words)}\n{done.stdout}{done.stderr}"
        assert expected in done.stdout, f"rlstack {' '.join(words)} did not print {expected!r}"
    print(f"{len(COMMANDS)} commands run")
    done = rlstack(("rl", "model.path=m", "data=gsm8k"), is_hidden=is_hidden)
    assert done.returncode == 2, done.stdout
    assert "pip install 'rlstack[cpu]'" in done.stderr, done.stderr


def installed_root() -> Path:
    """The folder that holds the packages: site-packages, or a checkout."""
    spec = importlib.util.find_spec("rlstack")
    assert spec is not None, "rlstack is not installed"
    assert spec.origin is not None, "rlstack is a folder without an __init__.py"
    return Path(spec.origin).parents[1]


def core_modules(root: Path) -> list[str]:
    """Names of every module of the core that must import without the runtime."""
    paths = module_paths(root, PACKAGES)
    return [name for path, name in paths.items() if not path.startswith(COMPOSITION_ROOTS)]


def module_paths(root: Path, packages: Iterable[str]) -> dict[str, str]:
    """Path relative to `root` -> name of every module of the packages."""
    files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
    paths = [file.relative_to(root).as_posix() for file in files]
    return {
        path: path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
        for path in paths
        if not path.startswith(PROGRAMS)
    }


def rlstack(words: Sequence[str], *, is_hidden: bool) -> subprocess.CompletedProcess[str]:
    """What the command line does; the console script's, where nothing has to be hidden from it."""
    command = [str(Path(sys.executable).with_name("rlstack"))]
    if is_hidden:
        hide = f"import sys; sys.modules.update(dict.fromkeys({RUNTIME!r})); {RUN}"
        command = [sys.executable, "-c", hide]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
