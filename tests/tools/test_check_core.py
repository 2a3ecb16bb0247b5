"""What `pip install .` installs is whole, and works without the runtime."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.check_core import core_modules

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rlstack", "rewards", "workers", "conf")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel puts into site-packages."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-c", BUILD, str(wheels)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(wheels / "site")
    return wheels / "site"


def check_core(installation: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "check_core.py"), *arguments]
    env = {**os.environ, "PYTHONPATH": str(installation)}
    return subprocess.run(
        command, cwd=installation, env=env, capture_output=True, text=True, check=False
    )


def files_of_packages(folder: Path) -> set[str]:
    found = [path for name in PACKAGES for path in (folder / name).rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix() for path in found}
    return {name for name in names if "__pycache__" not in name and not name.endswith(".md")}


def test_every_file_of_the_packages_is_installed(installed: Path) -> None:
    here = files_of_packages(ROOT)
    assert {f"{name}/py.typed" for name in ("rlstack", "rewards", "workers")} <= here
    assert files_of_packages(installed) == here


def test_the_core_imports_and_its_commands_run_without_the_runtime(installed: Path) -> None:
    core = core_modules(installed)
    assert {"rlstack.controller", "rlstack.algorithms.catalog", "rewards.registry"} <= set(core)
    done = check_core(installed, "--hide")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(core)} modules imported")


def test_an_environment_with_the_runtime_is_not_the_core_alone() -> None:
    done = check_core(ROOT)
    assert done.returncode != 0
    assert "ray, reasoning_gym" in done.stderr


def test_a_file_that_is_not_installed_is_noticed(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed, tmp_path / "site")
    shutil.rmtree(tmp_path / "site" / "conf" / "algorithm" / "correction")
    done = check_core(tmp_path / "site", "--hide")
    assert done.returncode != 0
    assert "algorithm/correction" in done.stderr
